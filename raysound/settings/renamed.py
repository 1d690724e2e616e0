"""Accepts the old names of renamed settings for one release."""

from __future__ import annotations

import logging
from typing import Any

from raysound.errors import UserError

logger = logging.getLogger(__name__)

# Old name → current name. To be removed in 0.3.
RENAMED = {
    "training.average": "training.ema_decay",
    "training.keep": "training.checkpoint_policy",
    "training.accumulate": "training.gradient_accumulation_steps",
    "training.clip_gradient": "training.max_grad_norm",
    "training.balance": "training.class_balance",
    "training.augment.frequency_mask": "training.augment.max_frequency_mask",
    "training.augment.time_mask": "training.augment.max_time_mask",
    "search.hours": "search.time_budget_hours",
    "search.concurrent": "search.max_concurrent_trials",
    "compute.local_cpus": "compute.num_cpus",
    "compute.wait_for_nodes": "compute.node_timeout_minutes",
}


def current_name(key: str, source: str) -> str:
    """The current name of a dotted key; logs a line if it was renamed."""
    if key not in RENAMED:
        return key
    logger.warning("note: %s: %s is now called %s", source, key, RENAMED[key])
    return RENAMED[key]


def rename_old_keys(tree: dict[str, Any], source: str) -> None:
    """Gives the settings of a nested dict their current names, in place.

    Args:
        tree: as read from a YAML file.
        source: of the tree, for messages.

    Raises:
        UserError: a setting occurs under both names.
    """
    for old, new in RENAMED.items():
        *sections, name = old.split(".")
        section: Any = tree
        for key in sections:
            section = section.get(key) if isinstance(section, dict) else None
        if isinstance(section, dict):
            _rename(section, name, new.rpartition(".")[2], old, new, source)
    search = tree.get("search")
    space = search.get("space") if isinstance(search, dict) else None
    if isinstance(space, dict):
        for old, new in RENAMED.items():
            _rename(space, old, new, f"search.space: {old}", f"search.space: {new}", source)


def _rename(
    section: dict[str, Any], old: str, new: str, old_key: str, new_key: str, source: str
) -> None:
    if old not in section:
        return
    if new in section:
        raise UserError(f"{source}: {old_key} is now called {new_key}: leave out {old_key}")
    logger.warning("note: %s: %s is now called %s", source, old_key, new_key)
    section[new] = section.pop(old)
