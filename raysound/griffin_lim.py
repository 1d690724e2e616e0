"""Log-mel → waveform: the plainest generator there is, a real clip through log-mel and back."""

from __future__ import annotations

import torch
from torch import Tensor
from torchaudio.transforms import GriffinLim, InverseMelScale

from raysound.settings import FeatureSettings


def log_mel_to_waveform(
    log_mel: Tensor, settings: FeatureSettings, iterations: int, seed: int
) -> Tensor:
    """Finds a waveform whose log-mel is near the one given.

    The power spectrum is the least-squares inverse of the mel filters, the phase is guessed by
    Griffin and Lim's iteration (IEEE TASSP 32, 1984) with momentum (Perraudin et al., 2013).

    Args:
        log_mel: `(n_mels, n_frames)`, natural log of power.
        settings: what it was made with.
        iterations: more give a smoother phase.
        seed: of the first guess of the phase.

    Returns:
        float32 `(clip_samples,)`.
    """
    power = InverseMelScale(
        n_stft=settings.n_fft // 2 + 1,
        n_mels=settings.n_mels,
        sample_rate=settings.sample_rate,
        f_min=settings.f_min,
        f_max=settings.f_max,
    )(log_mel.exp())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        waveform: Tensor = GriffinLim(
            n_fft=settings.n_fft,
            hop_length=settings.hop_length,
            n_iter=iterations,
            length=settings.clip_samples,
        )(power)
    return waveform
