"""Reads the sounds of a file as mono samples; rejects unusable files."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import soundfile

from raysound.corpora.formats.views import BYTES, Part

# The largest absolute sample in a float file of 32-bit integers; larger values are not sound.
LARGEST_SAMPLE = 2.0**31
# libsndfile returns its largest number of frames for a streamed FLAC.
UNKNOWN_FRAMES = 1 << 62
# Samples of all channels that are decoded at once.
BLOCK = 1 << 20
INT, FLOAT = np.dtype(np.int16), np.dtype(np.float32)


class Reject(Exception):  # noqa: N818 - the term in the manifest, the summary and the report
    """A file can't be used; the text is the reason for the user."""


class Unreadable(Reject):
    """The storage failed to return a file; another attempt may succeed."""


class _SequentialFile(soundfile.SoundFile):
    """A sound file that is read sequentially."""

    def seekable(self) -> bool:
        """False; otherwise soundfile seeks after every read, which fails for some valid files."""
        return False


def open_part(part: Part) -> soundfile.SoundFile:
    """Opens a part.

    Raises:
        Reject: the header states more or less sound than the file contains.
    """
    declared, actual = part.declared, part.actual
    part.file.seek(0)
    # With a file descriptor, libsndfile reads without calls to Python.
    is_own = isinstance(part.file, io.FileIO)
    try:
        sound = _SequentialFile(part.file.fileno() if is_own else part.file, closefd=not is_own)
    except soundfile.LibsndfileError:
        if declared <= actual:
            raise
    else:
        # Some headers count a missing byte of padding.
        missing = declared - actual
        if missing == 0 or (0 < missing < sound.channels and part.unit == BYTES):
            return sound
        sound.close()
    if declared > actual:
        raise Reject(f"truncated: the header states {declared} {part.unit}, the file has {actual}")
    raise Reject(f"wrong header: it states {declared} {part.unit}, the file has {actual}")


def new_buffers() -> dict[np.dtype, np.ndarray]:
    """Buffers for `Samples`, one per type; they are reused for all files."""
    return {dtype: np.empty(2 * BLOCK, dtype) for dtype in (INT, FLOAT)}


class Samples:
    """The concatenated sounds of a file as mono samples, read sequentially in blocks."""

    def __init__(
        self,
        sounds: Sequence[soundfile.SoundFile],
        found: Sequence[Part],
        buffers: dict[np.dtype, np.ndarray],
    ) -> None:
        self.sounds = sounds
        first = sounds[0]
        self.rate, self.channels = int(first.samplerate), int(first.channels)
        # int16 takes half of the bytes, needs no rounding and has no NaN.
        self.read_as: np.dtype = INT
        # The end of each sound, in samples of the file.
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
            frames = int(sound.frames) if part.frames is None else part.frames
            if frames >= UNKNOWN_FRAMES:
                raise Reject(
                    "truncated: the header states no length, and the last frame is incomplete"
                )
            self.frames += frames
            self.stops.append(self.frames)
        self.dtype = self.read_as if self.channels == 1 else FLOAT
        self.buffers = buffers
        # The buffer begins with the samples [first, read) of the file.
        self.first = self.read = 0
        if self.frames == 0:
            raise Reject("no samples: the file has a header, but no sound")

    def span(self, start: int, stop: int) -> np.ndarray:
        """Samples `[start, stop)` of the file; drops the samples before `start`."""
        while self.read < stop:
            self._drop_before(start)
            self._read_block()
        return self.buffers[self.dtype][start - self.first : stop - self.first]

    def finish(self) -> None:
        """Reads the remaining samples, which may be missing or invalid."""
        while self.read < self.frames:
            self._drop_before(self.read)
            self._read_block()

    def _drop_before(self, start: int) -> None:
        buffer, first = self.buffers[self.dtype], min(start, self.read)
        if first > self.first:
            buffer[: self.read - first] = buffer[first - self.first : self.read - self.first]
            self.first = first

    def _read_block(self) -> None:
        channels, offset = self.channels, self.read - self.first
        number = bisect_right(self.stops, self.read)
        sound = self.sounds[number]
        count = min(self.stops[number] - self.read, max(BLOCK // channels, 1))
        buffer = self.buffers[self.dtype]
        if len(buffer) < offset + count:
            buffer = np.concatenate([buffer, np.empty(offset + count, self.dtype)])
            self.buffers[self.dtype] = buffer
        target = buffer[offset : offset + count]
        if channels == 1:
            block = sound.read(out=target)
        else:
            block = sound.read(count, dtype=self.read_as.name, always_2d=True)
        if len(block) < count:
            there = self.read + len(block)
            raise Reject(
                f"truncated: the header states {self.frames} samples, the file has {there}"
            )
        if self.read_as == FLOAT:
            _reject_invalid(block, self.read / self.rate)
        if channels > 1:
            np.matmul(as_float(block), np.full(channels, 1 / channels, FLOAT), out=target)
        self.read += count


def _reject_invalid(block: np.ndarray, seconds: float) -> None:
    peak = max(float(block.max()), -float(block.min()))
    if not np.isfinite(peak):
        raise Reject(f"NaN or infinite samples: {int((~np.isfinite(block)).sum())} of {block.size}")
    if peak > LARGEST_SAMPLE:
        raise Reject(f"samples up to {peak:.3g}, while full scale is 1")


def as_float(samples: np.ndarray) -> np.ndarray:
    """Converts int16 or float32 samples to float32 with full scale at 1."""
    return samples if samples.dtype == FLOAT else np.multiply(samples, FLOAT.type(1 / 32768))
