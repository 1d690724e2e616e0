"""Reconstructs waveforms from log-mels: a baseline generator from real clips."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.transforms import GriffinLim

from raysound.audio.log_mel import filterbank
from raysound.settings.features import FeatureSettings

# More updates change little.
UPDATES = 50


def log_mel_to_waveform(
    log_mel: Tensor, settings: FeatureSettings, iterations: int, seed: int
) -> Tensor:
    """Reconstructs a waveform from its log-mel.

    The phase is estimated by the iteration of Griffin and Lim (IEEE TASSP 32, 1984) with momentum
    (Perraudin et al., 2013).

    Args:
        log_mel: `(n_mels, n_frames)`, natural log of power.
        settings: settings of the log-mel.
        iterations: number of iterations; more give a better phase.
        seed: seed of the initial phase.

    Returns:
        float32 `(clip_samples,)`.
    """
    power = unmel(log_mel.exp(), filterbank(settings))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        waveform: Tensor = GriffinLim(
            n_fft=settings.n_fft,
            hop_length=settings.hop_length,
            n_iter=iterations,
            length=settings.clip_samples,
        )(power)
    return waveform


def unmel(mel: Tensor, filters: Tensor) -> Tensor:
    """Finds the non-negative power spectrum with the nearest mel power.

    Uses the multiplicative updates of Lee and Seung (Nature 401, 1999). A least-squares inverse
    has negative values; clipping them would add power to the quiet bands.

    Args:
        mel: power `(n_mels, n_frames)`.
        filters: `(n_bins, n_mels)`.

    Returns:
        Power `(n_bins, n_frames)`.
    """
    target = filters @ mel
    power = target.clone()
    for _ in range(UPDATES):
        power *= target / (filters @ (filters.T @ power)).clamp(min=1e-30)
    return power
