"""The training loop: plain PyTorch over batches that somebody else brings, alone or under DDP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from raysound.config import UserError
from raysound.scoring import Normalisation
from raysound.settings import TrainingSettings

# Log-mels (B, n_mels, n_frames) and class indices int64 (B,), on the model's device.
Batch = tuple[Tensor, Tensor]
Metrics = dict[str, float]


def fit(
    model: nn.Module,
    train_batches: Callable[[int], Iterable[Batch]],
    validation_batches: Callable[[], Iterable[Batch]],
    settings: TrainingSettings,
    normalisation: Normalisation,
    report: Callable[[Metrics], None],
) -> None:
    """Trains for all epochs and reports after each.

    Under DDP every worker calls it with its own share of the training batches, as many as every
    other's, and with all validation batches, of which each worker scores its share.

    Args:
        model: a classifier, or one wrapped by DistributedDataParallel.
        train_batches: epoch, from 1 → its training batches, shuffled.
        validation_batches: → the validation batches, the same each time.
        settings: epochs, optimiser, schedule.
        normalisation: applied to every batch.
        report: takes epoch, lr, seconds, and of train and validation the loss (nats), accuracy
            (in [0, 1]) and clips, over all workers: `train_loss`, `validation_clips` and so on.

    Raises:
        UserError: the loss is no longer a number.
        RuntimeError: a split is empty.
    """
    optimizer = make_optimizer(model, settings)
    scheduler = make_scheduler(optimizer, settings)
    for epoch in range(1, settings.epochs + 1):
        started = time.perf_counter()
        lr = optimizer.param_groups[0]["lr"]
        train_loss, train_accuracy, train_clips = train_epoch(
            model, train_batches(epoch), optimizer, normalisation
        )
        if not math.isfinite(train_loss):
            raise UserError(
                f"the training loss is {train_loss} in epoch {epoch}: "
                f"try a smaller training.optimizer.lr than {settings.optimizer.lr:g}"
            )
        loss, accuracy, clips = validate(model, validation_batches(), normalisation)
        step_schedule(scheduler, settings, loss, accuracy)
        report(
            {
                "epoch": epoch,
                "lr": lr,
                "train_loss": train_loss,
                "train_accuracy": train_accuracy,
                "train_clips": train_clips,
                "validation_loss": loss,
                "validation_accuracy": accuracy,
                "validation_clips": clips,
                "seconds": time.perf_counter() - started,
            }
        )


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The torch optimiser of the settings' name, with the settings' values."""
    kind: Callable[..., Optimizer] = getattr(torch.optim, settings.optimizer.name)
    return kind(model.parameters(), **_options(settings.optimizer))


def make_scheduler(optimizer: Optimizer, settings: TrainingSettings) -> Any:
    """The torch schedule of the settings' name, or None."""
    if settings.scheduler is None:
        return None
    options = _options(settings.scheduler)
    if settings.scheduler.name == "CosineAnnealingLR":
        options["T_max"] = settings.epochs
    return getattr(lr_scheduler, settings.scheduler.name)(optimizer, **options)


def step_schedule(scheduler: Any, settings: TrainingSettings, loss: float, accuracy: float) -> None:
    """Ends an epoch: a plateau watches the validation metric that its mode belongs to."""
    if settings.scheduler is None:
        return
    if settings.scheduler.name == "ReduceLROnPlateau":
        scheduler.step(loss if settings.scheduler.mode == "min" else accuracy)
    else:
        scheduler.step()


def train_epoch(
    model: nn.Module, batches: Iterable[Batch], optimizer: Optimizer, normalisation: Normalisation
) -> tuple[float, float, int]:
    """One pass over the training batches: mean loss (nats), accuracy, clips, over all workers."""
    model.train()
    sums = _no_sums(model)
    for log_mel, target in batches:
        logits = model(normalisation(log_mel))
        loss = nn.functional.cross_entropy(logits, target)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        sums += _sums(logits.detach(), target, loss.detach() * len(target))
    return _means(sums, "training")


@torch.no_grad()
def validate(
    model: nn.Module, batches: Iterable[Batch], normalisation: Normalisation
) -> tuple[float, float, int]:
    """Mean loss (nats), accuracy and number of all validation clips, each scored by one worker."""
    # Not through DDP: its forward would wait for workers that have no batch left.
    classifier = getattr(model, "module", model)
    rank, workers = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if workers > 1:
        # Each worker keeps its own running statistics while it trains; all validate with rank 0's.
        for buffer in classifier.buffers():
            dist.broadcast(buffer, src=0)
    classifier.eval()
    sums = _no_sums(model)
    for index, (log_mel, target) in enumerate(batches):
        if index % workers == rank:
            logits = classifier(normalisation(log_mel))
            sums += _sums(logits, target, nn.functional.cross_entropy(logits, target) * len(target))
    return _means(sums, "validation")


def _sums(logits: Tensor, target: Tensor, loss: Tensor) -> Tensor:
    """Summed loss, clips recognised, clips."""
    right = (logits.argmax(dim=1) == target).sum()
    count = torch.tensor(float(len(target)), device=logits.device)
    return torch.stack([loss, right, count]).double()


def _no_sums(model: nn.Module) -> Tensor:
    """Kept on the model's device: to read them after every batch would make a GPU wait."""
    return torch.zeros(3, dtype=torch.float64, device=next(model.parameters()).device)


def _means(sums: Tensor, split: str) -> tuple[float, float, int]:
    if dist.is_initialized():
        dist.all_reduce(sums)
    loss, right, count = sums.tolist()
    if count == 0:
        raise RuntimeError(f"the {split} split gave no batch")
    return loss / count, right / count, int(count)


def _options(section: Any) -> dict[str, Any]:
    options: dict[str, Any] = section.model_dump(exclude={"name"})
    return options
