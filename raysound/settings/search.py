"""The section `search`: the search space, the algorithm and the trial scheduler."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysound.settings.fields import (
    MIN_RESOURCE_SHARE,
    Integer,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)


class Dimension(Section):
    """The values of a searched setting: a choice, or a range of numbers.

    `loguniform` is uniform in the logarithm; `integer` samples integers, including both ends.
    """

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    integer: tuple[Integer, Integer] | None = None

    @model_validator(mode="after")
    def _has_one_kind(self) -> Dimension:
        named = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(
                "write one of {choice: [a, b, …]}, {uniform: [low, high]}, "
                "{loguniform: [low, high]}, {integer: [low, high]}"
            )
        if self.choice is None and not self.values[0] < self.values[-1]:
            raise ValueError(f"{named[0]} {list(self.values)} must begin with the lower number")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or both ends of the range."""
        found = self.choice or self.uniform or self.loguniform or self.integer
        return found or ()

    @property
    def samples(self) -> tuple[Any, ...]:
        """Every choice, or both ends of the range and, unless `integer`, a number between them."""
        if self.choice is not None or self.integer is not None:
            return self.values
        low, high = self.values
        return low, low + (high - low) / math.pi, high


class ASHAScheduler(Section):
    """ray.tune.schedulers.ASHAScheduler.

    After `grace_period` epochs, and then after `reduction_factor` times as many each time, a trial
    continues if it is among the best 1 / `reduction_factor` of the trials that have reached this
    epoch so far.
    """

    name: Literal["ASHAScheduler"]
    grace_period: PositiveInt = 1
    reduction_factor: Integer = Field(4, ge=2)


class HyperBandScheduler(Section):
    """ray.tune.schedulers.HyperBandScheduler.

    When all trials of a group have reached the same epoch, the worst of them are stopped.
    """

    name: Literal["HyperBandScheduler"]
    reduction_factor: Integer = Field(3, ge=2)


class MedianStoppingRule(Section):
    """ray.tune.schedulers.MedianStoppingRule: stops trials worse than the median of the others."""

    name: Literal["MedianStoppingRule"]
    grace_period: PositiveInt = 1
    min_samples_required: PositiveInt = 3


class PopulationBasedTraining(Section):
    """ray.tune.schedulers.PopulationBasedTraining.

    Every `perturbation_interval` epochs, each trial of the worst quarter continues with the weights
    of a trial of the best quarter, and with settings close to those of that trial.
    """

    name: Literal["PopulationBasedTraining"]
    perturbation_interval: PositiveInt = 5


TrialScheduler = Annotated[
    ASHAScheduler | HyperBandScheduler | MedianStoppingRule | PopulationBasedTraining,
    Field(discriminator="name"),
]


class SearchSettings(Section):
    """The search space, the search algorithm and the trial scheduler.

    `space` maps the dotted keys of settings to their values. The algorithm `random` samples
    `trials` at random, `tpe` samples them with Optuna, and `grid` runs all combinations of choices.
    Without a `scheduler` every trial trains all its epochs. `gpus_per_trial` may be a fraction;
    then trials share a GPU.
    """

    space: dict[str, Dimension] = {}
    """Settings to search: {training.optimizer.lr: {loguniform: [0.0001, 0.01]}, …}."""
    algorithm: Literal["random", "grid", "tpe"] = "random"
    """Search algorithm: random, grid over all choices, or tpe of Optuna."""
    trials: PositiveInt = 16
    """Number of trials; not used by grid."""
    scheduler: TrialScheduler | None = None
    """Trial scheduler of Ray Tune by name, with its options; null trains all trials to the end."""
    time_budget_hours: PositiveFloat | None = None
    """Time limit of the search in hours."""
    max_concurrent_trials: PositiveInt | None = None
    """Maximum number of concurrent trials; by default as many as the resources allow."""
    gpus_per_trial: Number | None = Field(None, ge=MIN_RESOURCE_SHARE)
    """GPUs per trial, or a share of one."""
    seed: Seed = 0
    """Seed of the sampled values."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_share_or_an_integer(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value % 1:
            raise ValueError("write a share of one GPU, up to 1, or a whole number of GPUs")
        return value
