import io
import struct
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import example, given, settings
from hypothesis import strategies as st

from raysound.audio.decode import (
    LEAST_SURPLUS,
    Clip,
    Decoder,
    Reject,
    encode,
    read_clip,
    resample,
    resampling_ratio,
    window_starts,
)  # fmt: skip
from raysound.corpora.formats import samples
from raysound.settings.features import FeatureSettings

RATE = 8000
HALF_SECOND = FeatureSettings(
    clip_length=0.5, sample_rate=RATE, hop_length=160, n_fft=512, n_mels=24, f_max=4000
)


def tone(pitch: float, rate: int, seconds: float, level: float = 0.3) -> np.ndarray:
    return level * np.sin(2 * np.pi * pitch * np.arange(round(seconds * rate)) / rate)


TONE = tone(440, RATE, 0.5)


def pitch_and_level(waveform: np.ndarray, rate: int, near: float) -> tuple[float, float]:
    """Frequency (Hz) and peak of a sine near a frequency, from its phase."""
    middle = waveform[len(waveform) // 8 : -len(waveform) // 8].astype(np.float64)
    halves = np.split(middle[: len(middle) // 2 * 2], 2)
    weights = np.hanning(len(halves[0]))
    turns = np.exp(-2j * np.pi * near * np.arange(len(middle)) / rate)
    first, second = (
        np.sum(half * weights * turn)
        for half, turn in zip(halves, np.split(turns[: 2 * len(halves[0])], 2), strict=True)
    )
    drift = np.angle(second / first) / (2 * np.pi) * rate / len(halves[0])
    return near + drift, 2 * abs(first) / weights.sum()


def save(
    folder: Path,
    name: str,
    samples: np.ndarray = TONE,
    rate: int = RATE,
    subtype: str | None = None,
) -> Path:
    soundfile.write(folder / name, samples, rate, subtype=subtype)
    return folder / name


def put(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def read(path: Path | str) -> Clip:
    return read_clip(str(path), HALF_SECOND)


def reason(path: Path | str) -> str:
    """The reason for which the file is rejected."""
    with pytest.raises(Reject) as caught:
        read(path)
    return str(caught.value)


def with_data_size(wav: bytes, size: int) -> bytes:
    """Changes the number of bytes in the header of a wav."""
    field = wav.index(b"data") + 4
    return wav[:field] + struct.pack("<I", size) + wav[field + 4 :]


def with_total_samples(flac: bytes, total: int) -> bytes:
    """Changes the number of samples in the header of a FLAC: the last 36 of these 64 bits."""
    promise = int.from_bytes(flac[18:26], "big") >> 36 << 36 | total
    return flac[:18] + promise.to_bytes(8, "big") + flac[26:]


# Valid files


@pytest.mark.parametrize(
    ("name", "subtype", "tolerance"),
    [
        ("a.wav", "PCM_U8", 0.01),
        ("a.wav", "PCM_16", 1e-4),
        ("a.wav", "PCM_24", 1e-6),
        ("a.wav", "PCM_32", 1e-7),
        ("a.wav", "FLOAT", 1e-7),
        ("a.wav", "DOUBLE", 1e-7),
        ("a.wav", "ULAW", 0.01),
        ("a.wav", "ALAW", 0.01),
        ("a.WAV", "PCM_16", 1e-4),
        ("a.flac", "PCM_16", 1e-4),
        ("a.flac", "PCM_24", 1e-6),
        ("a.aiff", "PCM_16", 1e-4),
        ("a.ogg", "VORBIS", 0.05),
        ("a.mp3", "MPEG_LAYER_III", 0.05),
    ],
)
def test_a_sound_of_any_format_is_read(tmp_path, name, subtype, tolerance):
    """It yields one float32 window with the written samples, with full scale at 1."""
    clip = read(save(tmp_path, name, subtype=subtype))
    assert clip.windows.shape == (1, 4000)
    assert clip.windows.dtype == np.float32
    assert (clip.duration, clip.sample_rate) == (0.5, RATE)
    # Lossy formats have artefacts at the ends.
    edge = 400 if tolerance == 0.05 else 0
    inner = slice(edge, 4000 - edge)
    assert np.abs(clip.windows[0] - TONE)[inner].max() < tolerance


def test_the_suffix_is_ignored(tmp_path):
    """The first bytes of a file determine its format."""
    wav = save(tmp_path, "a.wav").read_bytes()
    assert read(put(tmp_path, "b.mp3", wav)).windows.shape == (1, 4000)


@pytest.mark.parametrize("channels", [2, 6])
def test_channels_are_averaged(tmp_path, channels):
    """The mean does not increase the level; the length is that of one channel."""
    weights = np.arange(1, channels + 1) / channels
    clip = read(save(tmp_path, "a.wav", TONE[:, np.newaxis] * weights, subtype="FLOAT"))
    assert clip.duration == 0.5
    assert np.allclose(clip.windows[0], TONE * weights.mean(), atol=1e-6)


@pytest.mark.parametrize("name", ["a b.wav", "雨 #1.wav", "50%20.wav", "it's.wav"])
def test_any_name_is_read(tmp_path, name):
    assert read(save(tmp_path, name)).windows.shape == (1, 4000)


def test_silence_is_a_sound(tmp_path):
    clip = read(save(tmp_path, "a.wav", np.zeros(4000)))
    assert clip.windows.shape == (1, 4000)
    assert not clip.windows.any()


@pytest.mark.parametrize("rate", [8000, 96000, 11025])
def test_one_sample_is_a_sound(tmp_path, rate):
    """It is centred in zeros."""
    clip = read(save(tmp_path, "a.wav", np.array([0.5]), rate))
    assert clip.windows.shape == (1, 4000)
    assert clip.duration == 1 / rate
    assert clip.windows[0].any()
    assert np.abs(clip.windows[0]).argmax() == pytest.approx(1999.5, abs=1)
    assert not clip.windows[0][:1900].any()


@pytest.mark.parametrize("amplitude", [3.0, 32768.0, 2.0**31])
def test_a_float_file_may_exceed_full_scale(tmp_path, amplitude):
    """Some tools write integers as floats; their log-mels are finite."""
    clip = read(save(tmp_path, "a.wav", TONE / 0.3 * amplitude, subtype="FLOAT"))
    assert clip.windows.max() == pytest.approx(amplitude, rel=1e-3)


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF, 0x7FFFF000, 0x80000000])
def test_a_streamed_wav_is_read_completely(tmp_path, size):
    """Programs such as ffmpeg and sox write these sizes to a pipe."""
    wav = save(tmp_path, "a.wav").read_bytes()
    clip = read(put(tmp_path, "b.wav", with_data_size(wav, size)))
    assert clip.duration == 0.5
    assert np.allclose(clip.windows[0], TONE, atol=1e-4)


def test_chunks_after_the_sound_are_ignored(tmp_path):
    wav = save(tmp_path, "a.wav").read_bytes()
    for rest in (b"LIST\x04\0\0\0INFO", b"not a chunk at all"):
        clip = read(put(tmp_path, "b.wav", wav + rest))
        assert clip.duration == 0.5


# Rejects and their reasons


def test_a_missing_file_is_rejected(tmp_path):
    assert reason(tmp_path / "absent.wav") == "no such file"
    assert reason(tmp_path / "absent" / "a.wav") == "no such file"


def test_a_folder_is_rejected(tmp_path):
    (tmp_path / "x.wav").mkdir()
    assert "s a directory" in reason(tmp_path / "x.wav")


def test_an_empty_file_is_rejected(tmp_path):
    assert reason(put(tmp_path, "a.wav", b"")) == "the file is empty (0 bytes)"


@pytest.mark.parametrize(
    "data",
    [b"\0", b"RIFF", b"<html>404 Not Found</html>\n" * 100, bytes(range(256)) * 40, b"\0" * 5000],
    ids=["one byte", "four bytes", "html", "bytes", "zeros"],
)
def test_a_file_without_sound_is_rejected(tmp_path, data):
    assert "not a sound file" in reason(put(tmp_path, "a.wav", data))


def test_a_header_without_sound_is_rejected(tmp_path):
    assert "no samples" in reason(save(tmp_path, "a.wav", np.zeros(0)))
    wav = save(tmp_path, "b.wav").read_bytes()
    assert "No 'data' chunk" in reason(put(tmp_path, "c.wav", wav[:36]))


@pytest.mark.parametrize(
    "subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ULAW"]
)
@pytest.mark.parametrize("kept", [0.5, 0.97])
def test_a_truncated_wav_is_rejected(tmp_path, subtype, kept):
    """Without a check, libsndfile reads the partial sound without an error."""
    wav = save(tmp_path, "a.wav", subtype=subtype).read_bytes()
    held = int(len(wav) * kept)
    text = reason(put(tmp_path, "b.wav", wav[:held]))
    sound = len(wav) - wav.index(b"data") - 8
    assert "truncated" in text
    assert f"{sound} bytes" in text
    assert f"the file has {held - wav.index(b'data') - 8}" in text


def test_a_wav_that_lacks_its_last_sample_is_rejected(tmp_path):
    wav = save(tmp_path, "a.wav").read_bytes()
    assert "truncated" in reason(put(tmp_path, "b.wav", wav[:-2]))
    assert "truncated" in reason(put(tmp_path, "c.wav", wav[: wav.index(b"data") + 8]))


def test_a_truncated_aiff_is_rejected(tmp_path):
    """Like a wav."""
    aiff = save(tmp_path, "a.aiff").read_bytes()
    assert "truncated" in reason(put(tmp_path, "b.aiff", aiff[: len(aiff) // 2]))


def test_a_truncated_flac_is_rejected(tmp_path):
    flac = save(tmp_path, "a.flac", np.tile(TONE, 8)).read_bytes()
    for kept in (0.5, 0.97):
        text = reason(put(tmp_path, "b.flac", flac[: int(len(flac) * kept)]))
        assert "can't be" in text or "can be decoded" in text
        assert "flac" in text


def test_a_truncated_mp3_is_rejected(tmp_path):
    mp3 = save(tmp_path, "a.mp3", np.tile(TONE, 8)).read_bytes()
    text = reason(put(tmp_path, "b.mp3", mp3[: len(mp3) // 2]))
    assert text == "truncated: the header states 58 frames of MPEG audio, the file has 27"


def test_a_damaged_flac_is_rejected(tmp_path):
    flac = bytearray(save(tmp_path, "a.flac", np.tile(TONE, 8)).read_bytes())
    middle = len(flac) // 2
    flac[middle : middle + 40] = bytes(255 - byte for byte in flac[middle : middle + 40])
    assert "decoded" in reason(put(tmp_path, "b.flac", bytes(flac)))


@pytest.mark.parametrize("total", [4001, 10**6, 2**33, 2**36 - 1])
def test_a_flac_with_too_large_a_length_is_rejected(tmp_path, total):
    """A bit error in the header must not allocate 256 GB of memory."""
    flac = save(tmp_path, "a.flac").read_bytes()
    text = reason(put(tmp_path, "b.flac", with_total_samples(flac, total)))
    assert "header" in text or "decoded" in text


@pytest.mark.parametrize("subtype", ["FLOAT", "DOUBLE"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_not_finite_are_rejected(tmp_path, subtype, value):
    broken = TONE.copy()
    broken[[7, 99]] = value
    text = reason(save(tmp_path, "a.wav", broken, subtype=subtype))
    assert text == "NaN or infinite samples: 2 of 4000"


def test_nan_in_one_channel_is_rejected(tmp_path):
    stereo = np.stack([TONE, TONE], axis=1)
    stereo[5, 1] = np.nan
    assert "1 of 8000" in reason(save(tmp_path, "a.wav", stereo, subtype="FLOAT"))


@pytest.mark.parametrize("amplitude", [2.0**32, 1e30])
def test_an_amplitude_beyond_the_limit_is_rejected(tmp_path, amplitude):
    broken = TONE.copy()
    broken[7] = amplitude
    text = reason(save(tmp_path, "a.wav", broken, subtype="FLOAT"))
    assert text == f"samples up to {amplitude:.3g}, while full scale is 1"


def test_a_double_beyond_float32_is_rejected(tmp_path):
    broken = TONE.copy()
    broken[7] = 1e300
    assert "infinite" in reason(save(tmp_path, "a.wav", broken, subtype="DOUBLE"))


@pytest.mark.parametrize(
    "path",
    ["/sounds/a\0b.wav", "http://example.com/a.wav", "/sounds/s3://bucket/a b.wav"],
    ids=["null byte", "web address", "address below a folder"],
)
def test_an_invalid_file_name_is_rejected(path):
    """It may be in a metadata.csv, and one row must not end the job."""
    assert reason(path)


# Sample rates


@pytest.mark.parametrize("target", [8000, 16000, 22050, 44100, 48000])
@pytest.mark.parametrize("source", [8000, 11025, 16000, 22050, 32000, 44100, 48000, 96000])
def test_resampling_keeps_pitch_and_level_of_a_tone(source, target):
    """1 kHz, without the ends, for all pairs of common rates."""
    waveform = tone(1000, source, 0.25).astype(np.float32)
    resampled = resample(waveform, resampling_ratio(source, target))
    assert resampled.dtype == np.float32
    assert abs(len(resampled) - 0.25 * target) <= 1
    pitch, level = pitch_and_level(resampled, target, 1000)
    assert pitch == pytest.approx(1000, rel=1e-5)
    assert level == pytest.approx(0.3, rel=5e-3)
    inner = slice(len(resampled) // 8, -len(resampled) // 8)
    expected = tone(1000, target, 0.25)[: len(resampled)]
    assert np.abs(resampled[: len(expected)] - expected)[inner].max() < 3e-3


@pytest.mark.parametrize("target", [8000, 16000, 44100, 48000])
@pytest.mark.parametrize("source", [11127, 44056, 47952])
def test_a_tone_of_an_uncommon_rate_keeps_its_pitch(tmp_path, source, target):
    """Mac, NTSC and pull-down rates; their ratio is approximated with an error below 0.01 %."""
    path = save(tmp_path, "a.wav", tone(1000, source, 1.0), source, "FLOAT")
    wanted = FeatureSettings(clip_length=1.0, sample_rate=target, f_max=target / 2)
    clip = read_clip(str(path), wanted)
    assert (clip.windows.shape, clip.sample_rate) == ((1, target), source)
    assert clip.duration == 1.0
    pitch, level = pitch_and_level(clip.windows[0], target, 1000)
    assert pitch == pytest.approx(1000, rel=1e-4)
    assert level == pytest.approx(0.3, rel=5e-3)


@settings(max_examples=12, deadline=None)
@given(source=st.integers(2000, 400_000), target=st.sampled_from([8000, 22050, 48000]))
@example(source=11127, target=8000)
@example(source=44056, target=48000)
@example(source=7999, target=8000)
def test_the_length_is_proportional_to_the_rate(source, target):
    """For any rate, within 0.1 % or one sample."""
    length = source // 10
    resampled = resample(np.ones(length, np.float32), resampling_ratio(source, target))
    expected = length * target / source
    assert abs(len(resampled) - expected) <= 1 + expected / 1000


def test_frequencies_above_the_new_nyquist_are_removed():
    """Otherwise a 6 kHz tone at 8 kHz would alias to 2 kHz."""
    resampled = resample(tone(6000, 44100, 0.25).astype(np.float32), Fraction(441, 80))
    assert np.abs(resampled[100:-100]).max() < 0.003


@pytest.mark.parametrize(("source", "target"), [(48000, 8000), (11025, 8000), (8000, 44100)])
@pytest.mark.parametrize("way", ["split", "center", "start"])
@pytest.mark.parametrize("seconds", [0.3, 0.5, 3.21])
def test_resampling_in_pieces_equals_resampling_at_once(
    tmp_path, monkeypatch, source, target, way, seconds
):
    """Without discontinuities between blocks, and with the same zeros at the ends."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, round(seconds * source))
    path = save(tmp_path, "a.wav", noise, source, "FLOAT")
    wanted = FeatureSettings(
        clip_length=0.5, sample_rate=target, f_max=target / 2, n_mels=8, long_clips=way
    )
    monkeypatch.setattr(samples, "BLOCK", 1009)
    windows = read_clip(str(path), wanted).windows
    whole = resample(noise.astype(np.float32), resampling_ratio(source, target))
    surplus = max(wanted.clip_samples - len(whole), 0)
    padded = np.pad(whole, (surplus // 2, surplus - surplus // 2))
    starts = [max(0, at) for at in window_starts(len(whole), wanted.clip_samples, way)]
    expected = [padded[at : at + wanted.clip_samples] for at in starts]
    assert np.allclose(windows, expected, atol=1e-6)


# Pieces


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("way", ["split", "center", "start"])
def test_a_file_read_in_blocks_equals_a_file_read_at_once(
    tmp_path, monkeypatch, subtype, channels, way
):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (12345, channels))
    path = save(tmp_path, "a.wav", noise, RATE, subtype)
    wanted = HALF_SECOND.model_copy(update={"long_clips": way})
    at_once = read_clip(str(path), wanted)
    monkeypatch.setattr(samples, "BLOCK", 600)
    assert np.array_equal(read_clip(str(path), wanted).windows, at_once.windows)
    mono, starts = noise.mean(axis=1), window_starts(12345, 4000, way)
    expected = [mono[at : at + 4000] for at in starts]
    assert np.allclose(at_once.windows, expected, atol=1e-4)


def test_a_long_file_is_not_held_completely(tmp_path):
    """Ten minutes: a window and a block are in memory, not 5 million samples."""
    path = save(tmp_path, "a.wav", np.tile(TONE, 1200))
    decoder = Decoder(HALF_SECOND)
    windows = [(source.duration, window.shape) for source, window in decoder.read(str(path))]
    assert windows == [(600.0, (4000,))] * 1200
    assert max(map(len, decoder.buffers.values())) <= 2 * samples.BLOCK


@pytest.mark.parametrize("way", ["split", "center", "start"])
@pytest.mark.parametrize("kept", [0.5, 0.99])
def test_truncation_after_the_last_window_is_found(tmp_path, monkeypatch, way, kept):
    """Also if only the first half second of the file is needed."""
    monkeypatch.setattr(samples, "BLOCK", 1000)
    flac = encode(np.tile(TONE, 20).astype(np.float32), RATE, "FLAC")
    path = put(tmp_path, "a.flac", flac[: int(kept * len(flac))])
    with pytest.raises(Reject, match=r"truncated|decoded"):
        read_clip(str(path), HALF_SECOND.model_copy(update={"long_clips": way}))


def test_nan_after_the_last_window_is_found(tmp_path):
    broken = np.tile(TONE, 20)
    broken[-1] = np.nan
    path = save(tmp_path, "a.wav", broken, subtype="FLOAT")
    with pytest.raises(Reject, match="NaN or infinite samples: 1 of"):
        read_clip(str(path), HALF_SECOND.model_copy(update={"long_clips": "start"}))


def test_a_decoder_has_no_state_between_files(tmp_path):
    """Also after a rejected file."""
    decoder = Decoder(HALF_SECOND)
    paths = [
        save(tmp_path, "long.wav", np.tile(TONE, 3)),
        save(tmp_path, "short.wav", TONE[:1000]),
        put(tmp_path, "broken.wav", b"RIFF"),
        save(tmp_path, "float.wav", TONE[:777], subtype="FLOAT"),
        save(tmp_path, "shorter.wav", TONE[:10]),
        save(tmp_path, "rate.wav", tone(440, 11025, 0.2), 11025),
    ]
    for path in paths:
        try:
            alone = read(path).windows
        except Reject:
            with pytest.raises(Reject):
                list(decoder.read(str(path)))
            continue
        predicted = [window.copy() for _, window in decoder.read(str(path))]
        scale = [1 / 32768 if window.dtype == np.int16 else 1 for window in predicted]
        assert np.allclose([w * s for w, s in zip(predicted, scale, strict=True)], alone, atol=1e-7)


def test_an_error_of_the_caller_is_not_a_reject(tmp_path):
    """A full disk while a shard is written must not reject the file."""
    path = save(tmp_path, "a.wav")

    def take(windows):
        next(windows)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        take(Decoder(HALF_SECOND).read(str(path)))


def test_a_clip_of_another_rate_is_cut_at_the_settings_rate(tmp_path):
    """1.2 s at 96 kHz: three windows of 0.5 s at 8 kHz; the duration is that of the source."""
    clip = read(save(tmp_path, "a.wav", tone(440, 96000, 1.2), 96000))
    assert clip.windows.shape == (3, 4000)
    assert (clip.duration, clip.sample_rate) == (1.2, 96000)


# Cut or pad

lengths = st.integers(1, 1500)
windows = st.integers(1, 200)
ways = st.sampled_from(["split", "center", "start"])


def ramp(length: int) -> np.ndarray:
    """1, 2, 3, …: each sample is its position."""
    return np.arange(1, length + 1, dtype=np.float32)


def cut_or_pad(waveform: np.ndarray, clip_samples: int, way: str) -> np.ndarray:
    """The windows of a zero-padded waveform."""
    zeros = np.zeros(clip_samples, np.float32)
    amid = np.concatenate([zeros, waveform, zeros])
    starts = window_starts(len(waveform), clip_samples, way) + clip_samples
    return np.stack([amid[start : start + clip_samples] for start in starts])


@settings(max_examples=200, deadline=None)
@given(length=lengths, clip_samples=windows, way=ways)
def test_windows_have_exactly_the_length(length, clip_samples, way):
    """They are pieces of the clip in order, as float32."""
    cut = cut_or_pad(ramp(length), clip_samples, way)
    assert cut.shape[1] == clip_samples
    assert cut.dtype == np.float32
    assert len(cut) >= 1
    if length >= clip_samples:
        assert (np.diff(cut, axis=1) == 1).all()
        assert (np.diff(cut[:, 0]) > 0).all()
    if way != "split":
        assert len(cut) == 1


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 200), clip_samples=st.integers(1, 200), way=ways)
def test_a_short_clip_is_centred_in_zeros(length, clip_samples, way):
    """Equally on both sides, with an extra zero at the end."""
    if length > clip_samples:
        length, clip_samples = clip_samples, length
    before = (clip_samples - length) // 2
    expected = np.concatenate(
        [np.zeros(before), ramp(length), np.zeros(clip_samples - length - before)]
    )
    assert cut_or_pad(ramp(length), clip_samples, way).tolist() == [expected.tolist()]


@settings(max_examples=300, deadline=None)
@given(length=lengths, clip_samples=windows)
@example(length=41, clip_samples=20)
@example(length=215, clip_samples=100)
def test_split_loses_at_most_a_twentieth_of_a_window_at_the_ends(length, clip_samples):
    """All other samples are in a window, and the number of windows is minimal."""
    cut = cut_or_pad(ramp(length), clip_samples, "split")
    predicted = np.unique(cut[cut > 0])
    assert (np.diff(predicted) == 1).all()
    ahead, behind = predicted[0] - 1, length - predicted[-1]
    assert ahead + behind <= LEAST_SURPLUS * clip_samples + 1e-6
    assert abs(ahead - behind) <= 1
    assert len(cut) == 1 or (len(cut) - 1) * clip_samples < length


@settings(max_examples=100, deadline=None)
@given(length=lengths, clip_samples=windows)
def test_split_spreads_its_windows_evenly(length, clip_samples):
    starts = cut_or_pad(ramp(length), clip_samples, "split")[:, 0]
    steps = np.diff(starts)
    assert len(steps) == 0 or steps.max() - steps.min() <= 1


@pytest.mark.parametrize(
    ("length", "count"), [(100, 1), (104, 1), (106, 2), (200, 2), (209, 3), (204, 2), (300, 3)]
)
def test_a_few_surplus_samples_add_no_window(length, count):
    """Encoders extend clips by a few frames."""
    assert len(cut_or_pad(ramp(length), 100, "split")) == count


def test_start_and_center_keep_one_window():
    assert cut_or_pad(ramp(10), 4, "start").tolist() == [[1, 2, 3, 4]]
    assert cut_or_pad(ramp(10), 4, "center").tolist() == [[4, 5, 6, 7]]
    assert cut_or_pad(ramp(11), 4, "center").tolist() == [[4, 5, 6, 7]]
    assert cut_or_pad(ramp(10), 4, "split").tolist() == [[1, 2, 3, 4], [4, 5, 6, 7], [7, 8, 9, 10]]


@pytest.mark.parametrize(("way", "count"), [("split", 3), ("center", 1), ("start", 1)])
def test_long_clips_are_cut_according_to_the_settings(tmp_path, way, count):
    path = save(tmp_path, "a.wav", np.tile(TONE, 3))
    clip = read_clip(str(path), HALF_SECOND.model_copy(update={"long_clips": way}))
    assert clip.windows.shape == (count, 4000)
    assert clip.duration == 1.5


# Encode


@pytest.mark.parametrize("container", ["WAV", "FLAC"])
def test_an_encoded_waveform_can_be_read(tmp_path, container):
    """16 bits, mono, at the given rate."""
    data = encode(TONE.astype(np.float32), 11025, container)
    info = soundfile.info(io.BytesIO(data))
    assert (info.format, info.subtype, info.channels) == (container, "PCM_16", 1)
    assert (info.samplerate, info.frames) == (11025, 4000)
    samples, _ = soundfile.read(io.BytesIO(data))
    assert np.abs(samples - TONE).max() < 1 / 32768 + 1e-6


def test_a_waveform_above_full_scale_is_scaled_not_clipped():
    samples, _ = soundfile.read(io.BytesIO(encode(TONE * 10, RATE, "WAV")))
    assert np.abs(samples - TONE / 0.3).max() < 1e-3


def test_no_waveform_is_amplified():
    samples, _ = soundfile.read(io.BytesIO(encode(TONE / 100, RATE, "WAV")))
    assert np.abs(samples).max() == pytest.approx(0.003, abs=1e-4)


@pytest.mark.parametrize("waveform", [np.zeros(10), np.zeros(0)])
def test_silence_is_encoded(waveform):
    samples, _ = soundfile.read(io.BytesIO(encode(waveform, RATE, "WAV")))
    assert samples.tolist() == waveform.tolist()
