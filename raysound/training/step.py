"""One epoch of optimizer steps, alone or under DDP."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from raysound.errors import UserError
from raysound.settings.training import TrainingSettings
from raysound.training.augment import change_gain, crop, mask, mixup, probabilities, roll
from raysound.training.inference import Normalisation

# Batches between two looks at the losses: a look makes a GPU wait.
LOSS_CHECK_INTERVAL = 32


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


class EpochRunner:
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
            if len(unseen) == LOSS_CHECK_INTERVAL:
                self._check_losses(unseen, epoch)
        self._check_losses(unseen, epoch)
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

    def _check_losses(self, unseen: list[tuple[Tensor, Sequence[str]]], epoch: int) -> None:
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
