"""Augmentation of training batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.transforms import FrequencyMasking, TimeMasking

from raysound.audio.log_mel import POWER_FLOOR
from raysound.settings.training import AugmentSettings

# Natural log of the power ratio of one decibel.
LOG_POWER_PER_DB = math.log(10) / 10


def crop(log_mel: Tensor, frames: int) -> Tensor:
    """Crops each clip `(B, n_mels, n_frames)` to `frames` at a random position of its own.

    Shorter clips are returned unchanged.
    """
    clips, _, length = log_mel.shape
    if length <= frames:
        return log_mel
    start = torch.randint(length - frames + 1, (clips, 1, 1), device=log_mel.device)
    index = start + torch.arange(frames, device=log_mel.device)
    return log_mel.gather(2, index.expand(-1, log_mel.shape[1], -1))


def roll(log_mel: Tensor) -> Tensor:
    """Rolls each clip `(B, n_mels, n_frames)` in time by a random number of frames of its own."""
    clips, n_mels, length = log_mel.shape
    shift = torch.randint(length, (clips, 1, 1), device=log_mel.device)
    index = (torch.arange(length, device=log_mel.device) - shift) % length
    return log_mel.gather(2, index.expand(-1, n_mels, -1))


def random_gain(log_mel: Tensor, max_db: float) -> Tensor:
    """Changes the level of each clip `(B, n_mels, n_frames)` by up to ± `max_db`.

    Values at the floor of log-mels stay there, and others do not fall below it.
    """
    factor = torch.rand(len(log_mel), 1, 1, device=log_mel.device) * 2 - 1
    floor = math.log(POWER_FLOOR)
    changed = (log_mel + factor * (max_db * LOG_POWER_PER_DB)).clamp(min=floor)
    return torch.where(log_mel <= floor, log_mel, changed)


def mask(normalised: Tensor, settings: AugmentSettings) -> Tensor:
    """SpecAugment (Park et al., 2019, arXiv:1904.08779) without time warping.

    Args:
        normalised: `(B, 1, n_mels, n_frames)`; masked to 0, the mean of the training set.
        settings: number and maximum width of the masks.
    """
    bands, frames = normalised.shape[-2:]
    # Torchaudio's mask parameter is an exclusive bound.
    for _ in range(settings.frequency_masks):
        widest = max(1, round(settings.max_frequency_mask * bands))
        normalised = FrequencyMasking(widest + 1, iid_masks=True)(normalised)
    for _ in range(settings.time_masks):
        widest = max(1, round(settings.max_time_mask * frames))
        normalised = TimeMasking(widest + 1, iid_masks=True)(normalised)
    return normalised


def mixup(normalised: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Mixup (Zhang et al., 2018, arXiv:1710.09412) of each clip with another of the batch.

    Args:
        normalised: `(B, 1, n_mels, n_frames)`.
        target: probabilities `(B, classes)`.
        alpha: above 0; weights are sampled from Beta(alpha, alpha).
    """
    both = torch.full((), alpha, device=normalised.device)
    share = torch.distributions.Beta(both, both).sample((len(target),))
    partner = torch.randperm(len(target), device=normalised.device)
    first = share.view(-1, 1, 1, 1)
    blended = first * normalised + (1 - first) * normalised[partner]
    share = share.unsqueeze(1)
    return blended, share * target + (1 - share) * target[partner]


def probabilities(target: Tensor, classes: int) -> Tensor:
    """Class indices `(B,)` as probabilities, float32 `(B, classes)`."""
    return functional.one_hot(target, classes).float()
