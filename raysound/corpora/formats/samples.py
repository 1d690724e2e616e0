"""The sounds of a file as mono samples, or the reason why they can't be used."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence

import numpy as np
import soundfile

from raysound.corpora.formats.views import BYTES, Part

# The largest sample that a float file of 32-bit integers can hold; beyond it lies no sound.
LARGEST_SAMPLE = 2.0**31
# What libsndfile says of a streamed FLAC is its largest number of samples.
UNKNOWN_FRAMES = 1 << 62
# Samples that are decoded at once, over all channels.
BLOCK = 1 << 20
INT, FLOAT = np.dtype(np.int16), np.dtype(np.float32)


class Reject(Exception):  # noqa: N818 - the word of the manifest, the summary and the report
    """A file that can't be used; its text is the reason, for a person to read."""


class Unreadable(Reject):
    """A file that the storage didn't give: perhaps it will the next time."""


class _Forwards(soundfile.SoundFile):
    """A sound file that is read from its beginning to its end."""

    def seekable(self) -> bool:
        """False: soundfile would seek to where it is after every read, and fails on good files."""
        return False


def open_part(part: Part) -> soundfile.SoundFile:
    """Opens a part.

    Raises:
        Reject: its header promises more or less sound than is there.
    """
    promised, held = part.promised, part.held
    part.file.seek(0)
    # Given its number, libsndfile reads a file itself, without a way through Python.
    is_own = isinstance(part.file, io.FileIO)
    try:
        sound = _Forwards(part.file.fileno() if is_own else part.file, closefd=not is_own)
    except soundfile.LibsndfileError:
        if promised <= held:
            raise
    else:
        # Some headers count a byte of padding that is not there.
        missing = promised - held
        if missing == 0 or (0 < missing < sound.channels and part.unit == BYTES):
            return sound
        sound.close()
    if promised > held:
        raise Reject(f"cut short: the header says {promised} {part.unit}, {held} are there")
    raise Reject(f"wrong header: it says {promised} {part.unit}, {held} are there")


def new_buffers() -> dict[np.dtype, np.ndarray]:
    """Memory that `Samples` reads into, of either type; it serves one file after another."""
    return {dtype: np.empty(2 * BLOCK, dtype) for dtype in (INT, FLOAT)}


class Samples:
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
            frames = int(sound.frames) if part.frames is None else part.frames
            if frames >= UNKNOWN_FRAMES:
                raise Reject("cut short: the header states no length, and the last frame is cut")
            self.frames += frames
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
            np.matmul(as_float(block), np.full(channels, 1 / channels, FLOAT), out=target)
        self.read += count


def _refuse_absurd(block: np.ndarray, seconds: float) -> None:
    peak = max(float(block.max()), -float(block.min()))
    if not np.isfinite(peak):
        raise Reject(f"NaN or infinite samples: {int((~np.isfinite(block)).sum())} of {block.size}")
    if peak > LARGEST_SAMPLE:
        raise Reject(f"samples up to {peak:.3g}, where sound lies within 1")


def as_float(samples: np.ndarray) -> np.ndarray:
    """Samples as float32 with full scale at 1, of int16 or float32."""
    return samples if samples.dtype == FLOAT else np.multiply(samples, FLOAT.type(1 / 32768))
