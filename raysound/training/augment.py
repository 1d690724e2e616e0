"""What training does to a batch, so that the classifier learns sounds and not recordings."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.transforms import FrequencyMasking, TimeMasking

from raysound.audio.log_mel import POWER_FLOOR
from raysound.settings.training import AugmentSettings

# Natural log of a power that is a decibel larger.
LOG_POWER_PER_DB = math.log(10) / 10


def crop(log_mel: Tensor, frames: int) -> Tensor:
    """A piece of each clip, from a place drawn for each: `(B, n_mels, n_frames)` → `frames` wide.

    What is no longer than that stays as it is.
    """
    clips, _, length = log_mel.shape
    if length <= frames:
        return log_mel
    start = torch.randint(length - frames + 1, (clips, 1, 1), device=log_mel.device)
    place = start + torch.arange(frames, device=log_mel.device)
    return log_mel.gather(2, place.expand(-1, log_mel.shape[1], -1))


def roll(log_mel: Tensor) -> Tensor:
    """Turns each clip `(B, n_mels, n_frames)` round in time, by a number of frames of its own."""
    clips, n_mels, length = log_mel.shape
    shift = torch.randint(length, (clips, 1, 1), device=log_mel.device)
    place = (torch.arange(length, device=log_mel.device) - shift) % length
    return log_mel.gather(2, place.expand(-1, n_mels, -1))


def change_gain(log_mel: Tensor, most_db: float) -> Tensor:
    """Makes each clip `(B, n_mels, n_frames)` louder or softer, by up to `most_db`.

    What was silent, or falls below the floor of log-mels, is silent.
    """
    drawn = torch.rand(len(log_mel), 1, 1, device=log_mel.device) * 2 - 1
    floor = math.log(POWER_FLOOR)
    louder = (log_mel + drawn * (most_db * LOG_POWER_PER_DB)).clamp(min=floor)
    return torch.where(log_mel <= floor, log_mel, louder)


def mask(normalised: Tensor, settings: AugmentSettings) -> Tensor:
    """SpecAugment (Park et al., 2019, arXiv:1904.08779) without its time warp, drawn per clip.

    Args:
        normalised: `(B, 1, n_mels, n_frames)`; masked to 0, the mean of the training set.
        settings: how many masks, and how wide the widest is.
    """
    bands, frames = normalised.shape[-2:]
    # Torchaudio's masks are narrower than the number they are given.
    for _ in range(settings.frequency_masks):
        widest = max(1, round(settings.max_frequency_mask * bands))
        normalised = FrequencyMasking(widest + 1, iid_masks=True)(normalised)
    for _ in range(settings.time_masks):
        widest = max(1, round(settings.max_time_mask * frames))
        normalised = TimeMasking(widest + 1, iid_masks=True)(normalised)
    return normalised


def mixup(normalised: Tensor, target: Tensor, alpha: float) -> tuple[Tensor, Tensor]:
    """Blends each clip with another of the batch, and their classes alike.

    Zhang et al., 2018, arXiv:1710.09412; the share of the first is drawn from Beta(alpha, alpha).

    Args:
        normalised: `(B, 1, n_mels, n_frames)`.
        target: probabilities `(B, classes)`.
        alpha: above 0; the larger, the more even the blend.
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
