"""Checks of the search space, and the config of a trial."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice, product
from typing import Any

from raysound.errors import UserError
from raysound.settings.keys import closest_key, known_keys, set_key
from raysound.settings.schema import Config
from raysound.settings.search import ASHAScheduler, PopulationBasedTraining
from raysound.settings.validation import validated

# Settings that may change during a training.
CHANGEABLE_IN_TRAINING = (
    "training.optimizer.", "training.augment.", "training.label_smoothing", "training.max_grad_norm"
)  # fmt: skip
# Combinations of the other searched settings to try with a value.
MAX_COMBINATIONS = 200


def check_space(config: Config, source: str) -> None:
    """Checks every choice and both ends of the range of each searched setting.

    Raises:
        UserError: a setting does not exist or can't be searched, or a value is out of range.
    """
    if config.search.space and config.training.trains_several:
        raise UserError(
            f"{source}: a search trains one classifier per trial: leave out training.folds and "
            "seeds"
        )
    population = isinstance(config.search.scheduler, PopulationBasedTraining)
    if population and config.training.scheduler is not None:
        raise UserError(
            f"{source}: PopulationBasedTraining is a schedule itself: leave out training.scheduler"
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
            raise UserError(
                f"{where}: '{key}' requires a choice: each value needs its own extraction"
            )
        if population and not key.startswith(CHANGEABLE_IN_TRAINING):
            raise UserError(
                f"{where}: PopulationBasedTraining changes settings during the training, which is "
                f"not possible for '{key}'"
            )
        if config.search.algorithm == "grid" and dimension.choice is None:
            raise UserError(f"{where}: '{key}' requires a choice, because search.algorithm is grid")
        for value in dimension.samples:
            _try_value(config, key, value, where)


def most_epochs(config: Config) -> int:
    """Number of epochs of the longest trial in the search space."""
    longest = 0
    for key, own in (
        ("training.epochs", config.training.epochs),
        ("training.finetune.epochs", config.training.finetune.epochs),
    ):
        longest += max(config.search.space[key].values) if key in config.search.space else own
    return longest


def _try_value(config: Config, key: str, value: Any, where: str) -> None:
    """Raises UserError for a value that is valid with no values of the other settings."""
    others = {name: each.values for name, each in config.search.space.items() if name != key}
    first_error = None
    for others_values in [(), *islice(product(*others.values()), MAX_COMBINATIONS)]:
        try:
            sampled_config(config, {key: value, **dict(zip(others, others_values, strict=False))})
            return
        except UserError as error:
            first_error = first_error or error
    raise UserError(f"{where}: {first_error}")


def _searchable(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in {"model", "features", "training"} and rest not in {"", "folds", "seeds"}


def sampled_config(config: Config, values: Mapping[str, Any]) -> Config:
    """The config of a trial, with its values and without the search.

    Args:
        config: of the search.
        values: of the trial, by dotted key.

    Raises:
        UserError: the values contradict each other, see `load`.
    """
    tree = config.model_dump(exclude_unset=True, exclude={"search"})
    # Sections are set before the settings in them.
    for key in sorted(values, key=lambda key: key.count(".")):
        set_key(tree, key, values[key])
    return validated(tree, ", ".join(f"{key}={values[key]}" for key in values))
