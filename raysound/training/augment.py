"""Augmentation of training batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional
from torchaudio.transforms import FrequencyMasking, TimeMasking

from raysound.audio.log_mel import POWER_FLOOR
from raysound.models.combined import crop_starts
from raysound.settings.training import AugmentSettings

# Natural log of the power ratio of one decibel.
LOG_POWER_PER_DB = math.log(10) / 10


def crop(log_mel: Tensor, frames: int, max_stretch: float = 0.0, padding: int = 0) -> Tensor:
    """Crops each clip to `frames` at a random position of its own, and stretches it in time.

    The positions are those of `crop_starts`.

    Args:
        log_mel: `(B, n_mels, n_frames)`.
        frames: of the result. Without padding, a shorter clip is returned at its own length.
        max_stretch: the duration is divided by a random factor between 1 / (1 + max_stretch) and
            1 + max_stretch, by linear interpolation of the log-mel.
        padding: frames of digital silence before and after each clip.
    """
    clips, n_mels, length = log_mel.shape
    width = frames if padding else min(frames, length)
    if width == length and not max_stretch and not padding:
        return log_mel

    def sample() -> Tensor:
        return torch.rand(clips, 1, device=log_mel.device)

    factor = torch.exp((2 * sample() - 1) * math.log1p(max_stretch))
    first, last = crop_starts(log_mel, 1 + (width - 1) * factor)
    low, high = first - padding, last + padding
    if max_stretch:
        start = low + (high - low) * sample()
    else:
        # Full frames, all of them equally probable.
        start = torch.minimum(low + ((high - low + 1) * sample()).floor(), high)
    position = start + factor * torch.arange(width, device=log_mel.device)
    before = position.floor()
    weight = (position - before).unsqueeze(1)

    def values(index: Tensor) -> Tensor:
        inside = ((index >= 0) & (index < length)).unsqueeze(1)
        index = index.clamp(0, length - 1).long().unsqueeze(1).expand(-1, n_mels, -1)
        return torch.where(inside, log_mel.gather(2, index), math.log(POWER_FLOOR))

    if not max_stretch:
        return values(before)
    return torch.lerp(values(before).float(), values(before + 1).float(), weight)


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


def between_class(log_mel: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Mixes each clip with one of another class (Tokozume et al., 2018, arXiv:1711.10282).

    The ratio r is uniform in (0, 1). The sounds are added with the gains p and 1 - p of equation 2,
    for which the ratio of their levels is that of r and 1 - r, and divided by √(p² + (1 - p)²). The
    log-mel of the sum is that of uncorrelated sounds, whose powers add up. The level of a clip is
    the power of its loudest frame.

    Args:
        log_mel: `(B, n_mels, n_frames)`, not normalised.
        target: probabilities `(B, classes)`. A clip whose class all others share stays as it is.

    Returns:
        Mixed log-mels, and the targets r · own + (1 - r) · other.
    """
    label = target.argmax(dim=1)
    differs = (label[:, None] != label).float()
    alone = differs.sum(dim=1) == 0
    differs[alone, alone.nonzero()[:, 0]] = 1
    partner = torch.multinomial(differs, 1)[:, 0]
    log_mel = log_mel.float()
    level = log_mel.logsumexp(dim=1).amax(dim=1)
    share = torch.rand(len(target), device=log_mel.device).clamp(1e-6, 1 - 1e-6)
    # The logit of p; levels are log powers, and gains apply to amplitudes.
    gain = (torch.logit(share) - (level - level[partner]) / 2).view(-1, 1, 1)
    own, other = 2 * functional.logsigmoid(gain), 2 * functional.logsigmoid(-gain)
    mixed = torch.logaddexp(own + log_mel, other + log_mel[partner]) - torch.logaddexp(own, other)
    share = share.unsqueeze(1)
    return mixed, share * target + (1 - share) * target[partner]


def probabilities(target: Tensor, classes: int) -> Tensor:
    """Class indices `(B,)` as probabilities, float32 `(B, classes)`."""
    return functional.one_hot(target, classes).float()
