"""The search space: its checks, and the config of one trial."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, product
from typing import Any

from raysound.errors import UserError
from raysound.settings.keys import closest_key, known_keys, set_key
from raysound.settings.schema import Config
from raysound.settings.search import ASHAScheduler, PopulationBasedTraining
from raysound.settings.validation import validated

# What may differ from epoch to epoch of one training.
CHANGED_IN_TRAINING = (
    "training.optimizer.", "training.augment.", "training.label_smoothing", "training.max_grad_norm"
)  # fmt: skip
# Of the other searched settings, to find one that a value goes with.
COMBINATIONS_TRIED = 200


def check_space(config: Config, source: str) -> None:
    """Looks at every choice and both ends of each searched setting, before anything starts.

    Raises:
        UserError: no such setting, one that can't be searched, or a value out of its range.
    """
    if config.search.space and config.training.trains_several:
        raise UserError(
            f"{source}: a search trains one classifier a trial: leave training.folds and seeds out"
        )
    population = isinstance(config.search.scheduler, PopulationBasedTraining)
    if population and config.training.scheduler is not None:
        raise UserError(
            f"{source}: PopulationBasedTraining is a schedule itself: leave training.scheduler out"
        )
    scheduler, longest = config.search.scheduler, most_epochs(config)
    if isinstance(scheduler, ASHAScheduler) and scheduler.grace_period > longest:
        raise UserError(
            f"{source}: search.scheduler.grace_period {scheduler.grace_period} is more than the "
            f"{longest} epochs of the longest trial"
        )
    for key, dimension in config.search.space.items():
        where = f"{source}: search.space"
        if key not in known_keys():
            close = closest_key(key, [known for known in known_keys() if _searchable(known)])
            hint = f"; did you mean '{close}'?" if close else ""
            raise UserError(f"{where}: there is no setting '{key}'{hint}")
        if not _searchable(key):
            raise UserError(
                f"{where}: '{key}' can't be searched, only model, features and training"
            )
        if key.startswith("features.") and dimension.choice is None:
            raise UserError(f"{where}: '{key}' wants a choice: each value means another extraction")
        if population and not key.startswith(CHANGED_IN_TRAINING):
            raise UserError(
                f"{where}: PopulationBasedTraining changes settings in mid-training: '{key}' can't"
            )
        if config.search.algorithm == "grid" and dimension.choice is None:
            raise UserError(f"{where}: '{key}' wants a choice, for search.algorithm is grid")
        for value in dimension.samples:
            _try_value(config, key, value, where)


def most_epochs(config: Config) -> int:
    """Epochs of the longest trial that the search space has."""
    longest = 0
    for key, own in (
        ("training.epochs", config.training.epochs),
        ("training.finetune.epochs", config.training.finetune.epochs),
    ):
        longest += max(config.search.space[key].values) if key in config.search.space else own
    return longest


def _try_value(config: Config, key: str, value: Any, where: str) -> None:
    """Raises UserError for a value that goes with none of the other settings' values."""
    others = {name: each.values for name, each in config.search.space.items() if name != key}
    refusal = None
    for others_values in [(), *islice(product(*others.values()), COMBINATIONS_TRIED)]:
        try:
            sampled_config(config, {key: value, **dict(zip(others, others_values, strict=False))})
            return
        except UserError as error:
            refusal = refusal or error
    raise UserError(f"{where}: {refusal}")


def _searchable(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in {"model", "features", "training"} and rest not in {"", "folds", "seeds"}


def sampled_config(config: Config, values: Mapping[str, Any]) -> Config:
    """The config of one trial: with some settings, and without the search.

    Args:
        config: that has the search.
        values: by dotted key.

    Raises:
        UserError: they don't go together, as `load` says.
    """
    tree = config.model_dump(exclude_unset=True, exclude={"search"})
    # A whole section before the settings inside it.
    for key in sorted(values, key=lambda key: key.count(".")):
        set_key(tree, key, values[key])
    return validated(tree, ", ".join(f"{key}={values[key]}" for key in values))
