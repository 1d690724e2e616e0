"""Compares the size of the sound in a header with the size of the file."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from raysound.corpora.formats.views import BLOCK, Part, Piece, ReadAt, view

# A program that writes to a pipe does not know the size. It writes 0, or a number near the largest
# that fits (0x7FFFFFFF, 0xFFFFFFFF, minus the size of the header) …
UNKNOWN_SIZE = 0x7FFF0000
# … or a large round number: at least FAR_SIZE bytes, and at least FAR_RATIO times the bytes of the
# file.
FAR_SIZE, FAR_RATIO = 100_000_000, 100
# Maximum share of bytes after the sound that are neither a chunk nor padding; with more, the size
# in the header is wrong.
LARGEST_REST = 0.05
# Limit for damaged files.
MOST_CHUNKS = 1000
NAME = re.compile(rb"[ -~]{4}")


@dataclass(frozen=True)
class Container:
    """The chunk layout of a format.

    Attributes:
        first: position of the first chunk; 0 for a format without chunks.
        order: byte order of sizes, `little` or `big`.
        sound: name of the chunk with the sound.
        name: bytes of a chunk's name; the first four identify it.
        width: bytes of a chunk's size field.
        aligned: chunks begin at multiples of this number.
        before: bytes between the size field of the sound chunk and the sound.
        includes_lead: True if the size includes the name and the size field.
    """

    first: int
    order: Literal["little", "big"]
    sound: bytes = b"data"
    name: int = 4
    width: int = 4
    aligned: int = 2
    before: int = 0
    includes_lead: bool = False


WAV = Container(12, "little")
RF64 = Container(12, "little")
# The newer name of RF64; libsndfile reads only the older one.
BW64 = Container(12, "little")
AIFF = Container(12, "big", b"SSND", before=8)
SVX = Container(12, "big", b"BODY")
# These have no chunks.
AU = Container(0, "big")
AU_HEADER = 24
NIST = Container(0, "little")
NIST_NUMBER = re.compile(rb"^(\w+) -i (\d{1,18})\s*$", re.MULTILINE)
# Key: the first four bytes of a file, or the four bytes after "FORM" and its size.
CONTAINERS = {
    b"RIFF": WAV,
    b"RIFX": Container(12, "big"),
    b"RF64": RF64,
    b"BW64": BW64,
    b"riff": Container(40, "little", name=16, width=8, aligned=8, includes_lead=True),
    b"AIFF": AIFF,
    b"AIFC": AIFF,
    b"8SVX": SVX,
    b"16SV": SVX,
    b".snd": AU,
    b"NIST": NIST,
    b"caff": Container(8, "big", width=8, aligned=1, before=4),
}


class AudioChunk(NamedTuple):
    """The position and size of the sound, from the header of a file.

    Attributes:
        start: first byte of the sound.
        declared: size of the sound in bytes.
        size_at: position of the size field.
        width: bytes of the size field.
        surplus: bytes that the size field counts in addition to the sound.
        pads: positions of missing padding bytes after chunks of odd size.
    """

    start: int
    declared: int
    size_at: int
    width: int = 4
    surplus: int = 0
    pads: tuple[int, ...] = ()


def layout(head: bytes) -> Container | None:
    """The layout of a file that begins with these 12 bytes; None if its size is not checked."""
    known = CONTAINERS.get(head[8:12] if head[:4] == b"FORM" else head[:4])
    return None if known is WAV and head[8:12] != b"WAVE" else known


def first_part(
    file: BinaryIO, size: int, read_at: ReadAt, container: Container | None
) -> tuple[Part, int]:
    """Finds the first sound of a file whose header contains a size.

    If the size in the header differs from the size of the file:

    - An unknown length (see `is_unknown`), or 0 without chunks after it: the sound extends to the
      end of the file.
    - A larger size: the file is truncated.
    - A smaller size, followed by more than LARGEST_REST of the sound that is neither chunk nor
      zeros: the header is wrong. Less than that is ignored.
    - A smaller size, followed by a second file: the files were concatenated.

    Args:
        file: open for reading.
        size: size of the file in bytes.
        read_at: reads the same file.
        container: layout of the file; None to use the length that libsndfile finds.

    Returns:
        The sound, and the start of a second, concatenated file; `size` if there is none.
    """
    sound = _find_sound(read_at, container) if container else None
    if container is None or sound is None or sound.start > size:
        return Part(file), size
    actual, declared = size - sound.start, sound.declared
    if declared == actual and not sound.pads and container is not BW64:
        return Part(file), size
    end, found, stated = size, 0, 0
    if declared <= actual:
        rest, end = _behind(sound.start + declared, size, read_at, container)
        if declared == 0 and rest:
            found = actual
        elif rest > LARGEST_REST * declared and _has_bytes(size - rest, size, read_at):
            stated, actual = declared, declared + rest
    elif is_unknown(declared, actual, sound.width):
        found = actual
    else:
        stated = declared
    corrected = _corrected(file, end, read_at, sound, container, found)
    return Part(corrected, declared=stated, actual=actual if stated else 0), end


def is_unknown(declared: int, actual: int, width: int) -> bool:
    """True if the size in a header is a placeholder, because the writer did not know the size.

    A placeholder is near the largest number that fits into the field, or it is large and at least
    FAR_RATIO times the bytes of sound in the file; incomplete downloads lack less than that.

    Args:
        declared: size in the header, in bytes.
        actual: bytes of sound in the file.
        width: bytes of the size field.
    """
    largest = UNKNOWN_SIZE if width == 4 else 1 << 62
    return declared >= largest or declared >= max(FAR_SIZE, FAR_RATIO * actual)


def _find_sound(read_at: ReadAt, container: Container) -> AudioChunk | None:
    if container is AU:
        start, declared = (int.from_bytes(read_at(place, 4), "big") for place in (4, 8))
        return AudioChunk(start, declared, 8) if start >= AU_HEADER else None
    if container is NIST:
        return _find_nist(read_at(0, 1024))
    place, large = container.first, 0
    pads: tuple[int, ...] = ()
    lead = container.name + container.width
    for _ in range(MOST_CHUNKS):
        head = read_at(place, lead)
        if len(head) < lead:
            break
        stated = int.from_bytes(head[container.name :], container.order)
        payload = max(stated - lead, 0) if container.includes_lead else stated
        if head[:4] == container.sound:
            surplus = container.before + (lead if container.includes_lead else 0)
            size_at, width = place + container.name, container.width
            if large and stated == 0xFFFFFFFF:
                size_at, width = large, 8
                payload = int.from_bytes(read_at(large, 8), "little")
            declared = max(payload - container.before, 0)
            return AudioChunk(
                place + lead + container.before, declared, size_at, width, surplus, pads
            )
        if head[:4] == b"ds64":
            # This chunk has the 64-bit sizes of the file and of the sound.
            large = place + lead + 8
        stop = place + lead + payload
        # The alignment includes missing padding bytes.
        place = _aligned(stop + len(pads), container) - len(pads)
        if place > stop and not NAME.match(read_at(place, 4)) and NAME.match(read_at(stop, 4)):
            place, pads = stop, (*pads, stop)
    return None


def _find_nist(head: bytes) -> AudioChunk | None:
    """Parses a NIST SPHERE header: text such as `sample_count -i 46797` in 1024 bytes."""
    fields = {name: int(value) for name, value in NIST_NUMBER.findall(head)}
    try:
        declared = fields[b"sample_count"] * fields[b"channel_count"] * fields[b"sample_n_bytes"]
    except KeyError:
        return None
    return AudioChunk(len(head), declared, 0)


def _aligned(place: int, container: Container) -> int:
    return -(-place // container.aligned) * container.aligned


def _behind(stop: int, size: int, read_at: ReadAt, container: Container) -> tuple[int, int]:
    """The number of bytes after a sound that are not chunks, and the start of another file."""
    return min(
        _walk(place, size, read_at, container) for place in {stop, _aligned(stop, container)}
    )


def _walk(place: int, size: int, read_at: ReadAt, container: Container) -> tuple[int, int]:
    lead = container.name + container.width
    for _ in range(MOST_CHUNKS):
        head = read_at(place, max(lead, 12))
        if layout(head) is not None:
            return 0, place
        if (
            not container.first
            or len(head) < lead
            or not NAME.match(head)
            or head[:4] == container.sound
        ):
            break
        stated = int.from_bytes(head[container.name : lead], container.order)
        stop = place + (stated if container.includes_lead else lead + stated)
        if stop > size or stop <= place:
            break
        place = _aligned(stop, container)
    return max(size - place, 0), size


def _has_bytes(start: int, stop: int, read_at: ReadAt) -> bool:
    """True if some bytes are not zero; some recorders pad files with zeros."""
    blocks = (read_at(place, min(BLOCK, stop - place)) for place in range(start, stop, BLOCK))
    return any(block.strip(b"\0") for block in blocks)


def _corrected(
    file: BinaryIO, size: int, read_at: ReadAt, sound: AudioChunk, container: Container, actual: int
) -> BinaryIO:
    """The first `size` bytes of a file with a corrected header.

    Unless `actual` is 0, it becomes the size of the sound. If no correction is needed, this is the
    file itself.
    """
    edits = [(place, place, b"\0") for place in sound.pads]
    if actual and (sound.width == 8 or not sound.declared):
        # With the largest 32-bit number, libsndfile reads to the end of the file.
        number = actual + sound.surplus if sound.width == 8 else 0xFFFFFFFF
        data = number.to_bytes(sound.width, container.order)
        edits.append((sound.size_at, sound.size_at + sound.width, data))
    if container is BW64:
        edits.append((0, 4, b"RF64"))
    pieces: list[Piece] = []
    first = 0
    for start, stop, data in sorted(edits):
        pieces += [(first, start), data]
        first = stop
    if not pieces and not read_at(size, 1):
        return file
    return view(file, [*pieces, (first, size)])
