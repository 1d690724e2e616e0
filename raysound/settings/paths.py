"""The settings of a config that are paths, and their absolute form."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from raysound.settings.schema import Config

# Relative to the folder in which the job starts. Ray's workers run in other folders.
PATH_KEYS = (
    ("output",),
    ("corpora", "real", "path"),
    ("corpora", "generated", "*"),
    ("model", "weights"),
    ("search", "space", "model.weights", "choice"),
    ("evaluation", "checkpoint"),
    ("evaluation", "reference"),
    ("evaluation", "embeddings", "*", "path"),
    ("synthesis", "formula", "output"),
    ("synthesis", "griffin_lim", "output"),
    ("synthesis", "ladder", "output"),
)


def configured_paths(config: Config) -> dict[str, str]:
    """Every path and URI that is set in a config, by its dotted key."""
    found: dict[str, str] = {}

    def collect(tree: Any, keys: Sequence[str], prefix: str = "") -> None:
        # The embedding `log_mel_statistics` is a string, while others are sections.
        tree = tree if isinstance(tree, dict) else {}
        for key in list(tree) if keys[0] == "*" else keys[:1]:
            value = tree.get(key)
            if len(keys) > 1:
                collect(value, keys[1:], f"{prefix}{key}.")
            elif isinstance(value, str):
                found[prefix + key] = value

    for keys in PATH_KEYS:
        collect(config.model_dump(), keys)
    return found


def make_absolute(tree: Any, keys: Sequence[str]) -> None:
    """Makes the paths at `keys` absolute, in place; URIs and unset paths stay."""
    if not isinstance(tree, dict):
        return
    for key in list(tree) if keys[0] == "*" else keys[:1]:
        if len(keys) > 1:
            make_absolute(tree.get(key), keys[1:])
        elif isinstance(tree.get(key), tuple):
            tree[key] = tuple(absolute_path(value) for value in tree[key])
        else:
            tree[key] = absolute_path(tree.get(key))


def absolute_path(value: Any) -> Any:
    """A local path as an absolute one; URIs and other values stay."""
    if isinstance(value, str) and "://" not in value:
        return os.path.abspath(os.path.expanduser(value))
    return value
