"""Sound files, damaged in every way a disk, a download or another program knows, by a seed."""

import io
import struct
from collections.abc import Callable, Iterator

import numpy as np
import soundfile

Bytes = bytes | bytearray
Damage = Callable[[bytearray, np.random.Generator], Bytes]

RATE = 8000
# Bytes in which most of what a file says of itself stands.
HEADER = 100
# What counts and sizes hold when somebody lied about them.
LIES = (0, 1, 2, 3, 7, 255, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)

# Name, format, subtype, channels; the ending of the name is the one that people give such a file.
KINDS = (
    ("u8.wav", "WAV", "PCM_U8", 1),
    ("16.wav", "WAV", "PCM_16", 1),
    ("16-stereo.wav", "WAV", "PCM_16", 2),
    ("16-eight.wav", "WAV", "PCM_16", 8),
    ("24.wav", "WAV", "PCM_24", 1),
    ("32.wav", "WAV", "PCM_32", 2),
    ("float.wav", "WAV", "FLOAT", 1),
    ("double.wav", "WAV", "DOUBLE", 2),
    ("ulaw.wav", "WAV", "ULAW", 1),
    ("alaw.wav", "WAV", "ALAW", 1),
    ("ima.wav", "WAV", "IMA_ADPCM", 2),
    ("ms.wav", "WAV", "MS_ADPCM", 1),
    ("gsm.wav", "WAV", "GSM610", 1),
    ("wavex.wav", "WAVEX", "PCM_24", 8),
    ("rf64.wav", "RF64", "PCM_16", 1),
    ("16.flac", "FLAC", "PCM_16", 1),
    ("24.flac", "FLAC", "PCM_24", 2),
    ("vorbis.ogg", "OGG", "VORBIS", 1),
    ("opus.ogg", "OGG", "OPUS", 2),
    ("three.mp3", "MP3", "MPEG_LAYER_III", 1),
    ("16.aiff", "AIFF", "PCM_16", 2),
    ("float.aif", "AIFF", "FLOAT", 1),
)
# What libsndfile also knows, and takes for what it is under any name.
RARE_KINDS = (
    ("g721.wav", "WAV", "G721_32", 1),
    ("nms.wav", "WAV", "NMS_ADPCM_24", 1),
    ("ima.aiff", "AIFF", "IMA_ADPCM", 1),
    ("g723.au", "AU", "G723_24", 1),
    ("alac.caf", "CAF", "ALAC_16", 2),
    ("16.caf", "CAF", "PCM_16", 1),
    ("16.avr", "AVR", "PCM_16", 1),
    ("16.htk", "HTK", "PCM_16", 1),
    ("16.svx", "SVX", "PCM_16", 1),
    ("double.mat4", "MAT4", "DOUBLE", 1),
    ("16.mat5", "MAT5", "PCM_16", 2),
    ("16.mpc", "MPC2K", "PCM_16", 1),
    ("24.paf", "PAF", "PCM_24", 1),
    ("16.pvf", "PVF", "PCM_16", 1),
    ("24.sds", "SDS", "PCM_24", 1),
    ("16.ircam", "IRCAM", "PCM_16", 2),
    ("16.voc", "VOC", "PCM_16", 1),
    ("ms.w64", "W64", "MS_ADPCM", 1),
    ("16.nist", "NIST", "PCM_16", 1),
    ("alaw.wve", "WVE", "ALAW", 1),
    ("dpcm.xi", "XI", "DPCM_16", 1),
)


def good_files(kinds: tuple[tuple[str, str, str, int], ...] = KINDS) -> dict[str, bytes]:
    """A quarter of a second of noise in every kind of file, by name."""
    sound = 0.1 * np.random.default_rng(0).standard_normal((RATE // 4, 8))
    files = {}
    for name, container, subtype, channels in kinds:
        file = io.BytesIO()
        soundfile.write(file, sound[:, :channels], RATE, subtype=subtype, format=container)
        files[name] = file.getvalue()
    return files


def damaged_files(
    count: int, seed: int, kinds: tuple[tuple[str, str, str, int], ...] = KINDS
) -> Iterator[tuple[str, bytes]]:
    """Files of every kind, damaged in every way, in turn.

    Yields:
        A name that says what was done, and the bytes.
    """
    rng = np.random.default_rng(seed)
    good = good_files(kinds)
    pairs = [(name, damage) for damage in DAMAGES for name in good]
    for number in range(count):
        if number % len(pairs) == 0:
            rng.shuffle(pairs)
        name, damage = pairs[number % len(pairs)]
        data = bytes(damage(bytearray(good[name]), rng))
        yield f"{number:05d}-{damage.__name__}-{name}", data


def flipped_header(data: bytearray, rng: np.random.Generator) -> Bytes:
    """Some bits of the first bytes are turned."""
    return _flip(data, rng.integers(0, min(HEADER, len(data)), rng.integers(1, 6)), rng)


def flipped_body(data: bytearray, rng: np.random.Generator) -> Bytes:
    """One byte in a hundred is another."""
    return _flip(data, rng.integers(0, len(data), 1 + len(data) // 100), rng)


def _flip(data: bytearray, places: np.ndarray, rng: np.random.Generator) -> Bytes:
    for place in places:
        data[place] ^= int(rng.integers(1, 256))
    return data


def cut_in_the_header(data: bytearray, rng: np.random.Generator) -> Bytes:
    """Only the very first bytes are there."""
    return data[: rng.integers(1, min(HEADER, len(data)))]


def cut(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A download that stopped."""
    return data[: rng.integers(1, len(data))]


def cut_near_the_end(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A few bytes are missing."""
    return data[: -rng.integers(1, 12)]


def hole(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A piece in the middle is missing."""
    start, stop = sorted(rng.integers(0, len(data), 2))
    del data[start:stop]
    return data


def zeroed(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A block of the disk was never written."""
    start = rng.integers(0, len(data))
    size = min(512, len(data) - start)
    data[start : start + size] = bytes(size)
    return data


def swapped(data: bytearray, rng: np.random.Generator) -> Bytes:
    """Two pieces stand in each other's place."""
    a, b, c = sorted(rng.integers(0, len(data), 3))
    return data[:a] + data[b:c] + data[a:b] + data[c:]


def junk_behind(data: bytearray, rng: np.random.Generator) -> Bytes:
    """The file goes on with what is no sound."""
    return data + rng.bytes(rng.integers(1, 600))


def junk_before(data: bytearray, rng: np.random.Generator) -> Bytes:
    """The sound begins somewhere in the file."""
    return rng.bytes(rng.integers(1, 600)) + data


def twice(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A whole file, and the beginning of it once more."""
    return data + data[: rng.integers(1, len(data))]


def lie(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A number of the header is another: two, four or eight bytes in either order."""
    for _ in range(rng.integers(1, 3)):
        value = LIES[rng.integers(len(LIES))]
        size = int(rng.choice([2, 4, 8]))
        order = "little" if rng.integers(2) else "big"
        place = 2 * int(rng.integers(2, HEADER // 2))
        data[place : place + size] = (value % (1 << 8 * size)).to_bytes(size, order)
    return data


def wrong_format(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A field of a wav's `fmt ` chunk tells another story; other files get a lie."""
    start = data.find(b"fmt ") + 8
    if start < 8:
        return lie(data, rng)
    fields: tuple[tuple[str, int, tuple[int, ...]], ...] = (
        ("<H", 0, (0, 2, 3, 6, 7, 0x11, 0x31, 0x50, 0x55, 0x1234, 0xFFFE)),  # the format's tag
        ("<H", 2, (0, 2, 255, 1000, 1024, 0xFFFF)),  # channels
        ("<I", 4, (0, 1, 7, 192000, 2**31 - 1, 2**31, 2**32 - 1)),  # Hz
        ("<I", 8, (0, 1, 2**32 - 1)),  # bytes a second
        ("<H", 12, (0, 1, 3, 1000, 0xFFFF)),  # bytes of one sample of all channels
        ("<H", 14, (0, 1, 7, 12, 33, 64, 255, 0xFFFF)),  # bits
        ("<I", -4, (0, 1, 14, 15, 17, 40, 2**31, 2**32 - 1)),  # size of the chunk
    )
    code, offset, values = fields[rng.integers(len(fields))]
    struct.pack_into(code, data, start + offset, values[rng.integers(len(values))])
    return data


def wrong_size(data: bytearray, rng: np.random.Generator) -> Bytes:
    """A chunk of a wav or aiff is larger or smaller than it says; other files get a lie."""
    names = [b"RIFF", b"data", b"fmt ", b"fact", b"FORM", b"COMM", b"SSND", b"ds64"]
    places = [data.find(name) for name in names if name in data]
    if not places:
        return lie(data, rng)
    place = places[rng.integers(len(places))] + 4
    order = "big" if data.startswith(b"FORM") else "little"
    true = int.from_bytes(data[place : place + 4], order)
    value = (*LIES, true - 1, true + 1, 2 * true)[rng.integers(len(LIES) + 3)]
    data[place : place + 4] = (value % 2**32).to_bytes(4, order)
    return data


def strange_chunks(data: bytearray, rng: np.random.Generator) -> Bytes:
    """Chunks of no known name, with false sizes, within each other, before the rest of a wav."""
    chunks = bytearray()
    for _ in range(rng.integers(1, 30)):
        body = rng.bytes(rng.integers(0, 40))
        size = len(body) if rng.integers(4) else LIES[rng.integers(len(LIES))]
        name = (b"LIST", b"JUNK", b"bext", b"cue ", b"smpl", b"PEAK", b"RIFF", rng.bytes(4))
        chunks += name[rng.integers(len(name))] + struct.pack("<I", size) + body
        chunks += b"LIST" + struct.pack("<I", len(chunks)) + b"INFO" if not rng.integers(5) else b""
    return data[:12] + chunks + data[12:]


DAMAGES: tuple[Damage, ...] = (
    flipped_header, flipped_body, cut_in_the_header, cut, cut_near_the_end, hole, zeroed, swapped,
    junk_behind, junk_before, twice, lie, wrong_format, wrong_size, strange_chunks,
)  # fmt: skip
