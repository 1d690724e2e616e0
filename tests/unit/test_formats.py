"""Files with a wrong length or none in the header, and concatenated files."""

import io
import struct
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import soundfile

from raysound.audio.decode import Reject, read_clip, window_starts
from raysound.corpora.formats import mpeg, samples
from raysound.settings.features import FeatureSettings

RATE = 8000
SETTINGS = FeatureSettings(
    clip_length=0.5, sample_rate=RATE, hop_length=160, n_fft=512, n_mels=24, f_max=4000
)
# Bytes without a header or a chunk.
GARBAGE = bytes(range(128, 256)) * 6
PICTURE = np.random.default_rng(1).bytes(150_000)


@cache
def noise(seconds: float = 0.5, seed: int = 0) -> np.ndarray:
    """All parts of the noise differ."""
    return 0.2 * np.random.default_rng(seed).standard_normal(round(seconds * RATE))


@cache
def encoded(
    container: str, subtype: str = "PCM_16", endian: str = "FILE", seed: int = 0, rate: int = RATE,
    channels: int = 1, seconds: float = 0.5,
) -> bytes:  # fmt: skip
    file = io.BytesIO()
    samples = np.repeat(noise(seconds, seed)[:, np.newaxis], channels, axis=1)
    soundfile.write(file, samples, rate, format=container, subtype=subtype, endian=endian)
    return file.getvalue()


def windows(data: bytes, **changes: object) -> np.ndarray:
    return read_clip(io.BytesIO(data), SETTINGS.model_copy(update=changes)).windows


def duration(data: bytes) -> float:
    return read_clip(io.BytesIO(data), SETTINGS).duration


def reason(data: bytes) -> str:
    with pytest.raises(Reject) as caught:
        windows(data)
    return str(caught.value)


def changed(data: bytes, place: int, field: bytes) -> bytes:
    return data[:place] + field + data[place + len(field) :]


@cache
def flac(total: int | None = None, seconds: float = 0.5, subtype: str = "PCM_16") -> bytes:
    """A FLAC with `total` samples in the header: the last 36 of these 64 bits."""
    data = encoded("FLAC", subtype, seconds=seconds)
    if total is None:
        return data
    field = int.from_bytes(data[18:26], "big") >> 36 << 36 | total
    return changed(data, 18, field.to_bytes(8, "big"))


# Sizes in headers. Each function returns a file with `size` bytes of sound in its header.


def wav(size: int, subtype: str = "PCM_16", container: str = "WAV", endian: str = "FILE") -> bytes:
    data = encoded(container, subtype, endian)
    order = ">I" if endian == "BIG" else "<I"
    return changed(data, data.index(b"data") + 4, struct.pack(order, size & 0xFFFFFFFF))


def rf64(size: int) -> bytes:
    data = encoded("RF64")
    return changed(data, data.index(b"ds64") + 8, struct.pack("<3Q", *[size % 2**64] * 3))


def w64(size: int) -> bytes:
    data = encoded("W64")
    return changed(data, data.index(b"data") + 16, struct.pack("<Q", size % 2**64))


def aiff(size: int) -> bytes:
    data = encoded("AIFF")
    frames = changed(data, data.index(b"COMM") + 10, struct.pack(">I", max(size, 0) // 2 % 2**32))
    return changed(frames, data.index(b"SSND") + 4, struct.pack(">I", size % 2**32))


def au(size: int) -> bytes:
    return changed(encoded("AU"), 8, struct.pack(">I", size % 2**32))


def caf(size: int) -> bytes:
    data = encoded("CAF")
    return changed(data, data.index(b"data") + 4, struct.pack(">Q", size % 2**64))


def bw64(size: int) -> bytes:
    return changed(rf64(size), 0, b"BW64")


Sized = Callable[[int], bytes]
# Each format with the correct size.
SIZED: list[tuple[Sized, int]] = [
    (wav, 8000), (rf64, 8000), (bw64, 8000), (w64, 8024), (aiff, 8008), (au, 8000), (caf, 8004),
]  # fmt: skip


@pytest.mark.parametrize(("make", "size"), SIZED)
@pytest.mark.parametrize("unknown", [-1, 2_000_000_000, 500_000_000, 0])
def test_a_file_with_a_placeholder_size_is_read_to_the_end(make, size, unknown):
    """Programs that write to a pipe write 0, the largest number, or a placeholder."""
    # With 0, the header counts only the bytes other than sound.
    size_given = unknown or (size - 8000)
    assert np.array_equal(windows(make(size_given)), windows(encoded("WAV")))


@pytest.mark.parametrize("size", [0, -1, 0x7FFFFFFF, 0x7FFFF000, 0x80000000, 1_000_000_000])
@pytest.mark.parametrize(
    ("container", "subtype", "endian"),
    [
        ("WAV", "PCM_U8", "FILE"), ("WAV", "PCM_24", "FILE"), ("WAV", "DOUBLE", "FILE"),
        ("WAV", "ULAW", "FILE"), ("WAV", "IMA_ADPCM", "FILE"), ("WAV", "MS_ADPCM", "FILE"),
        ("WAVEX", "FLOAT", "FILE"), ("WAV", "PCM_16", "BIG"),
    ],
)  # fmt: skip
def test_wavs_of_every_subtype_are_read_without_a_size(container, subtype, endian, size):
    streamed = wav(size, subtype, container, endian)
    assert np.array_equal(windows(streamed), windows(encoded(container, subtype, endian)))


@pytest.mark.parametrize(("make", "size"), SIZED)
@pytest.mark.parametrize("missing", [2, 200, 4000, 7998])
def test_a_file_shorter_than_its_header_states_is_rejected(make, size, missing):
    """The reason names the size in the header."""
    assert "truncated: the header states 8000 bytes" in reason(make(size)[:-missing])


@pytest.mark.parametrize("size", [8001, 8002, 16_000, 1_000_000, 99_999_998])
def test_a_plausible_size_is_not_a_placeholder(size):
    """The file is an incomplete download."""
    assert (
        reason(wav(size))
        == f"truncated: the header states {size} bytes of sound, the file has 8000"
    )


@pytest.mark.parametrize("size", [120_000_000, 1_000_000_000])
def test_a_few_percent_of_a_large_recording_are_rejected(size):
    data = wav(size) + bytes(range(1, 201)) * (size // 50 // 200)
    assert "truncated" in reason(data)


def test_a_sphere_file_with_too_few_samples_is_rejected():
    data = encoded("NIST")
    assert np.array_equal(windows(data), windows(encoded("WAV")))
    assert "truncated: the header states 8000 bytes" in reason(data[:-4000])


@pytest.mark.parametrize(("make", "size"), SIZED)
def test_a_header_with_too_small_a_size_is_rejected(make, size):
    assert (
        reason(make(size - 4000))
        == "wrong header: it states 4000 bytes of sound, the file has 8000"
    )


CHUNK = b"LIST" + struct.pack("<I", 20_004) + b"INFO" + GARBAGE[:100] * 200


@pytest.mark.parametrize(
    "rest",
    [
        CHUNK,
        CHUNK + b"id3 \x05\0\0\0ID3\0\0",
        bytes(70_000),
        b"\0\0TAG" + bytes(125),
        GARBAGE[:300],
    ],
    ids=["list", "id3 without pad", "zeros", "id3v1", "a little of anything"],
)
def test_other_bytes_may_follow_the_sound(rest):
    assert np.array_equal(windows(encoded("WAV") + rest), windows(encoded("WAV")))


def test_an_empty_wav_with_later_chunks_is_empty():
    header = wav(0)[: -len(noise()) * 2]
    for rest in (b"", b"LIST\x04\0\0\0INFO", CHUNK):
        assert reason(header + rest) == "no samples: the file has a header, but no sound"


@pytest.mark.parametrize("before", [b"LIST\x05\0\0\0INFOx", b"JUNK\x1c\0\0\0" + bytes(28)])
@pytest.mark.parametrize("size", [8000, 0])
def test_chunks_before_the_sound_are_skipped_with_or_without_padding(before, size):
    data = wav(size)
    for pad in {b"", b"\0"[: len(before) % 2]}:
        read = windows(data[:12] + before + pad + data[12:])
        assert np.array_equal(read, windows(encoded("WAV")))


def test_a_truncated_file_with_a_long_text_chunk_is_rejected():
    """The log of libsndfile, which mentions truncation, ends after 2000 bytes."""
    text = b"".join(
        b"ISFT" + struct.pack("<I", 200) + b"a long word about nothing. " * 7 + b"a" * 11
        for _ in range(40)
    )
    data = encoded("WAV")
    data = data[:12] + b"LIST" + struct.pack("<I", len(text) + 4) + b"INFO" + text + data[12:]
    assert np.array_equal(windows(data), windows(encoded("WAV")))
    assert "truncated" in reason(data[:-4000])


# Concatenated files

JOINED = [
    ("WAV", "PCM_16"), ("RF64", "PCM_24"), ("AU", "PCM_16"), ("AIFF", "PCM_16"), ("W64", "FLOAT"),
    ("FLAC", "PCM_16"), ("OGG", "VORBIS"), ("OGG", "OPUS"), ("MP3", "MPEG_LAYER_III"),
]  # fmt: skip


@pytest.mark.parametrize(("container", "subtype"), JOINED)
def test_concatenated_files_are_read_in_order(container, subtype):
    parts = [encoded(container, subtype, seed=seed) for seed in range(3)]
    assert duration(b"".join(parts)) == 1.5
    alone = np.concatenate([windows(part) for part in parts])
    assert np.allclose(windows(b"".join(parts)), alone, atol=1e-7)


@pytest.mark.parametrize(("container", "subtype"), JOINED)
@pytest.mark.parametrize("change", [{"rate": 16_000}, {"channels": 2}])
def test_concatenated_files_of_different_kinds_are_rejected(container, subtype, change):
    text = reason(encoded(container, subtype) + encoded(container, subtype, **change))
    assert text.startswith("several sounds in one file: the first has 8000 Hz and 1 channels")


def test_a_truncated_second_file_is_rejected():
    data = encoded("WAV")
    assert "truncated" in reason(data + data[:-1000])


# MP3


def frames_of(mp3: bytes) -> list[bytes]:
    found, place = [], 0
    while place < len(mp3):
        frame = mpeg.parse_header(mp3[place : place + 4])
        assert frame is not None
        found.append(mp3[place : place + frame.length])
        place += frame.length
    return found


@cache
def mp3(mode: str = "VARIABLE", rate: int = RATE, channels: int = 1, seconds: float = 1.5) -> bytes:
    """Quiet, then loud noise, so that frames of variable bit rate differ in length."""
    samples = noise(seconds) * np.where(np.arange(round(seconds * RATE)) < RATE / 2, 0.02, 1)
    file = io.BytesIO()
    soundfile.write(
        file, np.stack([samples, samples[::-1]], 1)[:, :channels], rate, format="MP3",
        subtype="MPEG_LAYER_III", bitrate_mode=mode, compression_level=0.3,
    )  # fmt: skip
    return file.getvalue()


def with_count(data: bytes, change: Callable[[int], int]) -> bytes:
    """Changes the number of frames in the tag of the first frame."""
    place = max(data.find(b"Xing"), data.find(b"Info")) + 8
    count = int.from_bytes(data[place : place + 4], "big")
    return changed(data, place, struct.pack(">I", change(count)))


@pytest.mark.parametrize("rate", [8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_mp3_without_its_tag_is_read_to_its_last_frame(rate, channels, mode):
    """For every version of MPEG; the padding of the encoder is unknown."""
    data = mp3(mode, rate, channels)
    frames = frames_of(data)[1:]
    whole, _ = soundfile.read(io.BytesIO(data), dtype="float32", always_2d=True)
    samples = 1152 if rate >= 32000 else 576
    settings = SETTINGS.model_copy(
        update={"sample_rate": rate, "clip_length": len(frames) * samples / rate}
    )
    clip = read_clip(io.BytesIO(b"".join(frames)), settings)
    assert clip.duration * rate == pytest.approx(len(frames) * samples)
    # LAME adds 1105 samples before the sound; the decoder reads this number from the tag.
    inner = clip.windows[0][1105 : 1105 + len(whole)]
    assert np.abs(inner - whole.mean(axis=1)[: len(inner)]).max() < 1e-3


@pytest.mark.parametrize("way", ["split", "center", "start"])
def test_windows_of_an_mp3_without_its_tag_depend_on_its_true_length(monkeypatch, way):
    """In one block or in many."""
    data = b"".join(frames_of(mp3())[1:])
    length = 576 * len(frames_of(data))
    whole = windows(data, clip_length=length / RATE)[0]
    expected = [whole[at:][:4000] for at in window_starts(length, 4000, way)]
    assert np.array_equal(windows(data, long_clips=way), expected)
    monkeypatch.setattr(samples, "BLOCK", 700)
    assert np.allclose(windows(data, long_clips=way), expected, atol=1e-7)


TAIL = b"TAG" + bytes(125)
APE = struct.pack("<8s4I8x", b"APETAGEX", 2000, len(PICTURE) + 32, 1, 0xA0000000)
APE += PICTURE + struct.pack("<8s4I8x", b"APETAGEX", 2000, len(PICTURE) + 32, 1, 0x80000000)
ID3 = b"ID3\x03\0\0" + bytes([0, 9, 19, 112]) + PICTURE


@pytest.mark.parametrize("data", [mp3(), mp3("CONSTANT"), b"".join(frames_of(mp3())[1:])])
@pytest.mark.parametrize(
    ("before", "behind"),
    [
        (ID3, b""), (ID3 + bytes(900), TAIL), (GARBAGE, b""), (bytes(3000), bytes(70_000)),
        (b"", APE), (b"", APE + TAIL), (b"\xff\xfb\x90\x64" * 5, GARBAGE * 50),
    ],
)  # fmt: skip
def test_tags_and_other_bytes_around_an_mp3_are_ignored(before, behind, data):
    assert len(ID3) == 150_010
    assert np.array_equal(windows(before + data + behind), windows(data))


@pytest.mark.parametrize(
    "change", [lambda n: n // 2, lambda n: n - 1, lambda n: n + 1, lambda n: 0, lambda n: 1]
)
def test_an_mp3_with_a_wrong_count_in_its_tag_is_complete(change):
    """Too small, missing, or one too large, because some encoders count the frame of the tag."""
    assert np.array_equal(windows(with_count(mp3(), change)), windows(mp3()))


@pytest.mark.parametrize(
    "data", [with_count(mp3(), lambda n: 2 * n), mp3()[:-10], mp3()[:-900], mp3() + mp3()[:-900]]
)
def test_an_mp3_with_fewer_frames_than_its_tag_states_is_rejected(data):
    assert "truncated: the header states" in reason(data)


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    "data",
    [
        with_count(mp3(), lambda n: 0xFFFFFFFF),
        with_count(mp3(), lambda n: n | 1 << 30),
        flac(2**36 - 1),
    ],
)
def test_a_count_of_billions_allocates_no_memory(data):
    """A single bit error in a header."""
    assert "truncated: the header states" in reason(data)


def test_a_vbri_tag_is_ignored():
    """Fraunhofer's encoder writes it instead of the Xing tag."""
    frames = frames_of(mp3())
    tag = changed(frames[0][:4] + bytes(len(frames[0]) - 4), 36, b"VBRI")
    sound = b"".join(frames[1:])
    assert np.array_equal(windows(tag + sound), windows(sound))


def test_concatenated_mp3s_without_tags_are_read():
    first, second = frames_of(mp3())[1:], frames_of(mp3("CONSTANT"))[1:]
    data = b"".join(first) + ID3 + b"".join(second) + TAIL
    assert duration(data) == 576 * (len(first) + len(second)) / RATE


@pytest.mark.parametrize(
    ("header", "samples"), [(b"\xff\xff\x14\xc4", 384), (b"\xff\xfd\x14\xc4", 1152)]
)
def test_layers_i_and_ii_are_read_to_their_last_frame(header, samples):
    """The frames are all zeros, which is silence."""
    frame = mpeg.parse_header(header)
    assert frame is not None
    data = (header + bytes(frame.length - 4)) * 25
    assert duration(data) == pytest.approx(25 * samples / 48000)


# FLAC


@pytest.mark.parametrize("total", [0, 1, 12_000, 23_999])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24"])
@pytest.mark.parametrize("way", ["split", "center", "start"])
def test_a_flac_is_read_to_its_last_frame_for_any_header(total, subtype, way):
    """The number is 0 in a FLAC that was written to a pipe."""
    data = flac(total, 3.0, subtype)
    assert duration(data) == 3.0
    whole = windows(flac(None, 3.0, subtype), long_clips=way)
    assert np.array_equal(windows(data, long_clips=way), whole)
    assert np.array_equal(windows(data + TAIL, long_clips=way), whole)


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.99])
def test_a_truncated_streamed_flac_is_rejected(kept):
    data = flac(0, 3.0)
    assert "truncated: the header states no length" in reason(data[: int(kept * len(data))])


# Ogg


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
@pytest.mark.parametrize("kept", [0.3, 0.9, 0.99999])
def test_an_ogg_file_that_ends_within_a_page_is_rejected(subtype, kept):
    data = encoded("OGG", subtype, channels=2, seconds=6.0)
    assert "truncated" in reason(data[: int(kept * len(data))])


@pytest.mark.parametrize("subtype", ["VORBIS", "OPUS"])
def test_bytes_after_the_last_page_of_an_ogg_file_are_ignored(subtype):
    data = encoded("OGG", subtype)
    for rest in (bytes(300), GARBAGE, TAIL):
        assert np.array_equal(windows(data + rest), windows(data))


@pytest.mark.parametrize("rate", [8000, 12000, 16000, 24000, 48000])
def test_opus_is_read_at_the_rate_of_its_source(rate):
    clip = read_clip(io.BytesIO(encoded("OGG", "OPUS", rate=rate)), SETTINGS)
    assert (clip.sample_rate, round(clip.duration * rate)) == (rate, 4000)
