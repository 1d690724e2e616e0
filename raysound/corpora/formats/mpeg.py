"""The frames of MPEG audio (MP3 above all), counted.

libsndfile takes the length of an MP3 from the count in its first frame, the Xing or Info tag, and
reads no further; where there is none, it estimates the length from the bit rate of one frame. The
count is missing or wrong in files that were streamed, cut or joined, and the bit rate of one frame
says nothing of the others.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from raysound.corpora.formats.views import BLOCK, Part, Piece, ReadAt, view

# kbit/s by the index in the header, of MPEG-1 and of MPEG-2 and 2.5, layers I to III.
BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)
# Frames of one kind in a row that are taken for sound where anything may stand.
CHAIN = 3
# A frame's header, the side information behind it and the tag that may stand there instead.
HEAD = 64
TAGS = (b"Xing", b"Info")
VBRI_AT = 36
# The first frame begins before so many bytes, not counting a tag: what is no sound is not searched.
LARGEST_JUNK = 1 << 16
# What a frame, an ID3 or an APE tag begins with.
SYNC = re.compile(rb"\xff[\xe2-\xff]|ID3|TAG|APETAGEX")


class Frame(NamedTuple):
    """What a frame's four bytes of header say.

    Attributes:
        kind: equal in all frames of one stream: version, layer, rate, mono or stereo.
        length: bytes.
        samples: a channel.
        tag: where in the frame a Xing or Info tag would stand.
    """

    kind: int
    length: int
    samples: int
    tag: int


@dataclass
class Stream:
    """Frames of one kind.

    Attributes:
        first: its first frame of sound.
        tag: bytes of the frame before them whose Xing or Info tag states their number, if any.
        count: where in these bytes the number stands.
        runs: first byte and the byte behind the last one, of frames that follow each other.
        frames: how many, the tag left out.
        is_cut: the last frame is not all there.
    """

    first: Frame
    tag: bytes = b""
    count: int = 0
    runs: list[list[int]] = field(default_factory=list)
    frames: int = 0
    is_cut: bool = False

    def add(self, start: int, stop: int, count: int, first: Frame) -> None:
        """Frames of sound that fill the bytes `[start, stop)`."""
        if not self.frames:
            self.first = first
        self.frames += count
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1][1] = stop
        else:
            self.runs.append([start, stop])

    @property
    def promised(self) -> int:
        """Frames that the tag states; 0 for none."""
        return int.from_bytes(self.tag[self.count : self.count + 4], "big") if self.count else 0


@lru_cache(maxsize=1 << 12)
def parse_header(header: bytes) -> Frame | None:
    """Reads the four bytes before each frame (ISO/IEC 11172-3, 2.4.1.3); None if they are none.

    Frames of a free bit rate, whose length does not stand in the header, are None, too.
    """
    bits = int.from_bytes(header, "big")
    version, layer = 4 - (bits >> 19 & 3), 4 - (bits >> 17 & 3)
    bitrate, rate, padding = bits >> 12 & 15, bits >> 10 & 3, bits >> 9 & 1
    if bits >> 21 != 0x7FF or version == 3 or layer == 4 or bitrate in (0, 15) or rate == 3:
        return None
    is_first = version == 1
    hertz = RATES[rate] // version
    bits_per_second = 1000 * BITRATES[1 if is_first else 2, layer][bitrate - 1]
    mono = bits >> 6 & 3 == 3
    samples = 384 if layer == 1 else 1152 if layer == 2 or is_first else 576
    unit = 4 if layer == 1 else 1
    length = (samples // 8 // unit * bits_per_second // hertz + padding) * unit
    side = (17 if mono else 32) if is_first else (9 if mono else 17)
    return Frame(bits & 0xFFFE0C00 | mono, length, samples, 4 + side if layer == 3 else 0)


def mpeg_parts(file: BinaryIO, size: int, read_at: ReadAt) -> list[Part]:
    """The sounds of a file of MPEG audio, each with its true length; none if no frames are found.

    Joined files are several. Tags and what is no frame are left out.

    Args:
        file: open for reading.
        size: of the file, in bytes.
        read_at: reads the same file.
    """
    found = streams(size, read_at)
    if len(found) == 1 and _is_right(found[0], read_at):
        return [Part(file)]
    return [_part(file, stream) for stream in found]


def _is_right(stream: Stream, read_at: ReadAt) -> bool:
    """True where libsndfile reads the file as it is, and all of it."""
    begins = stream.runs[0][0] - len(stream.tag) == tag_end(0, read_at)
    return begins and len(stream.runs) == 1 and 0 < stream.frames == stream.promised


def _part(file: BinaryIO, stream: Stream) -> Part:
    promised, frames = stream.promised, stream.frames
    sound: list[Piece] = [(start, stop) for start, stop in stream.runs]
    # Some encoders count the frame of the tag. What lacks more frames is cut short.
    if promised > frames + 1 or (promised == frames + 1 and stream.is_cut):
        tagged = view(file, [stream.tag, *sound])
        return Part(tagged, promised=promised, held=frames, unit="frames of MPEG audio")
    if stream.count:
        tag = (
            stream.tag[: stream.count] + frames.to_bytes(4, "big") + stream.tag[stream.count + 4 :]
        )
        return Part(view(file, [tag, *sound]))
    # Without a tag, libsndfile divides the size of the file by that of the first frame and reads no
    # further. Zeros at the end make this estimate large enough; they are never decoded.
    zeros = (frames + 2) * (stream.first.length + 8) + BLOCK
    return Part(view(file, [*sound, zeros]), frames * stream.first.samples)


def streams(size: int, read_at: ReadAt) -> list[Stream]:
    """Finds all frames of a file of `size` bytes, in streams of one kind."""
    found: list[Stream] = []
    stream: Stream | None = None
    for place, stop, count, head, frame in _frames(size, read_at):
        tag = _tag(head, frame)
        if stream is None or tag or frame.kind != stream.first.kind:
            stream = Stream(frame)
            found.append(stream)
        if stop > size:
            stream.is_cut = True
        elif tag:
            # Flags say which numbers follow; libsndfile can use no tag without the first one.
            is_whole = frame.length >= tag + 12 and head[tag : tag + 4] in TAGS
            has_count = is_whole and head[tag + 7] & 1
            stream.tag, stream.count = (
                (read_at(place, frame.length), tag + 8) if has_count else (b"", 0)
            )
        else:
            stream.add(place, stop, count, frame)
    return [stream for stream in found if stream.frames]


def _frames(size: int, read_at: ReadAt) -> Iterator[tuple[int, int, int, bytes, Frame]]:
    """Finds frames of one kind in a row; the very last one may be cut.

    Yields:
        Where they begin and end, how many, the first bytes of the first one and what these say.
    """
    place, kind = 0, 0
    limit = tag_end(0, read_at) + LARGEST_JUNK
    while place + 4 <= min(size, limit):
        head = read_at(place, HEAD)
        frame = parse_header(head[:4])
        if frame is not None and (frame.kind == kind or _is_chain(place, size, read_at)):
            stop, count = place + frame.length, 1
            if not _tag(head, frame):
                stop, count = _follow(stop, count, frame, read_at)
            yield place, stop, count, head, frame
            place, kind, limit = stop, frame.kind, size
        elif (end := tag_end(place, read_at)) > place:
            place = end
        else:
            # Until frames follow each other again, no single one is believed.
            place, kind = _next_sync(place + 1, size, read_at), 0


def _follow(place: int, count: int, first: Frame, read_at: ReadAt) -> tuple[int, int]:
    """Goes on over whole frames of sound of the same kind, as far as one block of the file."""
    block, start, kind, tag = read_at(place, BLOCK), 0, first.kind, first.tag
    while (frame := parse_header(block[start : start + 4])) and frame.kind == kind:
        stop = start + frame.length
        at_tag = block[start + tag : start + tag + 4] in TAGS
        if stop > len(block) or at_tag or block[start + VBRI_AT : start + VBRI_AT + 4] == b"VBRI":
            break
        start, count = stop, count + 1
    return place + start, count


def _is_chain(place: int, size: int, read_at: ReadAt) -> bool:
    """True where frames of one kind stand in a row, or at least one before the end or a tag."""
    kind = None
    for _ in range(CHAIN):
        frame = parse_header(read_at(place, 4))
        if frame is None or (kind is not None and frame.kind != kind):
            return kind is not None and (place >= size or tag_end(place, read_at) > place)
        place, kind = place + frame.length, frame.kind
    return True


def _next_sync(place: int, size: int, read_at: ReadAt) -> int:
    """The next place where a frame or a tag may begin; the end if there is none."""
    while place < size:
        block = read_at(place, BLOCK)
        if found := SYNC.search(block):
            return place + found.start()
        # A word may begin in this block and end in the next one.
        place += max(len(block) - 8, 1)
    return size


def _tag(head: bytes, frame: Frame) -> int:
    """Where in a frame without sound the tag with its number of frames begins; 0 for no tag."""
    if frame.tag and head[frame.tag : frame.tag + 4] in TAGS and not any(head[6 : frame.tag]):
        return frame.tag
    return VBRI_AT if head[VBRI_AT : VBRI_AT + 4] == b"VBRI" else 0


def tag_end(place: int, read_at: ReadAt) -> int:
    """Where a tag with title, picture and the like ends (ID3, APE); `place` where none begins."""
    head = read_at(place, 32)
    if head[:3] == b"ID3" and len(head) > 9 and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return place + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX":
        is_header = len(head) == 32 and head[23] & 0x20
        return place + 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
    return place + 128 if head[:3] == b"TAG" else place
