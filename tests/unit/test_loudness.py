"""Loudness: measurement, gain, and effect on log-mels."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysound.audio import loudness
from raysound.audio.decode import Decoder, read_clip, read_window
from raysound.audio.loudness import k_weighting, measured_gain, normalise
from raysound.corpora.manifest import read_corpus
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.extraction import add_log_mels, extract_shard, read_windows
from raysound.features.records import Shard, ShardTotals
from raysound.settings.features import FeatureSettings
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config

RATE = 8000
PLAIN = FeatureSettings(clip_length=0.5, sample_rate=RATE, hop_length=80, n_fft=256, n_mels=20)
FORMS = [{"rms": -23}, {"lufs": -23}]


def at(rate: int, **level: float) -> FeatureSettings:
    return FeatureSettings(sample_rate=rate, n_fft=512, hop_length=128, n_mels=20, loudness=level)


def loud(level: dict[str, float], settings: FeatureSettings = PLAIN) -> FeatureSettings:
    return FeatureSettings(**settings.model_dump(exclude={"loudness"}), loudness=level)


def level_of(waveform: np.ndarray, settings: FeatureSettings) -> float:
    """DBFS or LUFS, from the gain."""
    decibels = measured(waveform, settings).decibels
    assert decibels is not None
    assert settings.loudness is not None
    return settings.loudness.level - decibels


def measured(waveform: np.ndarray, settings: FeatureSettings) -> loudness.Gain:
    return measured_gain(lambda begin, end: waveform[begin:end], len(waveform), settings)


def sine(seconds: float, rate: int, hertz: float = 997, amplitude: float = 1.0) -> np.ndarray:
    times = np.arange(round(seconds * rate)) / rate
    return (amplitude * np.sin(2 * np.pi * hertz * times)).astype(np.float32)


def noise(seconds: float, seed: int = 0, rate: int = RATE) -> np.ndarray:
    made = 0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))
    return made.astype(np.float32)


def save(path: Path, waveform: np.ndarray, rate: int = RATE, subtype: str = "FLOAT") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, rate, subtype=subtype)
    return path


# Measurement


def test_the_filters_at_48_khz_are_those_of_the_standard() -> None:
    """ITU-R BS.1770-4, annex 1, tables 1 and 2."""
    shelf = [1.53512485958697, -2.69169618940638, 1.19839281085285]
    shelf += [1.0, -1.69065929318241, 0.73248077421585]
    high_pass = [1.0, -2.0, 1.0, 1.0, -1.99004745483398, 0.99007225036621]

    np.testing.assert_allclose(k_weighting(48000), [shelf, high_pass], atol=1e-8)


@pytest.mark.parametrize(("seconds", "amplitude"), [(5.0, 1.0), (0.4, 1.0), (30.05, 0.1)])
def test_a_sine_of_997_hz_has_the_loudness_of_the_standard(
    seconds: float, amplitude: float
) -> None:
    """-3.01 LUFS at full scale in one channel, for any length; it changes with the level in dB."""
    found = level_of(sine(seconds, 48000, amplitude=amplitude), at(48000, lufs=-23))

    assert found == pytest.approx(-3.01 + 20 * np.log10(amplitude), abs=0.02)


@pytest.mark.parametrize(("rate", "within"), [(44100, 0.01), (22050, 0.05), (16000, 0.1)])
@pytest.mark.parametrize("hertz", [60, 200, 997, 3000])
def test_all_rates_measure_the_same_loudness(rate: int, within: float, hertz: int) -> None:
    expected = level_of(sine(5, 48000, hertz, 0.3), at(48000, lufs=-23))

    assert level_of(sine(5, rate, hertz, 0.3), at(rate, lufs=-23)) == pytest.approx(
        expected, abs=within
    )


def test_pauses_change_the_rms_but_not_the_loudness() -> None:
    """Two thirds of silence reduce the mean square to a third; silent blocks are gated."""
    rate = 16000
    tone = sine(10, rate, amplitude=0.1)
    with_pause = np.concatenate([tone, np.zeros(20 * rate, np.float32)])

    for level, drop in (({"rms": -23}, 10 * np.log10(3)), ({"lufs": -23}, 0)):
        wanted = at(rate, **level)
        # Blocks at the edge are partly silent.
        within = 1e-3 if drop else 0.1
        assert level_of(tone, wanted) - level_of(with_pause, wanted) == pytest.approx(
            drop, abs=within
        )


def test_blocks_10_lu_below_the_mean_are_gated() -> None:
    """A level 20 dB below is excluded; 5 dB below is included."""
    rate, wanted = 16000, at(16000, lufs=-23)
    tone = sine(10, rate, amplitude=0.3)

    def with_half_at(decibels: float) -> float:
        return level_of(np.concatenate([tone, tone * np.float32(10 ** (decibels / 20))]), wanted)

    assert with_half_at(-20) == pytest.approx(level_of(tone, wanted), abs=0.1)
    assert with_half_at(-5) == pytest.approx(
        level_of(tone, wanted) + 10 * np.log10((1 + 10**-0.5) / 2), abs=0.02
    )


def test_a_clip_shorter_than_a_block_is_one_block() -> None:
    """Clips of 399 ms and 400 ms have equal loudness."""
    wanted = at(16000, lufs=-23)

    short = level_of(sine(0.399, 16000, amplitude=0.1), wanted)

    assert short == pytest.approx(level_of(sine(0.4, 16000, amplitude=0.1), wanted), abs=0.02)
    assert measured(np.array([0.5], np.float32), wanted).decibels is not None


def test_the_rms_is_that_of_the_complete_clip() -> None:
    """A full-scale sine has -3.01 dBFS, a constant 0 dBFS."""
    assert level_of(sine(12.3, RATE, 1000), loud({"rms": -23})) == pytest.approx(-3.0103, abs=1e-3)
    assert level_of(np.ones(777, np.float32), loud({"rms": -23})) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("level", FORMS)
@pytest.mark.parametrize("rate", [8000, 11025])
def test_measuring_in_pieces_equals_measuring_at_once(
    level: dict[str, float], rate: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The filter state is kept between pieces; 11025 / 10 is not an integer."""
    wanted, waveform, pieces = at(rate, **level), noise(5.37, rate=rate), []
    waveform[: len(waveform) // 2] *= 0.2
    whole = measured(waveform, wanted)
    monkeypatch.setattr(loudness, "SECONDS_TOGETHER", 2)

    found = measured_gain(
        lambda begin, end: waveform[begin:end], len(waveform), wanted, lambda: pieces.append(1)
    )

    assert found.decibels == pytest.approx(whole.decibels, abs=1e-9)
    assert found.peak == whole.peak == np.abs(waveform).max()
    assert len(pieces) == 3


# The gain


@pytest.mark.parametrize("level", FORMS)
def test_a_clip_is_normalized_to_the_loudness(level: dict[str, float]) -> None:
    settings = loud(level)

    gained = normalise(noise(2), settings)

    assert gained.dtype == np.float32
    assert level_of(gained, settings) == pytest.approx(-23, abs=1e-4)


def test_int16_and_float_clips_get_the_same_gain() -> None:
    settings = loud({"rms": -23})
    numbers = (noise(1) * 32768).astype(np.int16)

    np.testing.assert_array_equal(
        normalise(numbers, settings), normalise(numbers.astype(np.float32) / 32768, settings)
    )


@pytest.mark.parametrize("level", FORMS)
@pytest.mark.parametrize("amplitude", [0.0, 1e-4])
def test_clips_below_the_floor_keep_their_level(level: dict[str, float], amplitude: float) -> None:
    """A tone of 1e-4 has -83 dBFS."""
    quiet = sine(1, RATE, 1000, amplitude)

    gain = measured(quiet, loud(level))

    assert gain.decibels is None
    np.testing.assert_array_equal(gain.apply(quiet), quiet)


def test_a_clip_just_above_the_floor_gets_a_gain() -> None:
    assert level_of(sine(1, RATE, 1000, 5e-4), loud({"rms": -23})) == pytest.approx(-69.03, abs=0.1)


def test_the_gain_is_limited_to_keep_log_mels_finite() -> None:
    """Samples after the last step of 100 ms are in no block, and may be loud."""
    waveform = noise(1.05) / 100
    waveform[-10] = 2.0**30

    gained = normalise(waveform, loud({"lufs": -10}))

    assert np.abs(gained).max() == pytest.approx(2.0**31)


def test_without_loudness_nothing_changes() -> None:
    waveform = noise(1)
    assert normalise(waveform, PLAIN) is waveform


# A corpus


def corpus(folder: Path, decibels: float) -> pa.Table:
    """Clips with a gain: a short, a long one, one of another rate and one of two channels."""
    factor = np.float32(10 ** (decibels / 20))
    save(folder / "a" / "short.wav", factor * noise(0.2, 1))
    # The level increases, but both halves get the same gain.
    swell = noise(1.7, 2) * np.linspace(0.1, 1, round(1.7 * RATE), dtype=np.float32)
    save(folder / "a" / "long.wav", factor * swell)
    save(folder / "b" / "44100.wav", factor * noise(0.9, 3, 44100), 44100)
    save(folder / "b" / "stereo.wav", factor * noise(1, 4).reshape(-1, 2))
    return read_corpus(str(folder))


def tensors(clips: pa.Table, settings: FeatureSettings) -> np.ndarray:
    (rows,) = read_windows(clips, settings)
    return parquet.tensor_array(add_log_mels(rows, settings)["log_mel"])


@pytest.mark.parametrize("level", FORMS)
def test_a_quieter_copy_of_a_corpus_has_the_same_log_mels(
    tmp_path: Path, level: dict[str, float]
) -> None:
    """Without a loudness, 6 dB change the natural log power by 1.38."""
    loud_clips, quiet_clips = corpus(tmp_path / "0", 0), corpus(tmp_path / "6", -6)

    plain = tensors(loud_clips, PLAIN) - tensors(quiet_clips, PLAIN)
    equal = tensors(loud_clips, loud(level)) - tensors(quiet_clips, loud(level))

    assert np.abs(equal).max() < 1e-4
    assert np.median(plain) == pytest.approx(6 / 10 * np.log(10), abs=1e-3)


@pytest.mark.parametrize("level", FORMS)
def test_all_windows_of_a_clip_get_the_same_gain(tmp_path: Path, level: dict[str, float]) -> None:
    """It is the gain of the complete clip."""
    corpus(tmp_path, 0)
    path = str(tmp_path / "a" / "long.wav")

    plain, gained = read_clip(path, PLAIN), read_clip(path, loud(level))

    assert plain.gain is None
    assert gained.gain is not None
    assert len(plain.windows) == 4
    np.testing.assert_allclose(gained.windows, plain.windows * gained.gain.factor, rtol=1e-6)
    whole = soundfile.read(path, dtype="float32")[0]
    assert gained.gain.decibels == pytest.approx(measured(whole, loud(level)).decibels, abs=1e-6)
    np.testing.assert_array_equal(read_window(path, loud(level)), gained.windows[0])


def test_a_file_of_many_blocks_is_measured_in_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The timeout restarts after each piece."""
    path = save(tmp_path / "long.wav", noise(65, 5, 22050), 22050, "PCM_16")
    settings = loud({"rms": -30})
    pieces: list[int] = []
    monkeypatch.setattr("raysound.corpora.formats.samples.BLOCK", 10000)

    windows = [
        (source, window.copy())
        for source, window in Decoder(settings).read(str(path), lambda: pieces.append(1))
    ]

    whole = read_clip(str(path), PLAIN)
    power = np.mean(np.square(whole.windows, dtype=np.float64))
    assert len(windows) == 130
    assert len(pieces) == 7
    assert windows[0][0].gain.decibels == pytest.approx(-30 - 10 * np.log10(power), abs=0.01)
    np.testing.assert_allclose(
        windows[-1][1], whole.windows[-1] * windows[0][0].gain.factor, rtol=1e-5, atol=1e-7
    )


def test_a_transform_gets_waveforms_with_the_gain(tmp_path: Path) -> None:
    seen: list[np.ndarray] = []
    save(tmp_path / "a" / "x.wav", noise(0.5))
    (rows,) = read_windows(read_corpus(str(tmp_path)), loud({"rms": -23}))

    add_log_mels(rows, loud({"rms": -23}), lambda waveforms: seen.append(waveforms) or waveforms)

    assert np.sqrt(np.mean(seen[0] ** 2)) == pytest.approx(10 ** (-23 / 20), rel=1e-4)
    assert rows["peak"].to_pylist() == [pytest.approx(np.abs(noise(0.5)).max())]


def test_clips_beyond_full_scale_and_below_the_floor_are_counted(tmp_path: Path) -> None:
    """Per clip, not per window; rejects are not counted."""
    folder = tmp_path / "corpus" / "a"
    click = np.zeros(2 * RATE, np.float32)
    click[::1000] = 0.5
    save(folder / "click.wav", click)
    save(folder / "hot.wav", 20 * noise(1.5))
    save(folder / "plain.wav", noise(1.5))
    save(folder / "silent.wav", np.zeros(3 * RATE, np.float32))
    (folder / "bad.wav").write_text("no sound")
    settings = loud({"rms": -23})

    record = extract_shard(str(tmp_path / "p"), read_corpus(str(tmp_path / "corpus")), settings)

    assert vars(record.loudness) == {
        "source_above_full_scale": 1, "gained_above_full_scale": 1, "below_floor": 1,
    }  # fmt: skip
    assert Shard.from_json(record.to_json()).loudness == record.loudness
    totals = ShardTotals("real", settings)
    totals.add(record)
    totals.add(record)
    summary = json.loads(json.dumps(totals.summary(10)))
    assert summary["features"]["loudness"] == {"rms": -23}
    assert summary["loudness"] == {
        "source_above_full_scale": 2, "gained_above_full_scale": 2, "below_floor": 2,
    }  # fmt: skip


# The setting


@pytest.fixture
def load() -> Callable[..., Config]:
    def loaded(**settings: object) -> Config:
        tree = {"name": "x", "output": "/x", "corpora": {"real": "/y"}, "features": settings}
        return from_tree(tree, "x.yaml")

    return loaded


def test_without_loudness_ids_and_digests_are_unchanged(load: Callable[..., Config]) -> None:
    """They equal those of earlier versions, so that their results are found."""
    for config in (load(), load(loudness="none"), load(loudness=None)):
        assert config.features.id == "289b7613"
        names = [*config.features.model_dump(), "loudness"]
        assert sorted(names) == sorted(FeatureSettings.model_fields)
    assert load(**PLAIN.model_dump()).features == PLAIN
    assert PLAIN.model_copy(update={"loudness": None}).id == "38b655b7"


def test_without_loudness_record_and_summary_have_no_loudness(tmp_path: Path) -> None:
    save(tmp_path / "c" / "a" / "x.wav", noise(0.5))
    record = extract_shard(str(tmp_path / "p"), read_corpus(str(tmp_path / "c")), PLAIN)
    totals = ShardTotals("real", PLAIN)
    totals.add(record)

    assert "loudness" not in record.to_json()
    assert "loudness" not in json.dumps(totals.summary(1))


def test_each_loudness_has_another_feature_id(load: Callable[..., Config]) -> None:
    forms = ["none", {"rms": -23}, {"rms": -20}, {"lufs": -23}]
    settings = [load(loudness=form).features for form in forms]

    assert len({one.id for one in settings}) == 4
    assert settings[1].id == load(loudness={"rms": -23.0}).features.id
    assert settings[1].model_dump()["loudness"] == {"rms": -23.0}


def test_a_config_with_loudness_round_trips(load: Callable[..., Config], tmp_path: Path) -> None:
    for form in ("none", {"lufs": -23.5}):
        config = load(loudness=form)
        text = config.to_yaml()
        (tmp_path / "again.yaml").write_text(text)
        assert from_tree(json.loads(config.model_dump_json()), "x") == config
        assert "loudness: none" in text if form == "none" else "    lufs: -23.5" in text


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"loudness": {"rms": -23, "lufs": -23}}, ["features.loudness", "rms and lufs", "none"]),
        ({"loudness": {}}, ["features.loudness", "neither", "{rms: -23} or {lufs: -23}"]),
        ({"loudness": "loud"}, ["features.loudness", "none, {rms: -23}", "'loud'"]),
        ({"loudness": -23}, ["features.loudness", "none, {rms: -23}", "-23"]),
        ({"loudness": {"rms": 3}}, ["features.loudness.rms", "less than or equal to 0", "3"]),
        ({"loudness": {"lufs": -71}}, ["features.loudness.lufs", "-70", "-71"]),
        ({"loudness": {"lufs": "-23"}}, ["features.loudness.lufs", "number", "'-23'"]),
        ({"loudness": {"luf": -23}}, ["'features.loudness.luf'", "'features.loudness.lufs'"]),
        ({"loudness": {"lufs": -23}, "sample_rate": 2000}, ["4000 Hz", "2000", "loudness.rms"]),
    ],
)
def test_an_invalid_loudness_is_reported_in_one_line(
    load: Callable[..., Config], settings: dict[str, object], words: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        load(**settings)

    assert len(str(caught.value).splitlines()) == 1
    for word in words:
        assert word in str(caught.value)
