"""Waveform → log-mel, equal to torchaudio's MelSpectrogram followed by log(max(x, 1e-10))."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchaudio.functional import melscale_fbanks

from raysound.settings import FeatureSettings

# Natural log of it is what silence is written as: -23.03.
POWER_FLOOR = 1e-10


class LogMel(nn.Module):
    """Natural log of mel power: `(..., clip_samples)` → `(..., n_mels, n_frames)`, always finite.

    Frames of `n_fft` samples are centred on every `hop_length`th sample (the ends mirrored),
    weighted by a periodic Hann window, Fourier transformed, squared, and summed by triangular
    filters on the HTK mel scale without normalisation; the power is floored at 1e-10.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, settings: FeatureSettings) -> None:
        super().__init__()
        self.n_fft = settings.n_fft
        self.hop_length = settings.hop_length
        self.register_buffer("window", torch.hann_window(settings.n_fft), persistent=False)
        self.register_buffer("filters", filterbank(settings), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """Log-mel of float32 waveforms `(..., n_samples)` whose samples lie within 2**31.

        Raises:
            RuntimeError: `n_samples` does not exceed half of `n_fft`.
        """
        half = self.n_fft // 2
        flat = waveform.reshape(-1, 1, waveform.shape[-1])
        padded = nn.functional.pad(flat, (half, half), mode="reflect").squeeze(1)
        frames = padded.unfold(-1, self.n_fft, self.hop_length) * self.window
        power = torch.view_as_real(torch.fft.rfft(frames)).square().sum(-1)
        log_mel = (power @ self.filters).clamp_(min=POWER_FLOOR).log_().transpose(-1, -2)
        return log_mel.reshape(*waveform.shape[:-1], *log_mel.shape[-2:])


def filterbank(settings: FeatureSettings) -> Tensor:
    """Triangular mel filters, float32 `(n_fft // 2 + 1, n_mels)`."""
    return melscale_fbanks(
        n_freqs=settings.n_fft // 2 + 1,
        f_min=settings.f_min,
        f_max=settings.f_max,
        n_mels=settings.n_mels,
        sample_rate=settings.sample_rate,
        norm=None,
        mel_scale="htk",
    )


def empty_bands(settings: FeatureSettings) -> list[int]:
    """Mel bands too narrow to hold a single Fourier bin: they are silent whatever the sound is."""
    return torch.nonzero(filterbank(settings).sum(0) == 0).flatten().tolist()
