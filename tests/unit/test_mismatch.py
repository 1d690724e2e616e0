from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from raysound.audio.log_mel import filterbank
from raysound.features.bands import band_edges
from raysound.metrics.mismatch import CorpusSound, SoundSums, merge_sounds, mismatches, sound_of
from raysound.settings.features import FeatureSettings, Loudness

BANDS = 32
SETTINGS = FeatureSettings(
    clip_length=1, sample_rate=16000, hop_length=160, n_fft=1024, n_mels=BANDS, f_max=8000
)


LENGTH = 0.7


@dataclass
class Clips:
    """How some clips sound, a row a clip."""

    sample_rate: np.ndarray
    duration: np.ndarray
    level_db: np.ndarray
    nonsilent_fraction: np.ndarray
    spectrum: np.ndarray

    def sound(self, parts: int = 1) -> CorpusSound:
        """The same as sums over some parts."""
        rows = np.array_split(np.arange(len(self.level_db)), parts)
        sums = [
            SoundSums.of(
                self.sample_rate[part], self.duration[part], self.nonsilent_fraction[part],
                self.spectrum[part], LENGTH,
            )
            for part in rows
        ]  # fmt: skip
        return CorpusSound(merge_sounds(sums), self.level_db, self.duration)


def corpus(clips: int = 40, seed: int = 0, **change: float) -> Clips:
    """Clips of about -40 dB, 1 s, 16 kHz, with a flat spectrum, and what is changed in them."""
    rng = np.random.default_rng(seed)
    spectrum = rng.normal(-8, 2, (clips, BANDS)).astype(np.float32)
    spectrum[:, BANDS - int(change.get("missing", 0)) :] -= 12
    return Clips(
        sample_rate=np.full(clips, change.get("rate", 16000), np.int32),
        duration=rng.normal(1, 0.1, clips) * change.get("longer", 1.0),
        nonsilent_fraction=np.full(clips, 1 - change.get("silent", 0), np.float32),
        level_db=(rng.normal(-40, 6, clips) + change.get("louder", 0.0)).astype(np.float32),
        spectrum=spectrum,
    )


def findings(generated: Clips, parts: int = 1, normalised: bool = False) -> dict[str, dict]:
    theirs, ours = generated.sound(parts), corpus().sound()
    rows = mismatches("theirs", theirs, ours, 16000, band_edges(SETTINGS), normalised)
    return {row["kind"]: row for row in rows}


def test_a_draw_of_the_same_kind_is_no_mismatch() -> None:
    assert [findings(corpus(seed=seed)) for seed in range(1, 20)] == [{}] * 19


def test_a_lower_rate_is_told_with_what_it_lacks() -> None:
    row = findings(corpus(rate=8000))["sample_rate"]

    assert (row["real"], row["generated"]) == (16000, 8000)
    assert "above 4000 Hz the generated clips hold nothing" in row["text"]


def test_some_clips_of_a_lower_rate_are_told_with_their_share() -> None:
    generated = corpus(seed=1)
    generated.sample_rate[:19] = 8000

    row = findings(generated)["sample_rate"]

    assert (row["real"], row["generated"]) == (16000, 8000)
    assert (
        "48% of theirs's clips and 0% of the real ones are sampled at less than 16000"
        in (row["text"])
    )
    generated.sample_rate[1:] = 16000
    assert findings(generated) == {}, "one clip of 40"


def test_a_higher_rate_that_the_classifier_does_not_hear_is_not_worth_telling() -> None:
    assert findings(corpus(rate=48000)) == {}


def test_digital_silence_on_one_side_is_told() -> None:
    row = findings(corpus(silent=0.2))["silence"]

    assert (row["real"], row["generated"]) == pytest.approx((0, 0.2))
    assert "0% of the real sounds' frames are digital silence, of theirs's 20%" in row["text"]
    assert findings(corpus(silent=0.03)) == {}


def test_what_short_clips_are_padded_with_is_no_silence_of_theirs() -> None:
    """Clips of 0.5 s, padded to 0.7 s, have another length."""
    assert list(findings(corpus(longer=0.5, silent=2 / 7))) == ["length"]
    assert "silence" in findings(corpus(longer=0.5, silent=0.5))


def test_empty_high_bands_are_told_with_the_frequency_where_they_begin() -> None:
    row = findings(corpus(missing=8))["band_limit"]

    assert row["generated"] == pytest.approx(band_edges(SETTINGS)[BANDS - 8])
    assert f"above {row['generated']:.0f} Hz" in row["text"]
    assert findings(corpus(missing=1)) == {}, "one band of 32 may be a matter of the sounds"


def test_real_sounds_without_high_bands_are_told_too() -> None:
    real, whole = corpus(missing=8), corpus(seed=1)

    (row,) = mismatches("theirs", whole.sound(), real.sound(), 16000, band_edges(SETTINGS))

    assert row["kind"] == "band_limit"
    assert row["real"] == pytest.approx(band_edges(SETTINGS)[BANDS - 8])
    assert row["real"] < row["generated"]
    assert (
        "theirs is 20 dB or more louder than the real sounds: noise in it, or real" in row["text"]
    )


def test_quiet_high_bands_within_the_range_are_no_band_limit() -> None:
    generated = corpus(seed=3)
    generated.spectrum[:, 4:20] -= 12

    assert "band_limit" not in findings(generated)


@pytest.mark.parametrize(("louder", "word"), [(6.0, "louder"), (-12.0, "quieter")])
def test_another_loudness_is_told_in_db(louder: float, word: str) -> None:
    row = findings(corpus(louder=louder))["level"]

    assert row["generated"] - row["real"] == pytest.approx(louder, abs=0.01)
    assert f"{abs(louder):.1f} dB {word}" in row["text"]


def test_another_loudness_is_told_with_the_setting_that_equalises_it() -> None:
    """The text shows it as a config takes it; where it is set already, what it does not reach."""
    advice = findings(corpus(louder=6))["level"]["text"]
    there = findings(corpus(louder=6), normalised=True)["level"]["text"]

    setting = advice[advice.index("loudness:") : advice.index("}") + 1]
    assert FeatureSettings(**yaml.safe_load(setting)).loudness == Loudness(rms=-23)
    assert "whole clips" in there
    assert "{rms" not in there


@pytest.mark.parametrize(("longer", "word"), [(2.0, "longer"), (0.5, "shorter")])
def test_other_lengths_are_told_in_seconds(longer: float, word: str) -> None:
    assert word in findings(corpus(longer=longer))["length"]["text"]


def test_nothing_is_told_of_an_empty_corpus() -> None:
    assert findings(corpus(clips=0)) == {}


def test_parts_of_a_corpus_tell_what_the_whole_tells() -> None:
    for change in ({"missing": 8}, {"silent": 0.2}, {"rate": 8000}):
        generated = corpus(seed=2, **change)
        whole, parts = findings(generated), findings(generated, parts=7)
        assert whole
        assert list(parts) == list(whole)
        for kind, row in parts.items():
            assert row["generated"] == pytest.approx(whole[kind]["generated"])


def test_padding_counts_neither_for_spectrum_nor_level() -> None:
    rng = np.random.default_rng(0)
    sound = rng.normal(-5, 1, (BANDS, 20)).astype(np.float32)
    padded = np.concatenate([np.full((BANDS, 30), np.log(1e-10), np.float32), sound], axis=1)

    spectra, levels, shares = sound_of(padded[np.newaxis])

    np.testing.assert_allclose(spectra[0], sound.mean(axis=1), rtol=1e-6)
    expected = 10 * np.log10(np.exp(sound.astype(np.float64)).sum(axis=0).mean())
    assert levels[0] == pytest.approx(expected, abs=1e-4)
    assert shares[0] == pytest.approx(0.4)


def test_silence_has_the_floor_for_a_level() -> None:
    spectra, levels, shares = sound_of(np.full((1, BANDS, 9), np.log(1e-10), np.float32))

    assert np.isfinite(spectra).all()
    assert shares[0] == 0
    assert levels[0] == pytest.approx(-100 + 10 * np.log10(BANDS), abs=1e-3)


def test_ten_decibels_are_ten_decibels() -> None:
    clip = np.random.default_rng(0).normal(-5, 1, (1, BANDS, 20)).astype(np.float32)

    _, quiet, _ = sound_of(clip)
    _, loud, _ = sound_of(clip + np.float32(np.log(10)))

    assert loud[0] - quiet[0] == pytest.approx(10, abs=1e-4)


def test_band_edges_are_where_the_filters_begin() -> None:
    filters = filterbank(SETTINGS).numpy()
    bins = np.linspace(0, 8000, filters.shape[0])

    for band, edge in enumerate(band_edges(SETTINGS)):
        found_bins = bins[filters[:, band] > 0]
        assert edge <= found_bins[0] <= edge + bins[1]
