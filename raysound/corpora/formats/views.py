"""A file as it is read by the decoder: in pieces that are left out, added or put right."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, BinaryIO, NamedTuple, cast

# What is read of a file at a time while its structure is examined.
BLOCK = 1 << 16
# What a header's size counts in most formats.
BYTES = "bytes of sound"
# Bytes of memory, bytes `[start, stop)` of the file, or a number of zeros.
Piece = bytes | tuple[int, int] | int

# Bytes of a file from a position on: as many as asked, or as are there.
ReadAt = Callable[[int, int], bytes]


class Part(NamedTuple):
    """One of the sounds that a file holds one after the other; most files hold one.

    Attributes:
        file: what libsndfile reads.
        frames: samples a channel, where libsndfile can't know; otherwise None.
        promised: how much sound the header states, where another amount is there; else 0.
        held: how much is there.
        unit: in which these two are counted.
    """

    file: BinaryIO
    frames: int | None = None
    promised: int = 0
    held: int = 0
    unit: str = BYTES


def reader(file: BinaryIO, size: int) -> ReadAt:
    """Reads a file of `size` bytes at any position, with as few calls as ascending ones need."""
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
    """Pieces of a file, of memory and of nothing as one file, buffered.

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
