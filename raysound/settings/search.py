"""The section `search`: the search space, the algorithm and the trial scheduler."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from raysound.settings.fields import (
    LEAST_SHARE,
    Integer,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)


class Dimension(Section):
    """What a searched setting may be: one of some values, or a number between two.

    `loguniform` draws its logarithm evenly; `integer` draws whole numbers, both ends included.
    """

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    integer: tuple[Integer, Integer] | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Dimension:
        named = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(
                "write one of {choice: [a, b, …]}, {uniform: [low, high]}, "
                "{loguniform: [low, high]}, {integer: [low, high]}"
            )
        if self.choice is None and not self.values[0] < self.values[-1]:
            raise ValueError(f"{named[0]} {list(self.values)} does not begin with the lower number")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or both ends."""
        found = self.choice or self.uniform or self.loguniform or self.integer
        return found or ()

    @property
    def samples(self) -> tuple[Any, ...]:
        """Every choice; of a range both ends and, where it has any, a number that is not whole."""
        if self.choice is not None or self.integer is not None:
            return self.values
        low, high = self.values
        return low, low + (high - low) / math.pi, high


class ASHAScheduler(Section):
    """ray.tune.schedulers.ASHAScheduler.

    After `grace_period` epochs, and each `reduction_factor` times as many, a trial goes on if it is
    among the best 1 / `reduction_factor` that came so far.
    """

    name: Literal["ASHAScheduler"]
    grace_period: PositiveInt = 1
    reduction_factor: Integer = Field(4, ge=2)


class HyperBandScheduler(Section):
    """ray.tune.schedulers.HyperBandScheduler: thins a group out once all in it have come so far."""

    name: Literal["HyperBandScheduler"]
    reduction_factor: Integer = Field(3, ge=2)


class MedianStoppingRule(Section):
    """ray.tune.schedulers.MedianStoppingRule: stops what is worse than the others' median."""

    name: Literal["MedianStoppingRule"]
    grace_period: PositiveInt = 1
    min_samples_required: PositiveInt = 3


class PopulationBasedTraining(Section):
    """ray.tune.schedulers.PopulationBasedTraining.

    Every so many epochs the worst quarter goes on with the weights of one of the best quarter, and
    settings near its own.
    """

    name: Literal["PopulationBasedTraining"]
    perturbation_interval: PositiveInt = 5


TrialScheduler = Annotated[
    ASHAScheduler | HyperBandScheduler | MedianStoppingRule | PopulationBasedTraining,
    Field(discriminator="name"),
]


class SearchSettings(Section):
    """Which settings are tried, how they are drawn, and who may train on.

    `space` names settings by their path. `trials` are drawn at `random`, by Optuna's `tpe`, or
    `grid` crosses all choices. Without a `scheduler` each trains to its end. `gpus_per_trial` may
    be a fraction: then trials share a GPU.
    """

    space: dict[str, Dimension] = {}
    """Settings to search: {training.optimizer.lr: {loguniform: [0.0001, 0.01]}, …}."""
    algorithm: Literal["random", "grid", "tpe"] = "random"
    """random, grid over all choices, or Optuna's tpe."""
    trials: PositiveInt = 16
    """Number of trials; a grid has its own."""
    scheduler: TrialScheduler | None = None
    """Trial scheduler of Ray Tune by name, with its options; none trains all to the end."""
    time_budget_hours: PositiveFloat | None = None
    """Time limit of the search."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at a time; as many as fit by default."""
    gpus_per_trial: Number | None = Field(None, ge=LEAST_SHARE)
    """GPUs of a trial, or a share of one."""
    seed: Seed = 0
    """Of the values that are drawn."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value % 1:
            raise ValueError("write a share of one GPU, up to 1, or a whole number of GPUs")
        return value
