"""Decodes sound files into windows of `clip_length`: mix down, resample, cut or pad."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache, partial
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.transforms import Resample

from raysound import storage
from raysound.audio.loudness import Gain, measured_gain
from raysound.corpora.formats.parts import find_parts
from raysound.corpora.formats.samples import FLOAT, INT, Samples, as_float, new_buffers, open_part
from raysound.corpora.formats.samples import Reject as Reject
from raysound.corpora.formats.samples import Unreadable as Unreadable
from raysound.corpora.formats.views import Part
from raysound.settings.features import FeatureSettings

# Maximum numerator or denominator of the ratio of two rates, because the resampling kernel grows
# with both. Common pairs of rates are exact; others shift the pitch by less than 0.05 %, a cent.
LARGEST_RATIO_TERM = 2000
# Share of a window. Encoders extend clips by a few frames, which need no window of their own.
LEAST_SURPLUS = 0.05


@dataclass(frozen=True)
class Source:
    """Properties of a sound file.

    Attributes:
        duration: seconds.
        sample_rate: Hz.
        gain: gain that brings the clip to `features.loudness`; None without this setting.
    """

    duration: float
    sample_rate: int
    gain: Gain | None


@dataclass(frozen=True)
class Clip(Source):
    """One decoded clip.

    Attributes:
        windows: float32 `(n_windows, clip_samples)`, mono, at the configured sample rate.
    """

    windows: np.ndarray


def read_clip(file: str | BinaryIO, settings: FeatureSettings) -> Clip:
    """Reads all windows of one sound file, each exactly `clip_length` long.

    Args:
        file: path, URI, or a seekable binary file, in any format that libsndfile reads.
        settings: settings of the windows.

    Raises:
        Reject: the file is missing, empty, truncated or not a sound file, or a sample is NaN,
            infinite or beyond 2**31.
    """
    pairs = [(source, as_float(window).copy()) for source, window in Decoder(settings).read(file)]
    source = pairs[0][0]
    return Clip(**vars(source), windows=np.stack([window for _, window in pairs]))


def read_window(file: str | BinaryIO, settings: FeatureSettings, number: int = 0) -> np.ndarray:
    """Reads one window of a sound file, and only the part of the file that it needs.

    With `features.loudness` the complete file is read, because the gain depends on its loudness.

    Args:
        file: see `read_clip`.
        settings: settings of the window.
        number: number of the window, from 0.

    Returns:
        float32 `(clip_samples,)`, mono, at the configured sample rate.

    Raises:
        Reject: see `read_clip`, for the part that is read; or the file ends before the window.
    """
    for place, (_, window) in enumerate(Decoder(settings).read(file)):
        if place == number:
            return as_float(window).copy()
    raise Reject(f"the sound ends before window {number + 1}")


class Decoder:
    """Decodes sound files into windows of `clip_length`, one file at a time.

    At most one window and one block of a file are in memory. The buffers are reused for all files,
    because new ones would cost as much as the decoding. With `features.loudness` a file is read
    twice: to measure its loudness, and for its windows.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings
        self.window = {dtype: np.empty(settings.clip_samples, dtype) for dtype in (INT, FLOAT)}
        self.buffers = new_buffers()

    def read(
        self, file: str | BinaryIO, after_piece: Callable[[], None] = lambda: None
    ) -> Iterator[tuple[Source, np.ndarray]]:
        """Yields the windows of a file.

        A fault may be found only at the end of the file, so the file is valid only if the iterator
        is exhausted.

        Args:
            file: path, URI, or a seekable binary file, in any format that libsndfile reads.
            after_piece: called after each piece of a file whose loudness is measured.

        Yields:
            The source, and a window `(clip_samples,)` at the configured rate: float32 within
            ±2**31, or int16 with full scale at 32768. The next window overwrites it. With
            `features.loudness` it is float32 and has the gain of the complete file.

        Raises:
            Reject: see `read_clip`.
        """
        try:
            with _open(file) as opened:
                size = opened.seek(0, 2)
                if size == 0:
                    raise Reject("the file is empty (0 bytes)")
                found = find_parts(opened, size)
                gain = self._gain(found, after_piece) if self.settings.loudness else None
                with self._samples(found) as samples:
                    source = Source(samples.frames / samples.rate, samples.rate, gain)
                    for window in self._windows(samples):
                        yield source, window if gain is None else gain.apply(window)
        except soundfile.LibsndfileError as error:
            raise Reject(f"not a sound file that can be decoded: {error.error_string}") from error
        except FileNotFoundError as error:
            raise Unreadable("no such file") from error
        except OSError as error:
            raise Unreadable(f"can't be read: {error.strerror or error}") from error
        except ValueError as error:
            # pyarrow raises it for an invalid path, such as one that contains NUL.
            raise Reject(f"can't be read: {error}") from error

    @contextmanager
    def _samples(self, found: Sequence[Part]) -> Iterator[Samples]:
        sounds: list[soundfile.SoundFile] = []
        try:
            for part in found:
                sounds.append(open_part(part))
            yield Samples(sounds, found, self.buffers)
        finally:
            for sound in sounds:
                sound.close()

    def _gain(self, found: Sequence[Part], after_piece: Callable[[], None]) -> Gain:
        with self._samples(found) as samples:
            ratio = resampling_ratio(samples.rate, self.settings.sample_rate)
            span = partial(_span, samples, ratio)
            return measured_gain(span, _length(samples, ratio), self.settings, after_piece)

    def _windows(self, samples: Samples) -> Iterator[np.ndarray]:
        wanted = self.settings.clip_samples
        ratio = resampling_ratio(samples.rate, self.settings.sample_rate)
        length = _length(samples, ratio)
        try:
            starts = window_starts(length, wanted, self.settings.long_clips)
        except (MemoryError, ValueError, OverflowError) as error:
            raise Reject("the header states no length, or an impossible one") from error
        for start in map(int, starts):
            begin, end = max(start, 0), min(start + wanted, length)
            inner = _span(samples, ratio, begin, end)
            if len(inner) < wanted:
                window = self.window[inner.dtype]
                window.fill(0)
                window[begin - start : end - start] = inner
                inner = window
            yield inner
        samples.finish()


def _open(file: str | BinaryIO) -> AbstractContextManager[BinaryIO]:
    if not isinstance(file, str):
        return nullcontext(file)
    if "://" in file:
        return storage.open_file(file)
    return open(file, "rb", buffering=0)


@lru_cache(maxsize=256)
def resampling_ratio(source_rate: int, target_rate: int) -> Fraction:
    """Source samples per target sample; rates in Hz.

    The numerator and the denominator are at most LARGEST_RATIO_TERM; other ratios are approximated.

    Raises:
        Reject: the ratio of the rates exceeds LARGEST_RATIO_TERM.
    """
    if max(source_rate, target_rate) > LARGEST_RATIO_TERM * min(source_rate, target_rate):
        raise Reject(f"a sample rate of {source_rate} Hz can't be resampled to {target_rate} Hz")
    ratio = Fraction(source_rate, target_rate)
    if ratio > 1:
        return 1 / (1 / ratio).limit_denominator(LARGEST_RATIO_TERM)
    return ratio.limit_denominator(LARGEST_RATIO_TERM)


def resample(waveform: np.ndarray, ratio: Fraction) -> np.ndarray:
    """Resamples float32 `(n,)` to `ceil(n / ratio)` samples, by windowed sinc interpolation."""
    with torch.inference_mode():
        resampled: np.ndarray = _resampler(ratio)(torch.from_numpy(waveform)).numpy()
    return resampled


@lru_cache(maxsize=16)
def _resampler(ratio: Fraction) -> Resample:
    """Cached, because the kernel costs more than its use."""
    return Resample(ratio.numerator, ratio.denominator)


def _length(samples: Samples, ratio: Fraction) -> int:
    """Samples of the resampled file."""
    # Integer arithmetic, because dividing fractions costs as much as reading a small header.
    return -(-samples.frames * ratio.denominator // ratio.numerator)


def _span(samples: Samples, ratio: Fraction, begin: int, end: int) -> np.ndarray:
    """Samples `[begin, end)` of the resampled file, from the part of the file that they need.

    A piece that starts at a multiple of the source term, extended by the kernel width on both
    sides, gives the same samples as the complete file.
    """
    source, target = ratio.numerator, ratio.denominator
    if source == target:
        return samples.span(begin, end)
    reach = math.ceil(_resampler(ratio).width / source)
    first = max(begin // target - reach, 0)
    last = min((-(-end // target) + reach) * source, samples.frames)
    piece = resample(as_float(samples.span(first * source, last)), ratio)
    return piece[begin - first * target : end - first * target]


def window_starts(length: int, clip_samples: int, long_clips: str) -> np.ndarray:
    """The first samples of the windows of a waveform, ascending.

    A short waveform is centred in one window with a negative start: zeros are added on both sides,
    the extra one at the end. For a long waveform, `start` and `center` keep one window. `split`
    keeps the smallest number of windows that cover it, evenly spaced, so that windows overlap and
    need no padding. A remainder below LEAST_SURPLUS of a window is trimmed equally at both ends.

    Args:
        length: samples of the waveform.
        clip_samples: samples of a window.
        long_clips: split, center or start.

    Returns:
        int64 `(n_windows,)`.
    """
    surplus = length - clip_samples
    if surplus <= 0:
        return np.array([-(-surplus // 2)])
    if long_clips == "start":
        return np.array([0])
    windows = math.ceil(length / clip_samples - LEAST_SURPLUS)
    if long_clips == "center" or windows == 1:
        return np.array([surplus // 2])
    trimmed = max(0, length - windows * clip_samples) // 2
    last = min(surplus - trimmed, trimmed + (windows - 1) * clip_samples)
    return np.linspace(trimmed, last, windows).round().astype(np.int64)


def encode(waveform: np.ndarray, sample_rate: int, container: str) -> bytes:
    """Encodes a mono waveform `(n_samples,)` as a 16-bit file, `WAV` or `FLAC`.

    A waveform that exceeds full scale is scaled down to it, not clipped; none is amplified.
    """
    file = io.BytesIO()
    peak = float(np.abs(waveform).max(initial=1.0))
    soundfile.write(file, waveform / peak, sample_rate, format=container, subtype="PCM_16")
    return file.getvalue()
