"""Virtual files for the decoder, with pieces of a file omitted, added or corrected."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, BinaryIO, NamedTuple, cast

# Bytes that are read at a time to examine the structure of a file.
BLOCK = 1 << 16
# Unit of the size in the header of most formats.
BYTES = "bytes of sound"
# Bytes of memory, bytes `[start, stop)` of the file, or a number of zeros.
Piece = bytes | tuple[int, int] | int

# (start, count) → bytes of a file from `start`; fewer than `count` at the end.
ReadAt = Callable[[int, int], bytes]


class Part(NamedTuple):
    """One of the concatenated sounds of a file; most files have one.

    Attributes:
        file: the file that libsndfile reads.
        frames: samples per channel if libsndfile can't determine them; otherwise None.
        declared: amount of sound in the header if the real amount differs; otherwise 0.
        actual: real amount of sound, or 0.
        unit: unit of `declared` and `actual`.
    """

    file: BinaryIO
    frames: int | None = None
    declared: int = 0
    actual: int = 0
    unit: str = BYTES


def reader(file: BinaryIO, size: int) -> ReadAt:
    """Returns a function that reads at any position, buffered for ascending positions."""
    file.seek(0)
    first, block = 0, file.read(512)

    def read_at(start: int, count: int) -> bytes:
        nonlocal first, block
        if start >= size:
            return b""
        offset = start - first
        if offset < 0 or offset + count > len(block):
            file.seek(start)
            first, block, offset = start, file.read(max(count, BLOCK)), 0
        return block[offset : offset + count]

    return read_at


def view(file: BinaryIO, pieces: Sequence[Piece]) -> BinaryIO:
    """One buffered file from pieces of a file, bytes and zeros.

    Several views of one file may be open, as long as one thread reads them.
    """
    return cast(BinaryIO, io.BufferedReader(_View(file, pieces), BLOCK))


class _View(io.RawIOBase):
    def __init__(self, file: BinaryIO, pieces: Sequence[Piece]) -> None:
        self.file = file
        self.pieces = [piece for piece in pieces if _length(piece)]
        self.stops = [*accumulate(map(_length, self.pieces))]
        self.place = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        end = self.stops[-1] if self.stops else 0
        self.place = max(offset + (0, self.place, end)[whence], 0)
        return self.place

    def readinto(self, buffer: Any) -> int:
        number = bisect_right(self.stops, self.place)
        if number == len(self.pieces):
            return 0
        piece, left = self.pieces[number], self.stops[number] - self.place
        count = min(len(buffer), left)
        offset = _length(piece) - left
        if isinstance(piece, int):
            data = bytes(count)
        elif isinstance(piece, bytes):
            data = piece[offset : offset + count]
        else:
            self.file.seek(piece[0] + offset)
            data = self.file.read(count)
        buffer[: len(data)] = data
        self.place += len(data)
        return len(data)


def _length(piece: Piece) -> int:
    if isinstance(piece, int):
        return piece
    return len(piece) if isinstance(piece, bytes) else piece[1] - piece[0]
