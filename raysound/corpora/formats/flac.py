"""The length of a FLAC stream, from its last frame.

The length in the header is 0 if the stream was written to a pipe, which libsndfile can't read, and
too small if files were concatenated. Each frame contains the position of its first sample.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import BinaryIO

from raysound.corpora.formats.views import BLOCK, Part, ReadAt, view

# A stream begins with this name and a block of 34 bytes, which may be the last metadata block.
STARTS = (b"fLaC\x00\x00\x00\x22", b"fLaC\x80\x00\x00\x22")
# Offset of 64 bits; the last 36 are the number of samples, 0 for unknown.
TOTAL_AT, TOTAL_BITS = 18, 36
# The last frame is searched in the last TAIL bytes, in steps of STEP.
TAIL, STEP = 1 << 17, 1 << 13
SYNC = re.compile(rb"\xff[\xf8\xf9]")
# Checksums that are computed before a stream counts as damaged; each takes milliseconds.
MOST_TRIES = 4
# Maximum length of a frame header.
HEADER = 16


def flac_parts(file: BinaryIO, size: int, read_at: ReadAt) -> list[Part]:
    """Finds the FLAC streams of a file, each with its true length.

    Args:
        file: open for reading.
        size: of the file, in bytes.
        read_at: reads the same file.
    """
    starts = _starts(size, read_at)
    if not starts:
        return [Part(file)]
    found = []
    # A tag may precede the first stream.
    for first, start, stop in zip([0, *starts[1:]], starts, [*starts[1:], size], strict=True):
        field = int.from_bytes(read_at(start + TOTAL_AT, 8), "big")
        total = field & ((1 << TOTAL_BITS) - 1)
        length = _length(start, stop, total, read_at)
        place = start + TOTAL_AT
        if length is None or length == total:
            found.append(Part(file if len(starts) == 1 else view(file, [(first, stop)])))
            continue
        right = (field >> TOTAL_BITS << TOTAL_BITS | length).to_bytes(8, "big")
        corrected = view(file, [(first, place), right, (place + 8, stop)])
        declared, actual = (total, length) if total > length else (0, 0)
        found.append(Part(corrected, declared=declared, actual=actual, unit="samples"))
    return found


def _starts(size: int, read_at: ReadAt) -> list[int]:
    starts = []
    for place in range(0, size, BLOCK):
        # The name may extend into the next block.
        block = read_at(place, BLOCK + 7)
        offset = block.find(b"fLaC", 0, BLOCK + 3)
        while offset >= 0:
            if block[offset : offset + 8] in STARTS:
                starts.append(place + offset)
            offset = block.find(b"fLaC", offset + 1, BLOCK + 3)
    return starts


def _length(start: int, stop: int, total: int, read_at: ReadAt) -> int | None:
    """Samples per channel of a stream, from its last frame; None if the frame is incomplete."""
    block_size = int.from_bytes(read_at(start + 8, 2), "big")
    # The last frame usually begins in the last few thousand bytes.
    last, tries = stop, MOST_TRIES
    while last > max(start, stop - TAIL):
        first = max(start, last - STEP)
        tail = read_at(first, stop - first)
        end = len(tail) - (128 if tail[-128:-125] == b"TAG" else 0)
        for match in reversed([*SYNC.finditer(tail, 0, min(last - first + 1, end))]):
            place = match.start()
            length = frame_end(tail[place:end][:HEADER], block_size)
            if length is None:
                continue
            # Random bytes that look like a frame header fail the checksum.
            if length == total or not crc(tail[place:end], 0x8005, 16):
                return length
            tries -= 1
            if not tries:
                return None
        last = first
    return None


def frame_end(header: bytes, block_size: int) -> int | None:
    """The number of the sample after a frame; None if this is not a frame header (RFC 9639, 9.1).

    Args:
        header: the first 16 bytes of the frame, or fewer at the end of the file.
        block_size: samples of each frame except the last, if the block size is fixed.
    """
    if len(header) < 6 or header[2] >> 4 == 0 or header[2] & 15 == 15:
        return None
    leading = 8 - (header[4] ^ 0xFF).bit_length()
    if leading in (1, 8):
        return None
    following = max(leading - 1, 0)
    number = header[4] & (0x7F >> leading)
    for byte in header[5 : 5 + following]:
        number = number << 6 | byte & 0x3F
    place = 5 + following
    code = header[2] >> 4
    wide = {6: 1, 7: 2}.get(code, 0)
    samples = (
        192 if code == 1 else 576 << code - 2 if code < 6 else 256 << code - 8 if code > 7
        else int.from_bytes(header[place : place + wide], "big") + 1
    )  # fmt: skip
    place += wide + {12: 1, 13: 2, 14: 2}.get(header[2] & 15, 0)
    if len(header) <= place or crc(header[:place], 0x07, 8) != header[place]:
        return None
    return (number if header[1] & 1 else number * block_size) + samples


def crc(data: bytes, polynomial: int, width: int) -> int:
    """The checksum of FLAC: most significant bit first, initial value 0, not inverted."""
    table, value, mask = _crc_table(polynomial, width), 0, (1 << width) - 1
    for byte in data:
        value = value << 8 & mask ^ table[value >> width - 8 ^ byte]
    return value


@lru_cache(maxsize=2)
def _crc_table(polynomial: int, width: int) -> list[int]:
    table = []
    for byte in range(256):
        value = byte << width - 8
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> width - 1 & 1 else 0)
            value &= (1 << width) - 1
        table.append(value)
    return table
