"""Counts the frames of MPEG audio (mainly MP3).

libsndfile takes the length of an MP3 from the frame count in its first frame, the Xing or Info tag,
and reads no further. Without a tag it estimates the length from the bit rate of one frame. In
streamed, cut or concatenated files the count is missing or wrong, and frames may have different bit
rates.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from typing import BinaryIO, NamedTuple

from raysound.corpora.formats.views import BLOCK, Part, Piece, ReadAt, view

# (1 for MPEG-1, 2 for MPEG-2 and 2.5; layer) → kbit/s by the index in the header.
BITRATES = {
    (1, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (1, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (1, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
RATES = (44100, 48000, 32000)
# Consecutive frames of one kind that are accepted as sound at an arbitrary position.
CHAIN = 3
# Bytes of a frame's header and side information, or of a tag in place of the side information.
HEAD = 64
TAGS = (b"Xing", b"Info")
VBRI_AT = 36
# Bytes, without a tag, in which the first frame is searched; limits the time for other files.
LARGEST_JUNK = 1 << 16
# First bytes of a frame, an ID3 tag or an APE tag.
SYNC = re.compile(rb"\xff[\xe2-\xff]|ID3|TAG|APETAGEX")


class Frame(NamedTuple):
    """The contents of the four header bytes of a frame.

    Attributes:
        kind: version, layer, rate, mono or stereo; equal in all frames of a stream.
        length: bytes of the frame.
        samples: samples per channel.
        tag: offset of a Xing or Info tag in the frame; 0 if it can't have one.
    """

    kind: int
    length: int
    samples: int
    tag: int


@dataclass
class Stream:
    """Frames of one kind.

    Attributes:
        first: first frame of sound.
        tag: bytes of the preceding frame with a Xing or Info tag, if any.
        count: offset of the number of frames in `tag`.
        runs: byte ranges [start, stop) of consecutive frames.
        frames: number of frames, without the tag.
        is_cut: True if the last frame is incomplete.
    """

    first: Frame
    tag: bytes = b""
    count: int = 0
    runs: list[list[int]] = field(default_factory=list)
    frames: int = 0
    is_cut: bool = False

    def add(self, start: int, stop: int, count: int, first: Frame) -> None:
        """Adds `count` frames of sound in the bytes `[start, stop)`."""
        if not self.frames:
            self.first = first
        self.frames += count
        if self.runs and self.runs[-1][1] == start:
            self.runs[-1][1] = stop
        else:
            self.runs.append([start, stop])

    @property
    def declared(self) -> int:
        """The number of frames in the tag; 0 without a tag."""
        return int.from_bytes(self.tag[self.count : self.count + 4], "big") if self.count else 0


@lru_cache(maxsize=1 << 12)
def parse_header(header: bytes) -> Frame | None:
    """Parses the four header bytes of a frame (ISO/IEC 11172-3, 2.4.1.3).

    Returns:
        None if this is not a header, or for a free bit rate, which does not define the length.
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
    """Finds the sounds of an MPEG audio file, each with its true length; none without frames.

    Concatenated files are several sounds. Tags and other bytes that are not frames are omitted.

    Args:
        file: open for reading.
        size: size of the file in bytes.
        read_at: reads the same file.
    """
    found = streams(size, read_at)
    if len(found) == 1 and _is_correct(found[0], read_at):
        return [Part(file)]
    return [_part(file, stream) for stream in found]


def _is_correct(stream: Stream, read_at: ReadAt) -> bool:
    """True if libsndfile reads the complete unmodified file."""
    begins = stream.runs[0][0] - len(stream.tag) == tag_end(0, read_at)
    return begins and len(stream.runs) == 1 and 0 < stream.frames == stream.declared


def _part(file: BinaryIO, stream: Stream) -> Part:
    declared, frames = stream.declared, stream.frames
    sound: list[Piece] = [(start, stop) for start, stop in stream.runs]
    # Some encoders count the frame of the tag; a file that lacks more frames is truncated.
    if declared > frames + 1 or (declared == frames + 1 and stream.is_cut):
        tagged = view(file, [stream.tag, *sound])
        return Part(tagged, declared=declared, actual=frames, unit="frames of MPEG audio")
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
    """Finds all frames of a file of `size` bytes, grouped in streams of one kind."""
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
            # Flag 1 marks the frame count; libsndfile needs it.
            is_complete = frame.length >= tag + 12 and head[tag : tag + 4] in TAGS
            has_count = is_complete and head[tag + 7] & 1
            stream.tag, stream.count = (
                (read_at(place, frame.length), tag + 8) if has_count else (b"", 0)
            )
        else:
            stream.add(place, stop, count, frame)
    return [stream for stream in found if stream.frames]


def _frames(size: int, read_at: ReadAt) -> Iterator[tuple[int, int, int, bytes, Frame]]:
    """Finds runs of frames of one kind; the last frame may be incomplete.

    Yields:
        Start, stop and number of the frames, the first bytes of the first frame and its header.
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
            # After other bytes, only consecutive frames are accepted.
            place, kind = _next_sync(place + 1, size, read_at), 0


def _follow(place: int, count: int, first: Frame, read_at: ReadAt) -> tuple[int, int]:
    """Skips complete frames of sound of the same kind, within one block of the file."""
    block, start, kind, tag = read_at(place, BLOCK), 0, first.kind, first.tag
    while (frame := parse_header(block[start : start + 4])) and frame.kind == kind:
        stop = start + frame.length
        at_tag = block[start + tag : start + tag + 4] in TAGS
        if stop > len(block) or at_tag or block[start + VBRI_AT : start + VBRI_AT + 4] == b"VBRI":
            break
        start, count = stop, count + 1
    return place + start, count


def _is_chain(place: int, size: int, read_at: ReadAt) -> bool:
    """True for consecutive frames of one kind, or at least one before the end or a tag."""
    kind = None
    for _ in range(CHAIN):
        frame = parse_header(read_at(place, 4))
        if frame is None or (kind is not None and frame.kind != kind):
            return kind is not None and (place >= size or tag_end(place, read_at) > place)
        place, kind = place + frame.length, frame.kind
    return True


def _next_sync(place: int, size: int, read_at: ReadAt) -> int:
    """The next position where a frame or a tag may begin; `size` if there is none."""
    while place < size:
        block = read_at(place, BLOCK)
        if found := SYNC.search(block):
            return place + found.start()
        # The pattern may extend into the next block.
        place += max(len(block) - 8, 1)
    return size


def _tag(head: bytes, frame: Frame) -> int:
    """The offset of the tag with the number of frames in a frame; 0 without a tag."""
    if frame.tag and head[frame.tag : frame.tag + 4] in TAGS and not any(head[6 : frame.tag]):
        return frame.tag
    return VBRI_AT if head[VBRI_AT : VBRI_AT + 4] == b"VBRI" else 0


def tag_end(place: int, read_at: ReadAt) -> int:
    """The end of a metadata tag (ID3, APE) at `place`; `place` if there is none."""
    head = read_at(place, 32)
    if head[:3] == b"ID3" and len(head) > 9 and max(head[6:10]) < 128:
        size = sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True))
        return place + 10 + size + (10 if head[5] & 0x10 else 0)
    if head[:8] == b"APETAGEX":
        is_header = len(head) == 32 and head[23] & 0x20
        return place + 32 + (int.from_bytes(head[12:16], "little") if is_header else 0)
    return place + 128 if head[:3] == b"TAG" else place
