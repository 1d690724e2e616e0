"""The training loop: plain PyTorch over batches that somebody else brings, alone or under DDP."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer, lr_scheduler

from raysound.errors import UserError
from raysound.settings.training import TrainingSettings
from raysound.training.augment import change_gain, crop, mask, mixup, probabilities, roll
from raysound.training.inference import Normalisation

Metrics = dict[str, Any]

# Batches between two looks at the losses: a look makes a GPU wait.
BATCHES_A_LOOK = 32


class Batch(NamedTuple):
    """Some clips, on the model's device.

    Attributes:
        log_mel: `(B, n_mels, n_frames)`.
        target: class indices, int64 `(B,)`.
        clip_ids: their names.
    """

    log_mel: Tensor
    target: Tensor
    clip_ids: Sequence[str]


@dataclass(frozen=True)
class Hardware:
    """How the arithmetic is done; results differ by rounding alone.

    Attributes:
        precision: of the forward pass.
        channels_last: the memory format of maps.
        compile: by torch.compile, which takes a minute or more at the beginning.
    """

    precision: torch.dtype = torch.float32
    channels_last: bool = False
    compile: bool = False


@dataclass
class TrainState:
    """Where a training stands after an epoch: with the weights, all that it takes to go on.

    Attributes:
        history: what was reported, an epoch each.
        optimizer: its state_dict.
        scheduler: its state_dict; empty without a schedule.
        steps: of the optimiser, in all.
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
    """Trains for all epochs that are still to come.

    Under DDP every worker calls it with its own share of the batches: of training as many as every
    other worker, of validation any number. The same seed, settings and batches give the same
    history, whether or not it was interrupted between two epochs.

    Args:
        model: a classifier, or one wrapped by DistributedDataParallel.
        train_batches: epoch, from 1 → its training batches, shuffled.
        validation_batches: → this worker's validation batches, the same clips each time; None if
            no clip is left for it and the settings need none.
        settings: epochs, optimiser, schedule, augmentation.
        normalisation: applied to every batch.
        after_epoch: takes the progress; the last of its history has epoch, lr, seconds, and of
            train and validation the loss (nats), accuracy (in [0, 1]) and clips, over all
            workers: `train_loss`, `validation_clips` and so on; None where there is no validation.
        classes: how many logits the model gives.
        class_weights: of the loss, `(classes,)`.
        crop_frames: width of the training clips; None leaves them whole.
        averaged: a copy of the classifier that takes the running mean of its weights, as
            `settings.ema_decay` says, and is validated in its place.
        hardware: how the arithmetic is done; float32 if None.
        progress: of a training that was cut off; the model has its weights.

    Raises:
        UserError: the loss is no longer a number.
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
    run = _Run(
        model, averaged, optimizer, settings, normalisation, classes, loss_of, crop_frames, hardware
    )
    run.steps = progress.steps
    while not is_finished(progress.history, settings):
        epoch = len(progress.history) + 1
        started = time.perf_counter()
        torch.manual_seed((settings.seed * 100_003 + epoch) * 1009 + _rank())
        main = main_epochs(progress.history, settings)
        finetuning = epoch > main
        scheduled = optimizer.param_groups[0]["lr"]
        warm = min(1.0, epoch / (settings.warmup_epochs + 1))
        lr = settings.finetune.lr if finetuning else scheduled * warm
        _set_lr(optimizer, lr)
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
                # The last step may have ruined the weights: no training loss tells of it.
                raise UserError(
                    f"the validation loss is {loss} in epoch {epoch}: {run.what_to_try}"
                )
            metrics["validation_loss"] = loss
            metrics["validation_accuracy"] = accuracy
            metrics["validation_clips"] = clips
        metrics["seconds"] = time.perf_counter() - started
        _set_lr(optimizer, scheduled)
        if scheduler is not None and settings.warmup_epochs < epoch <= main:
            step_schedule(scheduler, metrics)
        progress = TrainState(
            [*progress.history, metrics],
            optimizer.state_dict(),
            scheduler.state_dict() if scheduler is not None else {},
            run.steps,
        )
        after_epoch(progress)


def quality(metrics: Metrics) -> float:
    """Orders epochs by validation accuracy, and by the loss where that is equal."""
    clips = metrics["validation_clips"]
    if not clips:
        return 0.0
    # The second term is less than what one clip changes.
    quality: float = metrics["validation_accuracy"] + 1 / (clips * (2 + metrics["validation_loss"]))
    return quality


def best_epoch(history: Sequence[Metrics]) -> int:
    """The epoch, from 1, of the best validation; the last of those."""
    return 1 + max(range(len(history)), key=lambda index: (quality(history[index]), index))


def selected_epoch(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """The epoch, from 1, whose weights are the classifier's so far."""
    return len(history) if settings.checkpoint_policy == "last" else best_epoch(history)


def main_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """Epochs before fine-tuning: `settings.epochs`, or fewer where early stopping ended them.

    It follows from the history alone, so a training that is resumed fine-tunes where it would have.
    """
    best = 0
    for index, metrics in enumerate(history[: settings.epochs]):
        if quality(metrics) > quality(history[best]):
            best = index
        if settings.early_stopping is not None and index - best >= settings.early_stopping:
            return index + 1
    return settings.epochs


def all_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """Epochs that the training has in all, as far as its history tells."""
    return main_epochs(history, settings) + settings.finetune.epochs


def is_finished(history: Sequence[Metrics], settings: TrainingSettings) -> bool:
    """True where no epoch is to come: all were trained, or early stopping left no more."""
    return len(history) >= all_epochs(history, settings)


def make_optimizer(model: nn.Module, settings: TrainingSettings) -> Optimizer:
    """The torch optimiser of the settings' name, with the settings' values."""
    kind: Callable[..., Optimizer] = getattr(torch.optim, settings.optimizer.name)
    return kind(model.parameters(), **_options(settings.optimizer))


def make_scheduler(optimizer: Optimizer, settings: TrainingSettings) -> Any:
    """The torch schedule of the settings' name, or None; it begins after the warm-up."""
    if settings.scheduler is None:
        return None
    options = _options(settings.scheduler)
    epochs = settings.epochs - settings.warmup_epochs
    if settings.scheduler.name == "CosineAnnealingLR":
        options["T_max"] = epochs
    if settings.scheduler.name == "OneCycleLR":
        # Momentum and betas stay what the optimizer's section says.
        options |= {
            "max_lr": settings.optimizer.lr, "total_steps": epochs + 1, "cycle_momentum": False,
        }  # fmt: skip
        if math.isclose(options["pct_start"] * (epochs + 1), 1):
            # The rise would end at the step it begins at, and torch divide by its length.
            options["pct_start"] *= 0.999
    return getattr(lr_scheduler, settings.scheduler.name)(optimizer, **options)


def step_schedule(scheduler: Any, metrics: Metrics) -> None:
    """Ends an epoch: a plateau watches the validation metric that its mode belongs to."""
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        watched = "validation_loss" if scheduler.mode == "min" else "validation_accuracy"
        scheduler.step(metrics[watched])
    else:
        scheduler.step()


class _Run:
    """What stays the same from epoch to epoch."""

    def __init__(
        self,
        model: nn.Module,
        averaged: nn.Module | None,
        optimizer: Optimizer,
        settings: TrainingSettings,
        normalisation: Normalisation,
        classes: int,
        loss: nn.Module,
        crop_frames: int | None,
        hardware: Hardware,
    ) -> None:
        self.model = model
        # Without DDP: its forward would wait for workers that have no batch left.
        self.classifier: nn.Module = getattr(model, "module", model)
        self.averaged = averaged
        self.steps = 0
        self.optimizer = optimizer
        self.settings = settings
        self.normalisation = normalisation
        self.crop_frames = crop_frames
        self.device = next(model.parameters()).device
        self.hardware = hardware
        self.forward = torch.compile(model) if hardware.compile else model
        self.loss = loss.to(self.device)
        self.classes = classes

    def train_epoch(
        self, batches: Iterable[Batch], epoch: int, finetuning: bool
    ) -> tuple[float, float, int]:
        """One pass over the training batches: mean loss, accuracy, clips, over all workers."""
        self.model.train()
        sums = self._no_sums()
        unseen: list[tuple[Tensor, Sequence[str]]] = []
        for batch in batches:
            loss, logits = self._step(batch, finetuning)
            sums += _sums(logits, batch.target, loss * len(batch.target))
            unseen.append((loss, batch.clip_ids))
            if len(unseen) == BATCHES_A_LOOK:
                self._look(unseen, epoch)
        self._look(unseen, epoch)
        return _means(sums, "training")

    def _step(self, batch: Batch, finetuning: bool) -> tuple[Tensor, Tensor]:
        """One step of the optimiser; the mean loss, and the logits of what was augmented."""
        clips, turns = (
            len(batch.target),
            min(self.settings.gradient_accumulation_steps, len(batch.target)),
        )
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        logits = []
        for turn, rows in enumerate(torch.arange(clips).tensor_split(turns)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            last = turn == turns - 1
            # Under DDP gradients are averaged once a step, not once a turn.
            wait = nullcontext() if last else getattr(self.model, "no_sync", nullcontext)()
            with wait:
                inputs, target = self.augmented(batch.log_mel[part], batch.target[part], finetuning)
                with self._autocast():
                    outputs = self.forward(inputs)
                loss = self.loss(outputs.float(), target) * (len(rows) / clips)
                loss.backward()
            total += loss.detach()
            logits.append(outputs.detach().float())
        if self.settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.steps += 1
        if self.averaged is not None:
            self._average(self.averaged)
        return total, torch.cat(logits)

    @torch.no_grad()
    def _average(self, averaged: nn.Module) -> None:
        """Moves the running mean towards the weights, in the beginning faster."""
        share = min(self.settings.ema_decay or 0.0, (1 + self.steps) / (10 + self.steps))
        now = self.classifier.state_dict()
        for name, mean in averaged.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(now[name], 1 - share)
            else:
                mean.copy_(now[name])

    def augmented(self, log_mel: Tensor, target: Tensor, finetuning: bool) -> tuple[Tensor, Tensor]:
        """A batch as the model gets it: `(B, 1, n_mels, n_frames)` and `(B, classes)`."""
        settings = self.settings.augment
        if self.crop_frames is not None:
            log_mel = crop(log_mel, self.crop_frames)
        if settings.roll:
            log_mel = roll(log_mel)
        if settings.gain_db:
            log_mel = change_gain(log_mel.float(), settings.gain_db)
        inputs, wanted = self.normalisation(log_mel), probabilities(target, self.classes)
        if settings.mixup and not finetuning:
            inputs, wanted = mixup(inputs, wanted, settings.mixup)
        return self._laid_out(mask(inputs, settings)), wanted

    def _laid_out(self, inputs: Tensor) -> Tensor:
        if self.hardware.channels_last:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _autocast(self) -> torch.autocast:
        low = self.hardware.precision != torch.float32
        return torch.autocast(self.device.type, self.hardware.precision, enabled=low)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of the validation clips of all workers."""
        classifier = self.classifier if self.averaged is None else self.averaged
        if _workers() > 1:
            # Each worker keeps its own running statistics while it trains; all take rank 0's.
            for buffer in classifier.buffers():
                dist.broadcast(buffer, src=0)
        classifier.eval()
        sums = self._no_sums()
        for batch in batches:
            with self._autocast():
                logits = classifier(self._laid_out(self.normalisation(batch.log_mel))).float()
            loss = nn.functional.cross_entropy(logits, batch.target)
            sums += _sums(logits, batch.target, loss * len(batch.target))
        return _means(sums, "validation")

    def _no_sums(self) -> Tensor:
        """Kept on the model's device: to read them after every batch would make a GPU wait."""
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _look(self, unseen: list[tuple[Tensor, Sequence[str]]], epoch: int) -> None:
        """Stops the training at the first loss that is no number."""
        if not unseen:
            return
        finite = torch.stack([loss for loss, _ in unseen]).isfinite().tolist()
        if not all(finite):
            loss, clip_ids = unseen[finite.index(False)]
            raise UserError(
                f"the training loss is {loss.item()} in epoch {epoch}, at the batch of the clips "
                f"{', '.join(clip_ids)}: {self.what_to_try}"
            )
        unseen.clear()

    @property
    def what_to_try(self) -> str:
        """Advice where a loss is no number."""
        return (
            f"try a smaller training.optimizer.lr than {self.settings.optimizer.lr:g}, "
            "or training.max_grad_norm"
        )


def _rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _set_lr(optimizer: Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr


def _sums(logits: Tensor, target: Tensor, loss: Tensor) -> Tensor:
    """Summed loss, clips recognised, clips."""
    right = (logits.argmax(dim=1) == target).sum()
    # Filled where it lies: a copy from here would make a GPU wait.
    count = torch.full((), float(len(target)), device=logits.device)
    return torch.stack([loss, right, count]).double()


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
