"""One epoch of optimizer steps, with or without DDP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from raysound.errors import UserError
from raysound.models.combined import MeanOfCrops
from raysound.settings.training import TrainingSettings
from raysound.training.augment import (
    between_class,
    crop,
    mask,
    mixup,
    probabilities,
    random_gain,
    roll,
)
from raysound.training.inference import Normalisation

# Batches between two checks of the losses; a check makes a GPU wait.
LOSS_CHECK_INTERVAL = 32


class Batch(NamedTuple):
    """A batch of windows, on the model's device.

    Attributes:
        log_mel: `(B, n_mels, n_frames)`.
        target: class indices, int64 `(B,)`.
        clip_ids: of the windows.
    """

    log_mel: Tensor
    target: Tensor
    clip_ids: Sequence[str]


@dataclass(frozen=True)
class Hardware:
    """Options of the arithmetic; results differ only by rounding.

    Attributes:
        precision: of the forward pass.
        channels_last: the memory format of feature maps.
        compile: whether to use torch.compile, which takes a minute or more at the start.
    """

    precision: torch.dtype = torch.float32
    channels_last: bool = False
    compile: bool = False


class EpochRunner:
    """Trains and validates epoch by epoch."""

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
        # Used without DDP for validation: DDP's forward would wait for workers without a batch.
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
        """Trains on all batches; returns mean loss, accuracy and clips, over all workers."""
        self.model.train()
        sums = self._zero_sums()
        unchecked: list[tuple[Tensor, Sequence[str]]] = []
        for batch in batches:
            loss, logits, classes = self._step(batch, finetuning)
            sums += _sums(logits, classes, loss * len(classes))
            unchecked.append((loss, batch.clip_ids))
            if len(unchecked) == LOSS_CHECK_INTERVAL:
                self._check_losses(unchecked, epoch)
        self._check_losses(unchecked, epoch)
        return _means(sums, "training")

    def _step(self, batch: Batch, finetuning: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Makes one optimizer step; returns the mean loss, the logits and the classes.

        The class of a mixed clip is that with the largest share.
        """
        clips = len(batch.target)
        micro_batches = min(self.settings.gradient_accumulation_steps, clips)
        self.optimizer.zero_grad(set_to_none=True)
        total = torch.zeros((), device=self.device)
        logits, classes = [], []
        for index, rows in enumerate(torch.arange(clips).tensor_split(micro_batches)):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            is_last = index == micro_batches - 1
            # DDP averages the gradients once per step, not once per micro-batch.
            sync = nullcontext() if is_last else getattr(self.model, "no_sync", nullcontext)()
            with sync:
                inputs, target = self.augmented(batch.log_mel[part], batch.target[part], finetuning)
                with self._autocast():
                    outputs = self.forward(inputs)
                loss = self.loss(outputs.float(), target) * (len(rows) / clips)
                loss.backward()
            total += loss.detach()
            logits.append(outputs.detach().float())
            classes.append(target.argmax(dim=1))
        if self.settings.max_grad_norm is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.max_grad_norm)
        self.optimizer.step()
        self.steps += 1
        if self.averaged is not None:
            self._average(self.averaged)
        return total, torch.cat(logits), torch.cat(classes)

    @torch.no_grad()
    def _average(self, averaged: nn.Module) -> None:
        """Updates the exponential moving average of the weights; its decay warms up."""
        decay = min(self.settings.ema_decay or 0.0, (1 + self.steps) / (10 + self.steps))
        weights = self.classifier.state_dict()
        for name, mean in averaged.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(weights[name], 1 - decay)
            else:
                mean.copy_(weights[name])

    def augmented(self, log_mel: Tensor, target: Tensor, finetuning: bool) -> tuple[Tensor, Tensor]:
        """Augments a batch to inputs `(B, 1, n_mels, n_frames)` and targets `(B, classes)`."""
        settings = self.settings.augment
        frames = log_mel.shape[2] if self.crop_frames is None else self.crop_frames
        padding = round(settings.padding * frames)
        log_mel = crop(log_mel, frames, settings.time_stretch, padding)
        if settings.roll:
            log_mel = roll(log_mel)
        targets = probabilities(target, self.classes)
        if settings.between_class and not finetuning:
            log_mel, targets = between_class(log_mel, targets)
        if settings.gain_db:
            log_mel = random_gain(log_mel.float(), settings.gain_db)
        inputs = self.normalisation(log_mel)
        if settings.mixup and not finetuning:
            inputs, targets = mixup(inputs, targets, settings.mixup)
        return self._to_memory_format(mask(inputs, settings)), targets

    def _to_memory_format(self, inputs: Tensor) -> Tensor:
        if self.hardware.channels_last:
            return inputs.contiguous(memory_format=torch.channels_last)
        return inputs

    def _autocast(self) -> torch.autocast:
        low = self.hardware.precision != torch.float32
        return torch.autocast(self.device.type, self.hardware.precision, enabled=low)

    @torch.no_grad()
    def validate(self, batches: Iterable[Batch]) -> tuple[float, float, int]:
        """Mean loss, accuracy and number of the validation clips of all workers."""
        classifier: Any = self.classifier if self.averaged is None else self.averaged
        if _workers() > 1:
            # Each worker has its own running statistics of batch norm; all use those of rank 0.
            for buffer in classifier.buffers():
                dist.broadcast(buffer, src=0)
        if self.settings.test_crops is not None and self.crop_frames is not None:
            classifier = MeanOfCrops(classifier, self.crop_frames, self.settings.test_crops)
        classifier.eval()
        sums = self._zero_sums()
        for batch in batches:
            with self._autocast():
                logits = classifier(
                    self._to_memory_format(self.normalisation(batch.log_mel))
                ).float()
            loss = nn.functional.cross_entropy(logits, batch.target)
            sums += _sums(logits, batch.target, loss * len(batch.target))
        return _means(sums, "validation")

    def _zero_sums(self) -> Tensor:
        """Sums on the model's device; reading them after every batch would make a GPU wait."""
        return torch.zeros(3, dtype=torch.float64, device=self.device)

    def _check_losses(self, unchecked: list[tuple[Tensor, Sequence[str]]], epoch: int) -> None:
        """Raises UserError for the first loss that is not finite, and clears the list."""
        if not unchecked:
            return
        finite = torch.stack([loss for loss, _ in unchecked]).isfinite().tolist()
        if not all(finite):
            loss, clip_ids = unchecked[finite.index(False)]
            raise UserError(
                f"the training loss is {loss.item()} in epoch {epoch}, at the batch of the clips "
                f"{', '.join(clip_ids)}: {self.loss_advice}"
            )
        unchecked.clear()

    @property
    def loss_advice(self) -> str:
        """Advice for a loss that is not finite."""
        return (
            f"try a smaller training.optimizer.lr than {self.settings.optimizer.lr:g}, "
            "or training.max_grad_norm"
        )


def worker_rank() -> int:
    """The rank of this process; 0 without DDP."""
    return dist.get_rank() if dist.is_initialized() else 0


def _workers() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def _sums(logits: Tensor, target: Tensor, loss: Tensor) -> Tensor:
    """Summed loss, correct predictions, clips."""
    correct = (logits.argmax(dim=1) == target).sum()
    # Created on the device: a copy from the host would make a GPU wait.
    count = torch.full((), float(len(target)), device=logits.device)
    return torch.stack([loss, correct, count]).double()


def _means(sums: Tensor, split: str) -> tuple[float, float, int]:
    if dist.is_initialized():
        dist.all_reduce(sums)
    loss, correct, count = sums.tolist()
    if count == 0:
        raise RuntimeError(f"the {split} split gave no batch")
    return loss / count, correct / count, int(count)
