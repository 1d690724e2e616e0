"""One sound file → waveforms of exactly `clip_length`: decode, mix down, resample, cut or pad."""

from __future__ import annotations

import io
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import BinaryIO

import numpy as np
import soundfile
import torch
from torchaudio.transforms import Resample

from raysound import storage
from raysound.formats.parts import parts
from raysound.formats.views import Part
from raysound.settings import FeatureSettings

# The largest sample that a float file of 32-bit integers can hold; beyond it lies no sound.
LARGEST_SAMPLE = 2.0**31
# Resampling kernels grow with the terms of the ratio of two rates. This keeps every common pair
# exact, and shifts the pitch of an odd one by less than half a thousandth: under a cent.
LARGEST_RATIO_TERM = 2000
# Of a window. Encoders make clips a few frames longer than asked: no reason to hear them twice.
LEAST_SURPLUS = 0.05
# Samples that are decoded at once, over all channels.
BLOCK = 1 << 20
INT, FLOAT = np.dtype(np.int16), np.dtype(np.float32)


class Reject(Exception):  # noqa: N818 - the word of the manifest, the summary and the report
    """A file that can't be used; its text is the reason, for a person to read."""


class Unreadable(Reject):
    """A file that the storage didn't give: perhaps it will the next time."""


@dataclass(frozen=True)
class Source:
    """What a sound file says of itself.

    Attributes:
        duration: seconds.
        sample_rate: Hz.
    """

    duration: float
    sample_rate: int


@dataclass(frozen=True)
class Clip(Source):
    """One decoded clip.

    Attributes:
        windows: float32 `(n_windows, clip_samples)`, mono, at the settings' sample rate.
    """

    windows: np.ndarray


def read_clip(file: str | BinaryIO, settings: FeatureSettings) -> Clip:
    """Reads one sound file into windows of exactly `clip_length`, all of them at once.

    Args:
        file: path, URI, or a seekable binary file, in any format that libsndfile reads.
        settings: of the windows.

    Raises:
        Reject: the file is missing, empty, no sound, cut short, or holds NaN or absurd samples.
    """
    pairs = [(source, _as_float(window).copy()) for source, window in Decoder(settings).read(file)]
    source = pairs[0][0]
    return Clip(source.duration, source.sample_rate, np.stack([window for _, window in pairs]))


class Decoder:
    """Sound files → windows of exactly `clip_length`, one file at a time.

    However long a file is, no more of it is held than a window and a block; the buffers are kept
    from file to file, for fresh ones would cost as much as the decoding.
    """

    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings
        self.window = {dtype: np.empty(settings.clip_samples, dtype) for dtype in (INT, FLOAT)}
        self.held = {dtype: np.empty(2 * BLOCK, dtype) for dtype in (INT, FLOAT)}

    def read(self, file: str | BinaryIO) -> Iterator[tuple[Source, np.ndarray]]:
        """Yields what the file says of itself, and window after window.

        What is wrong with a file may show only at its end: it is sound when all were taken.

        Args:
            file: path, URI, or a seekable binary file, in any format that libsndfile reads.

        Yields:
            The source, and a window at the settings' rate: float32 `(clip_samples,)` within 2**31,
            or int16, where 32768 stands for 1. The next one is written over it.

        Raises:
            Reject: see `read_clip`.
        """
        try:
            with _open(file) as opened:
                size = opened.seek(0, 2)
                if size == 0:
                    raise Reject("the file is empty (0 bytes)")
                found = parts(opened, size)
                sounds: list[soundfile.SoundFile] = []
                try:
                    for part in found:
                        sounds.append(_sound(part))
                    samples = _Samples(sounds, found, self.held)
                    source = Source(samples.frames / samples.rate, samples.rate)
                    for window in self._windows(samples):
                        yield source, window
                finally:
                    for sound in sounds:
                        sound.close()
        except soundfile.LibsndfileError as error:
            raise Reject(f"not a sound file that can be decoded: {error.error_string}") from error
        except FileNotFoundError as error:
            raise Unreadable("no such file") from error
        except OSError as error:
            raise Unreadable(f"can't be read: {error.strerror or error}") from error
        except ValueError as error:
            # pyarrow's word for a path that is none, such as one with a NUL in it.
            raise Reject(f"can't be read: {error}") from error

    def _windows(self, samples: _Samples) -> Iterator[np.ndarray]:
        wanted, target = self.settings.clip_samples, self.settings.sample_rate
        ratio = resampling_ratio(samples.rate, target)
        is_same = ratio.numerator == ratio.denominator
        # In whole numbers: a division of fractions costs as much as reading a small header.
        length = -(-samples.frames * ratio.denominator // ratio.numerator)
        try:
            starts = window_starts(length, wanted, self.settings.long_clips)
        except (MemoryError, ValueError, OverflowError) as error:
            raise Reject("its header tells no length, or one that can't be true") from error
        for start in starts.tolist():
            begin, end = max(start, 0), min(start + wanted, length)
            if is_same:
                inner = samples.span(begin, end)
            else:
                inner = _resampled_span(samples, ratio, begin, end)
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


def _sound(part: Part) -> soundfile.SoundFile:
    """Opens a part.

    Raises:
        Reject: its header promises another number of bytes than are there.
    """
    promised, held = part.promised, part.held
    part.file.seek(0)
    # Given its number, libsndfile reads a file itself, without a way through Python.
    is_own = isinstance(part.file, io.FileIO)
    try:
        sound = soundfile.SoundFile(part.file.fileno() if is_own else part.file, closefd=not is_own)
    except soundfile.LibsndfileError:
        if promised <= held:
            raise
    else:
        # Less than a sample of all channels is a matter of padding.
        if -sound.channels < held - promised <= 0:
            return sound
        sound.close()
    if promised > held:
        raise Reject(f"cut short: the header says {promised} bytes of sound, {held} are there")
    raise Reject(f"wrong header: it says {promised} bytes of sound, {held} are there")


class _Samples:
    """The sounds of a file, one after the other, as mono samples, read forwards, block by block."""

    def __init__(
        self,
        sounds: Sequence[soundfile.SoundFile],
        found: Sequence[Part],
        held: dict[np.dtype, np.ndarray],
    ) -> None:
        self.sounds = sounds
        first = sounds[0]
        self.rate, self.channels = int(first.samplerate), int(first.channels)
        # As 16-bit numbers: half of the bytes, no rounding, and no NaN to look for.
        self.read_as: np.dtype = INT
        # Where in the file each sound ends.
        self.stops: list[int] = []
        self.frames = 0
        for sound, part in zip(sounds, found, strict=True):
            if (sound.samplerate, sound.channels) != (self.rate, self.channels):
                raise Reject(
                    f"several sounds in one file: the first has {self.rate} Hz and {self.channels} "
                    f"channels, a later one {sound.samplerate} Hz and {sound.channels}"
                )
            if sound.subtype != "PCM_16":
                self.read_as = FLOAT
            self.frames += int(sound.frames) if part.frames is None else part.frames
            self.stops.append(self.frames)
        self.dtype = self.read_as if self.channels == 1 else FLOAT
        self.buffers = held
        # Samples [first, read) of the file stand at the beginning of the buffer.
        self.first = self.read = 0
        if self.frames == 0:
            raise Reject("no samples: the header is there, the sound is not")

    def span(self, start: int, stop: int) -> np.ndarray:
        """Samples `[start, stop)` of the file; what lies before `start` is let go."""
        while self.read < stop:
            self._let_go(start)
            self._read_block()
        return self.buffers[self.dtype][start - self.first : stop - self.first]

    def finish(self) -> None:
        """Reads what no window wanted: it may be missing, or no sound."""
        while self.read < self.frames:
            self._let_go(self.read)
            self._read_block()

    def _let_go(self, start: int) -> None:
        held, first = self.buffers[self.dtype], min(start, self.read)
        if first > self.first:
            held[: self.read - first] = held[first - self.first : self.read - self.first]
            self.first = first

    def _read_block(self) -> None:
        channels, offset = self.channels, self.read - self.first
        number = bisect_right(self.stops, self.read)
        sound = self.sounds[number]
        count = min(self.stops[number] - self.read, max(BLOCK // channels, 1))
        held = self.buffers[self.dtype]
        if len(held) < offset + count:
            held = np.concatenate([held, np.empty(offset + count, self.dtype)])
            self.buffers[self.dtype] = held
        target = held[offset : offset + count]
        if channels == 1:
            block = sound.read(out=target)
        else:
            block = sound.read(count, dtype=self.read_as.name, always_2d=True)
        if len(block) < count:
            there = self.read + len(block)
            raise Reject(f"cut short: the header says {self.frames} samples, {there} are there")
        if self.read_as == FLOAT:
            _refuse_absurd(block, self.read / self.rate)
        if channels > 1:
            np.matmul(_as_float(block), np.full(channels, 1 / channels, FLOAT), out=target)
        self.read += count


def _refuse_absurd(block: np.ndarray, seconds: float) -> None:
    peak = max(float(block.max()), -float(block.min()))
    if not np.isfinite(peak):
        raise Reject(f"NaN or infinite samples: {int((~np.isfinite(block)).sum())} of {block.size}")
    if peak > LARGEST_SAMPLE:
        raise Reject(f"samples up to {peak:.3g}, where sound lies within 1")


def _as_float(samples: np.ndarray) -> np.ndarray:
    return samples if samples.dtype == FLOAT else np.multiply(samples, FLOAT.type(1 / 32768))


@lru_cache(maxsize=256)
def resampling_ratio(source_rate: int, target_rate: int) -> Fraction:
    """Source samples for one sample at the target rate (Hz), as near as its terms may be.

    Raises:
        Reject: no sound has a rate so far from the other.
    """
    if max(source_rate, target_rate) > LARGEST_RATIO_TERM * min(source_rate, target_rate):
        raise Reject(f"a sample rate of {source_rate} Hz can't be brought to {target_rate} Hz")
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
    """Made once a ratio and process: the kernel costs more than its use."""
    return Resample(ratio.numerator, ratio.denominator)


def _resampled_span(samples: _Samples, ratio: Fraction, begin: int, end: int) -> np.ndarray:
    """Samples `[begin, end)` of the resampled file, from no more of the file than they hear.

    A piece that begins where the pattern of phases does, with the reach of the kernel on both
    sides, gives what the whole file would.
    """
    source, target = ratio.numerator, ratio.denominator
    reach = math.ceil(_resampler(ratio).width / source)
    first = max(begin // target - reach, 0)
    last = min((-(-end // target) + reach) * source, samples.frames)
    piece = resample(_as_float(samples.span(first * source, last)), ratio)
    return piece[begin - first * target : end - first * target]


def window_starts(length: int, clip_samples: int, long_clips: str) -> np.ndarray:
    """Where the windows of a waveform begin, ascending.

    A short one stands in the middle of its window, which begins before it: zeros on both sides,
    the odd zero behind. A long one is cut: `start` and `center` keep one window; `split` keeps as
    few as cover it, evenly spread, so that neighbours overlap instead of the last one being
    padded. What exceeds whole windows by less than LEAST_SURPLUS earns no window of its own: the
    two ends are trimmed alike.

    Args:
        length: of the waveform, in samples.
        clip_samples: length of a window.
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
    """A mono waveform `(n_samples,)` as a 16-bit file, `WAV` or `FLAC`.

    What exceeds full scale is scaled down to it, not clipped; nothing is made louder.
    """
    file = io.BytesIO()
    peak = float(np.abs(waveform).max(initial=1.0))
    soundfile.write(file, waveform / peak, sample_rate, format=container, subtype="PCM_16")
    return file.getvalue()
