"""Optimizers and learning-rate schedulers of torch, by their settings."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer, lr_scheduler

from raysound.settings.training import TrainingSettings
from raysound.training.epochs import Metrics


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The torch optimizer of the settings."""
    optimizer_class: Callable[..., Optimizer] = getattr(torch.optim, settings.optimizer.name)
    return optimizer_class(model.parameters(), **_options(settings.optimizer))


def make_scheduler(optimizer: Optimizer, settings: TrainingSettings) -> Any:
    """The torch scheduler of the settings, or None; it starts after the warm-up."""
    if settings.scheduler is None:
        return None
    options = _options(settings.scheduler)
    epochs = settings.epochs - settings.warmup_epochs
    if settings.scheduler.name == "CosineAnnealingLR":
        options["T_max"] = epochs
    if settings.scheduler.name == "OneCycleLR":
        # Momentum and betas stay those of the optimizer.
        options |= {
            "max_lr": settings.optimizer.lr, "total_steps": epochs + 1, "cycle_momentum": False,
        }  # fmt: skip
        if math.isclose(options["pct_start"] * (epochs + 1), 1):
            # With a rise of zero steps, torch would divide by zero.
            options["pct_start"] *= 0.999
    return getattr(lr_scheduler, settings.scheduler.name)(optimizer, **options)


def step_scheduler(scheduler: Any, metrics: Metrics) -> None:
    """Steps the scheduler; ReduceLROnPlateau gets the validation metric of its mode."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        monitored = "validation_loss" if scheduler.mode == "min" else "validation_accuracy"
        scheduler.step(metrics[monitored])
    else:
        scheduler.step()


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Sets the learning rate of all parameter groups."""
    for group in optimizer.param_groups:
        group["lr"] = lr


def _options(section: Any) -> dict[str, Any]:
    options: dict[str, Any] = section.model_dump(exclude={"name"})
    return options
