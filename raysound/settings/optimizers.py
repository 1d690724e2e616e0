"""Optimizers and learning-rate schedulers of torch, with their options."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, StrictBool, model_validator

from raysound.settings.fields import (
    Decay,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PositiveFloat,
    PositiveInt,
    Section,
)


class Adam(Section):
    """torch.optim.Adam."""

    name: Literal["Adam"] = "Adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Section):
    """torch.optim.AdamW."""

    name: Literal["AdamW"] = "AdamW"
    lr: PositiveFloat = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01


class SGD(Section):
    """torch.optim.SGD."""

    name: Literal["SGD"] = "SGD"
    lr: PositiveFloat = 1e-2
    momentum: Decay = 0.9
    weight_decay: NonNegativeFloat = 0.0
    nesterov: StrictBool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true requires a momentum above 0 (got 0)")
        return self


class StepLR(Section):
    """torch.optim.lr_scheduler.StepLR, stepped once per epoch."""

    name: Literal["StepLR"]
    step_size: PositiveInt
    gamma: PositiveFloat = 0.1


class MultiStepLR(Section):
    """torch.optim.lr_scheduler.MultiStepLR, stepped once per epoch."""

    name: Literal["MultiStepLR"]
    milestones: tuple[PositiveInt, ...] = Field(min_length=1)
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self) -> MultiStepLR:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must increase")
        return self


class ExponentialLR(Section):
    """torch.optim.lr_scheduler.ExponentialLR, stepped once per epoch."""

    name: Literal["ExponentialLR"]
    gamma: PositiveFloat


class CosineAnnealingLR(Section):
    """torch.optim.lr_scheduler.CosineAnnealingLR, stepped once per epoch; T_max is all epochs."""

    name: Literal["CosineAnnealingLR"]
    eta_min: NonNegativeFloat = 0.0


class CosineAnnealingWarmRestarts(Section):
    """torch.optim.lr_scheduler.CosineAnnealingWarmRestarts, stepped once per epoch."""

    name: Literal["CosineAnnealingWarmRestarts"]
    T_0: PositiveInt
    T_mult: PositiveInt = 1
    eta_min: NonNegativeFloat = 0.0


class OneCycleLR(Section):
    """torch.optim.lr_scheduler.OneCycleLR over all epochs, stepped once per epoch.

    `lr` of the optimizer is the peak.
    """

    name: Literal["OneCycleLR"]
    pct_start: Number = Field(0.3, gt=0, lt=1)
    div_factor: Number = Field(25.0, ge=1)
    final_div_factor: Number = Field(1e4, ge=1)


class ReduceLROnPlateau(Section):
    """torch.optim.lr_scheduler.ReduceLROnPlateau.

    With `min` it monitors the validation loss, with `max` the validation accuracy.
    """

    name: Literal["ReduceLROnPlateau"]
    mode: Literal["min", "max"] = "min"
    factor: Number = Field(0.1, gt=0, lt=1)
    patience: NonNegativeInt = 10
    min_lr: NonNegativeFloat = 0.0


Optimizer = Annotated[Adam | AdamW | SGD, Field(discriminator="name")]
Scheduler = Annotated[
    StepLR
    | MultiStepLR
    | ExponentialLR
    | CosineAnnealingLR
    | CosineAnnealingWarmRestarts
    | OneCycleLR
    | ReduceLROnPlateau,
    Field(discriminator="name"),
]


def adam_if_unnamed(value: object) -> object:
    """Adds the name Adam to the options of an optimizer without a name."""
    return {"name": "Adam", **value} if isinstance(value, dict) else value
