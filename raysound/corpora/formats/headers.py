"""The bytes of sound that a header promises, against those that are there."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import BinaryIO, Literal, NamedTuple

from raysound.corpora.formats.views import BLOCK, Part, Piece, ReadAt, view

# A program that writes to a pipe does not know the size. It writes 0 instead, or a number near the
# largest that fits (0x7FFFFFFF, 0xFFFFFFFF, minus the size of the header) …
UNKNOWN_SIZE = 0x7FFF0000
# … or a round number far beyond what it will write: at least so many bytes, and so many times more
# than the file holds.
FAR_SIZE, FAR_RATIO = 100_000_000, 100
# Bytes behind the sound that are neither a chunk nor padding, as a share of the sound: with more
# than this, the size in the header is wrong.
LARGEST_REST = 0.05
# No walk through a damaged file goes on for ever.
MOST_CHUNKS = 1000
NAME = re.compile(rb"[ -~]{4}")


@dataclass(frozen=True)
class Container:
    """How a format lays out its chunks.

    Attributes:
        first: where the first chunk begins; 0 for a file without chunks.
        order: of the bytes of a size, `little` or `big`.
        sound: name of the chunk with the sound.
        name: bytes of a chunk's name; the first four identify it.
        width: bytes of a chunk's size.
        aligned: chunks begin at multiples of it.
        before: bytes between the size of that chunk and its sound.
        whole: the size is that of the whole chunk, name and size included.
    """

    first: int
    order: Literal["little", "big"]
    sound: bytes = b"data"
    name: int = 4
    width: int = 4
    aligned: int = 2
    before: int = 0
    whole: bool = False


WAV = Container(12, "little")
RF64 = Container(12, "little")
# The name that broadcasters gave RF64; libsndfile knows the older one.
BW64 = Container(12, "little")
AIFF = Container(12, "big", b"SSND", before=8)
SVX = Container(12, "big", b"BODY")
# These have no chunks.
AU = Container(0, "big")
AU_HEADER = 24
NIST = Container(0, "little")
NIST_NUMBER = re.compile(rb"^(\w+) -i (\d{1,18})\s*$", re.MULTILINE)
# By the first four bytes of a file, or by the four that follow after "FORM" and its size.
CONTAINERS = {
    b"RIFF": WAV,
    b"RIFX": Container(12, "big"),
    b"RF64": RF64,
    b"BW64": BW64,
    b"riff": Container(40, "little", name=16, width=8, aligned=8, whole=True),
    b"AIFF": AIFF,
    b"AIFC": AIFF,
    b"8SVX": SVX,
    b"16SV": SVX,
    b".snd": AU,
    b"NIST": NIST,
    b"caff": Container(8, "big", width=8, aligned=1, before=4),
}


class AudioChunk(NamedTuple):
    """Where the sound of a file stands, by its header.

    Attributes:
        start: its first byte.
        promised: bytes.
        size_at: where the header says so.
        width: bytes of that number.
        surplus: what that number counts besides the sound.
        pads: where a byte is missing that should follow a chunk of odd size.
    """

    start: int
    promised: int
    size_at: int
    width: int = 4
    surplus: int = 0
    pads: tuple[int, ...] = ()


def layout(head: bytes) -> Container | None:
    """How a file that begins with these 12 bytes is laid out; None if no size is looked for."""
    known = CONTAINERS.get(head[8:12] if head[:4] == b"FORM" else head[:4])
    return None if known is WAV and head[8:12] != b"WAVE" else known


def first_part(
    file: BinaryIO, size: int, read_at: ReadAt, laid: Container | None
) -> tuple[Part, int]:
    """The first sound of a file whose header states a size.

    The rule for a stated size that differs from what the file holds:

    - It stands for an unknown length (see `is_unknown`), or it is 0 and what follows is not a chain
      of chunks: the sound is everything up to the end of the file.
    - It is larger: the file is cut short.
    - It is smaller, and more than a twentieth of the sound follows that is neither chunk nor
      zeros: the header is wrong. Otherwise what follows is ignored.
    - It is smaller, and a second file follows: the two were joined.

    Args:
        file: open for reading.
        size: of the file, in bytes.
        read_at: reads the same file.
        laid: its layout; None leaves all to libsndfile.

    Returns:
        The sound, and where a second file begins that was joined to the first; `size` for none.
    """
    sound = _find_sound(read_at, laid) if laid else None
    if laid is None or sound is None or sound.start > size:
        return Part(file), size
    held, promised = size - sound.start, sound.promised
    if promised == held and not sound.pads and laid is not BW64:
        return Part(file), size
    end, found, stated = size, 0, 0
    if promised <= held:
        rest, end = _behind(sound.start + promised, size, read_at, laid)
        if promised == 0 and rest:
            found = held
        elif rest > LARGEST_REST * promised and _has_bytes(size - rest, size, read_at):
            stated, held = promised, promised + rest
    elif is_unknown(promised, held, sound.width):
        found = held
    else:
        stated = promised
    mended = _mended(file, end, read_at, sound, laid, found)
    return Part(mended, promised=stated, held=held if stated else 0), end


def is_unknown(promised: int, held: int, width: int) -> bool:
    """True where the writer of a header did not know the size and left a number in its place.

    Such a number is near the largest that fits into the field, or it is large and more than a
    hundred times what the file holds: a download that stops is cut short by less than that.

    Args:
        promised: the size in the header, in bytes.
        held: bytes of sound in the file.
        width: of the field, in bytes.
    """
    largest = UNKNOWN_SIZE if width == 4 else 1 << 62
    return promised >= largest or promised >= max(FAR_SIZE, FAR_RATIO * held)


def _find_sound(read_at: ReadAt, laid: Container) -> AudioChunk | None:
    if laid is AU:
        start, promised = (int.from_bytes(read_at(place, 4), "big") for place in (4, 8))
        return AudioChunk(start, promised, 8) if start >= AU_HEADER else None
    if laid is NIST:
        return _find_nist(read_at(0, 1024))
    place, large = laid.first, 0
    pads: tuple[int, ...] = ()
    lead = laid.name + laid.width
    for _ in range(MOST_CHUNKS):
        head = read_at(place, lead)
        if len(head) < lead:
            break
        stated = int.from_bytes(head[laid.name :], laid.order)
        payload = max(stated - lead, 0) if laid.whole else stated
        if head[:4] == laid.sound:
            surplus = laid.before + (lead if laid.whole else 0)
            size_at, width = place + laid.name, laid.width
            if large and stated == 0xFFFFFFFF:
                size_at, width = large, 8
                payload = int.from_bytes(read_at(large, 8), "little")
            promised = max(payload - laid.before, 0)
            return AudioChunk(place + lead + laid.before, promised, size_at, width, surplus, pads)
        if head[:4] == b"ds64":
            # The sizes that don't fit into 32 bits: of the file, and of the sound.
            large = place + lead + 8
        stop = place + lead + payload
        # Bytes that are missed so far are none of those that the alignment counts.
        place = _aligned(stop + len(pads), laid) - len(pads)
        if place > stop and not NAME.match(read_at(place, 4)) and NAME.match(read_at(stop, 4)):
            place, pads = stop, (*pads, stop)
    return None


def _find_nist(head: bytes) -> AudioChunk | None:
    """A NIST SPHERE header is text: `sample_count -i 46797` and the like, in 1024 bytes."""
    fields = {name: int(value) for name, value in NIST_NUMBER.findall(head)}
    try:
        promised = fields[b"sample_count"] * fields[b"channel_count"] * fields[b"sample_n_bytes"]
    except KeyError:
        return None
    return AudioChunk(len(head), promised, 0)


def _aligned(place: int, laid: Container) -> int:
    return -(-place // laid.aligned) * laid.aligned


def _behind(stop: int, size: int, read_at: ReadAt, laid: Container) -> tuple[int, int]:
    """What follows a sound: bytes that are no chunk, and where another file begins."""
    return min(_walk(place, size, read_at, laid) for place in {stop, _aligned(stop, laid)})


def _walk(place: int, size: int, read_at: ReadAt, laid: Container) -> tuple[int, int]:
    lead = laid.name + laid.width
    for _ in range(MOST_CHUNKS):
        head = read_at(place, max(lead, 12))
        if layout(head) is not None:
            return 0, place
        if not laid.first or len(head) < lead or not NAME.match(head) or head[:4] == laid.sound:
            break
        stated = int.from_bytes(head[laid.name : lead], laid.order)
        stop = place + (stated if laid.whole else lead + stated)
        if stop > size or stop <= place:
            break
        place = _aligned(stop, laid)
    return max(size - place, 0), size


def _has_bytes(start: int, stop: int, read_at: ReadAt) -> bool:
    """Something else than zeros, with which some recorders fill up their files."""
    blocks = (read_at(place, min(BLOCK, stop - place)) for place in range(start, stop, BLOCK))
    return any(block.strip(b"\0") for block in blocks)


def _mended(
    file: BinaryIO, size: int, read_at: ReadAt, sound: AudioChunk, laid: Container, held: int
) -> BinaryIO:
    """The first `size` bytes of a file; unless `held` is 0, it stands there as the sound's size.

    The file itself, where libsndfile reads that as it should.
    """
    edits = [(place, place, b"\0") for place in sound.pads]
    if held and (sound.width == 8 or not sound.promised):
        # With the largest 32-bit number, libsndfile reads to the end of the file.
        number = held + sound.surplus if sound.width == 8 else 0xFFFFFFFF
        data = number.to_bytes(sound.width, laid.order)
        edits.append((sound.size_at, sound.size_at + sound.width, data))
    if laid is BW64:
        edits.append((0, 4, b"RF64"))
    pieces: list[Piece] = []
    first = 0
    for start, stop, data in sorted(edits):
        pieces += [(first, start), data]
        first = stop
    if not pieces and not read_at(size, 1):
        return file
    return view(file, [*pieces, (first, size)])
