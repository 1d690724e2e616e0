"""The training loop: plain PyTorch over iterables of batches, with or without DDP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from raysound.errors import UserError
from raysound.settings.training import TrainingSettings
from raysound.training.epochs import Metrics, is_finished, main_epochs
from raysound.training.inference import Normalisation
from raysound.training.optimizers import make_optimizer, make_scheduler, set_lr, step_scheduler
from raysound.training.step import Batch, EpochRunner, Hardware, worker_rank


@dataclass
class TrainState:
    """The state of a training after an epoch; with the weights, enough to resume it.

    Attributes:
        history: metrics of each epoch.
        optimizer: its state_dict.
        scheduler: its state_dict; empty without a scheduler.
        steps: number of optimizer steps so far.
    """

    history: list[Metrics] = field(default_factory=list)
    optimizer: dict[str, Any] = field(default_factory=dict)
    scheduler: dict[str, Any] = field(default_factory=dict)
    steps: int = 0


def fit(
    model: nn.Module,
    train_batches: Callable[[int], Iterable[Batch]],
    validation_batches: Callable[[], Iterable[Batch]] | None,
    settings: TrainingSettings,
    normalisation: Normalisation,
    after_epoch: Callable[[TrainState], None],
    *,
    classes: int,
    class_weights: Tensor | None = None,
    crop_frames: int | None = None,
    averaged: nn.Module | None = None,
    hardware: Hardware | None = None,
    progress: TrainState | None = None,
) -> None:
    """Trains for all remaining epochs.

    Under DDP every worker calls it with its own share of the batches: the same number of training
    batches as every other worker, and any number of validation batches. The same seed, settings
    and batches give the same history, whether or not training was interrupted between two epochs.

    Args:
        model: a classifier, or one wrapped by DistributedDataParallel.
        train_batches: epoch, from 1 → its training batches, shuffled.
        validation_batches: → this worker's validation batches, the same clips each time; None if
            there are no validation clips.
        settings: epochs, optimizer, scheduler, augmentation.
        normalisation: applied to every batch.
        after_epoch: takes the state. The last entry of its history has `epoch`, `lr`, `seconds`,
            and over all workers `train_loss` (nats), `train_accuracy` (0 to 1), `train_clips` and
            the same of `validation`; loss and accuracy are None without validation.
        classes: number of logits.
        class_weights: of the loss, `(classes,)`.
        crop_frames: width of the training clips; None for no cropping.
        averaged: a copy of the classifier that holds the exponential moving average of its
            weights, see `settings.ema_decay`, and is validated in its place.
        hardware: options of the arithmetic; None for float32.
        progress: of a training to resume; the model has its weights.

    Raises:
        UserError: the loss is not finite.
        RuntimeError: a split is empty.
    """
    hardware = hardware or Hardware()
    progress = progress or TrainState()
    optimizer = make_optimizer(model, settings)
    scheduler = make_scheduler(optimizer, settings)
    if progress.history:
        optimizer.load_state_dict(progress.optimizer)
        if scheduler is not None:
            scheduler.load_state_dict(progress.scheduler)
    loss_of = nn.CrossEntropyLoss(class_weights, label_smoothing=settings.label_smoothing)
    run = EpochRunner(
        model, averaged, optimizer, settings, normalisation, classes, loss_of, crop_frames, hardware
    )
    run.steps = progress.steps
    while not is_finished(progress.history, settings):
        epoch = len(progress.history) + 1
        started = time.perf_counter()
        # Each epoch and worker has a random state of its own, so that a resumed training continues
        # with the same numbers; the factors are primes.
        torch.manual_seed((settings.seed * 100_003 + epoch) * 1009 + worker_rank())
        last_main_epoch = main_epochs(progress.history, settings)
        finetuning = epoch > last_main_epoch
        scheduled_lr = optimizer.param_groups[0]["lr"]
        warmup_factor = min(1.0, epoch / (settings.warmup_epochs + 1))
        lr = settings.finetune.lr if finetuning else scheduled_lr * warmup_factor
        set_lr(optimizer, lr)
        loss, accuracy, clips = run.train_epoch(train_batches(epoch), epoch, finetuning)
        metrics: Metrics = {
            "epoch": epoch,
            "lr": lr,
            "train_loss": loss,
            "train_accuracy": accuracy,
            "train_clips": clips,
            "validation_loss": None,
            "validation_accuracy": None,
            "validation_clips": 0,
            "precision": str(hardware.precision).removeprefix("torch."),
        }
        if validation_batches is not None:
            loss, accuracy, clips = run.validate(validation_batches())
            if not math.isfinite(loss):
                # No training loss shows it if the last step made the weights infinite.
                raise UserError(
                    f"the validation loss is {loss} in epoch {epoch}: {run.loss_advice}"
                )
            metrics["validation_loss"] = loss
            metrics["validation_accuracy"] = accuracy
            metrics["validation_clips"] = clips
        metrics["seconds"] = time.perf_counter() - started
        set_lr(optimizer, scheduled_lr)
        if scheduler is not None and settings.warmup_epochs < epoch <= last_main_epoch:
            step_scheduler(scheduler, metrics)
        progress = TrainState(
            [*progress.history, metrics],
            optimizer.state_dict(),
            scheduler.state_dict() if scheduler is not None else {},
            run.steps,
        )
        after_epoch(progress)
