"""Finds the sounds of a file, in playback order."""

from __future__ import annotations

from itertools import pairwise
from typing import BinaryIO

from raysound.corpora.formats import flac, headers, mpeg
from raysound.corpora.formats.views import BLOCK, Part, ReadAt, reader, view

# Bytes of the header of an Ogg page, without the segment table.
OGG_HEADER = 27


def find_parts(file: BinaryIO, size: int) -> list[Part]:
    """Finds the sounds of a file: one, or several in concatenated files.

    Args:
        file: open for reading, not empty. Its position changes.
        size: size of the file in bytes.

    Returns:
        At least one part. A file of another format, or without sound, is one part.
    """
    read_at = reader(file, size)
    head = read_at(0, 12)
    if (container := headers.layout(head)) is not None:
        return _chunked(file, size, read_at, container)
    if head[:4] == b"OggS":
        return _ogg(file, size, read_at)
    if head[:4] == b"fLaC" or read_at(mpeg.tag_end(0, read_at), 4) == b"fLaC":
        return flac.flac_parts(file, size, read_at)
    return mpeg.mpeg_parts(file, size, read_at) or [Part(file)]


def _chunked(
    file: BinaryIO, size: int, read_at: ReadAt, container: headers.Container
) -> list[Part]:
    part, end = headers.first_part(file, size, read_at, container)
    found = [part]
    while end < size:
        rest = view(file, [(end, size)])
        read_at = reader(rest, size - end)
        part, length = headers.first_part(rest, size - end, read_at, headers.layout(read_at(0, 12)))
        found.append(part)
        end += length
    return found


def _ogg(file: BinaryIO, size: int, read_at: ReadAt) -> list[Part]:
    """Reads the pages (RFC 3533); a first page after other pages begins a chained stream."""
    starts, place, begins = [0], 0, True
    while place + OGG_HEADER <= size:
        head = read_at(place, OGG_HEADER + 255)
        if head[:4] != b"OggS":
            place = _find(b"OggS", place + 1, size, read_at)
            continue
        lengths = head[OGG_HEADER : OGG_HEADER + head[26]]
        is_first = bool(head[5] & 2)
        if is_first and not begins:
            starts.append(place)
        begins = is_first
        place += OGG_HEADER + head[26] + sum(lengths)
    if place > size or read_at(place, 4) == b"OggS":
        place = max(place, size + 1)
        return [Part(file, declared=place, actual=size, unit="bytes in Ogg pages")]
    if len(starts) == 1:
        return [Part(file)]
    return [Part(view(file, [span])) for span in pairwise([*starts, size])]


def _find(word: bytes, place: int, size: int, read_at: ReadAt) -> int:
    while place < size:
        block = read_at(place, BLOCK)
        offset = block.find(word)
        if offset >= 0:
            return place + offset
        place += max(len(block) - len(word) + 1, 1)
    return size
