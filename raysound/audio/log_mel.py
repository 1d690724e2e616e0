"""Computes log-mels, equal to torchaudio's MelSpectrogram followed by log(max(x, 1e-10))."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torchaudio.functional import melscale_fbanks

from raysound.settings.features import FeatureSettings

# The log-mel of silence is its natural log, -23.03.
POWER_FLOOR = 1e-10
# Frames that are processed together; on a CPU they fit into the cache of one core.
CPU_FRAMES, GPU_FRAMES = 128, 32768
# Mel bands per matrix product, over the Fourier bins that any of them uses.
BANDS_TOGETHER = 16


class LogMel:
    """Natural log of mel power: `(..., n_samples)` → `(..., n_mels, n_frames)`, always finite.

    Frames of `n_fft` samples are centred on every `hop_length`th sample (the ends mirrored),
    weighted by a periodic Hann window, Fourier transformed, squared, and summed by triangular
    filters on the HTK mel scale without normalisation; the power is floored at 1e-10.

    Not thread-safe: the buffers are reused between calls, because new ones would cost more than the
    arithmetic.
    """

    def __init__(self, settings: FeatureSettings, device: torch.device | str = "cpu") -> None:
        self.n_fft = settings.n_fft
        self.hop_length = settings.hop_length
        self.n_mels = settings.n_mels
        self.device = torch.device(device)
        self.rows = CPU_FRAMES if self.device.type == "cpu" else GPU_FRAMES
        n_bins = settings.n_fft // 2 + 1
        window = torch.hann_window(settings.n_fft, device=self.device)
        # The window includes the scale of int16, a power of two, so nothing is rounded.
        self.windows = {torch.float32: window, torch.int16: window / 32768}
        self.bands = [
            (first, low, high, weights.to(self.device))
            for first, low, high, weights in _bands(filterbank(settings))
        ]
        self.views: dict[tuple[int, int, int], _Views] = {}
        self.padded = torch.empty(0, device=self.device)
        self.frames = torch.empty(self.rows, settings.n_fft, device=self.device)
        self.spectrum = torch.empty(self.rows, n_bins, dtype=torch.complex64, device=self.device)
        self.mel = torch.empty(0, settings.n_mels, device=self.device)

    @torch.inference_mode()
    def __call__(self, waveform: Tensor, out: Tensor | None = None) -> Tensor:
        """Computes the log-mels of some waveforms, on their device.

        Args:
            waveform: `(..., n_samples)`, float32 within ±2**31, or int16 with full scale at 32768.
            out: tensor for the result, float32 or float16; a new float32 tensor if None.

        Returns:
            `(..., n_mels, n_frames)`.

        Raises:
            RuntimeError: `n_samples` does not exceed half of `n_fft`.
        """
        n_samples = waveform.shape[-1]
        n_frames = 1 + (n_samples + self.n_fft // 2 * 2 - self.n_fft) // self.hop_length
        shape = (*waveform.shape[:-1], self.n_mels, n_frames)
        if out is None:
            out = torch.empty(shape, device=self.device)
        clips, results = waveform.reshape(-1, n_samples), out.view(-1, self.n_mels, n_frames)
        # Processes either pieces of one clip or all frames of several clips.
        together = max(1, self.rows // n_frames)
        step = min(n_frames, -(-n_frames // -(-n_frames // self.rows)))
        if len(self.mel) != together * n_frames:
            self.mel = torch.empty(together * n_frames, self.n_mels, device=self.device)
            self.views.clear()
        for start in range(0, len(clips), together):
            padded = self._pad(clips[start : start + together])
            frames = padded.unfold(-1, self.n_fft, self.hop_length)
            for first in range(0, n_frames, step):
                piece = frames[:, first : first + step]
                self._mel_power(piece, self.windows[clips.dtype], first)
            mel = self.mel[: len(frames) * n_frames].clamp_(min=POWER_FLOOR).log_()
            for number, log_mel in enumerate(mel.view(len(frames), n_frames, -1)):
                results[start + number].copy_(log_mel.T)
        return out

    def _pad(self, clips: Tensor) -> Tensor:
        """Pads by reflection with half a window at both ends."""
        half, (count, length) = self.n_fft // 2, clips.shape
        if length <= half:
            raise RuntimeError(f"{length} samples can't be mirrored by {half}: n_fft is too large")
        if self.padded.shape != (count, length + 2 * half):
            self.padded = torch.empty(count, length + 2 * half, device=self.device)
        self.padded[:, half : half + length] = clips
        self.padded[:, :half] = clips[:, 1 : half + 1].flip(-1)
        self.padded[:, half + length :] = clips[:, length - half - 1 : length - 1].flip(-1)
        return self.padded

    def _mel_power(self, frames: Tensor, window: Tensor, first: int) -> None:
        """Writes the mel power of frames `(clips, k, n_fft)` to the buffer, from row `first`."""
        key = (frames.shape[0], frames.shape[1], first)
        if key not in self.views:
            self.views[key] = self._make_views(*key)
        views = self.views[key]
        torch.mul(frames, window, out=views.frames)
        torch.fft.rfft(views.rows, out=views.spectrum)
        # Real and imaginary parts alternate; the doubled filters sum the squares of both.
        torch.mul(views.parts, views.parts, out=views.parts)
        for used, weights, mel in views.bands:
            torch.mm(used, weights, out=mel)

    def _make_views(self, clips: int, k: int, first: int) -> _Views:
        rows = self.frames[: clips * k]
        spectrum, mel = self.spectrum[: clips * k], self.mel[first : first + clips * k]
        parts = torch.view_as_real(spectrum).view(clips * k, -1)
        bands = [
            (parts[:, low:high], weights, mel[:, band : band + weights.shape[1]])
            for band, low, high, weights in self.bands
        ]
        return _Views(rows.view(clips, k, -1), rows, spectrum, parts, bands)


class _Views(NamedTuple):
    """Views of the buffers for a number of frames."""

    frames: Tensor
    rows: Tensor
    spectrum: Tensor
    parts: Tensor
    bands: list[tuple[Tensor, Tensor, Tensor]]


def _bands(filters: Tensor) -> list[tuple[int, int, int, Tensor]]:
    """Divides the filterbank into pieces, because most of it is zero.

    Returns:
        First band, first and last (exclusive) used column of the spectrum, and weights of each
        piece. A Fourier bin has two columns: its real and its imaginary part.
    """
    pieces = []
    for first in range(0, filters.shape[1], BANDS_TOGETHER):
        some = filters[:, first : first + BANDS_TOGETHER]
        used = torch.nonzero(some.sum(1)).flatten().tolist() or [0]
        low, high = used[0], used[-1] + 1
        pieces.append((first, 2 * low, 2 * high, some[low:high].repeat_interleave(2, 0)))
    return pieces


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
