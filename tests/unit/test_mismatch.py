from dataclasses import dataclass

import numpy as np
import pytest
import yaml

from raysound.audio.log_mel import filterbank
from raysound.features.bands import band_edges
from raysound.metrics.mismatch import (
    CorpusSound,
    SoundSums,
    merge_sounds,
    mismatches,
    spectrum_and_level,
)
from raysound.settings.features import FeatureSettings, Loudness

BANDS = 32
SETTINGS = FeatureSettings(
    clip_length=1, sample_rate=16000, hop_length=160, n_fft=1024, n_mels=BANDS, f_max=8000
)


LENGTH = 0.7


@dataclass
class Clips:
    """Properties of some clips, one row per clip."""

    sample_rate: np.ndarray
    duration: np.ndarray
    level_db: np.ndarray
    nonsilent_fraction: np.ndarray
    spectrum: np.ndarray

    def sound(self, parts: int = 1) -> CorpusSound:
        """The same clips as sums over `parts` parts."""
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
    """Clips of about -40 dB, 1 s and 16 kHz with a flat spectrum, modified by `change`."""
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


def test_samples_of_the_same_distribution_have_no_mismatch() -> None:
    assert [findings(corpus(seed=seed)) for seed in range(1, 20)] == [{}] * 19


def test_a_lower_sample_rate_is_reported_with_the_missing_band() -> None:
    row = findings(corpus(rate=8000))["sample_rate"]

    assert (row["real"], row["generated"]) == (16000, 8000)
    assert "above 4000 Hz the generated clips contain no sound" in row["text"]


def test_the_share_of_clips_with_a_lower_sample_rate_is_reported() -> None:
    generated = corpus(seed=1)
    generated.sample_rate[:19] = 8000

    row = findings(generated)["sample_rate"]

    assert (row["real"], row["generated"]) == (16000, 8000)
    assert (
        "48% of the clips of theirs and 0% of the real clips have a sample rate below 16000"
        in (row["text"])
    )
    generated.sample_rate[1:] = 16000
    assert findings(generated) == {}, "one clip of 40"


def test_a_sample_rate_above_that_of_the_classifier_is_not_reported() -> None:
    assert findings(corpus(rate=48000)) == {}


def test_digital_silence_on_one_side_is_reported() -> None:
    row = findings(corpus(silent=0.2))["silence"]

    assert (row["real"], row["generated"]) == pytest.approx((0, 0.2))
    assert (
        "0% of the real frames and 20% of the frames of theirs are digital silence" in row["text"]
    )
    assert findings(corpus(silent=0.03)) == {}


def test_padding_of_short_clips_does_not_count_as_silence() -> None:
    """Clips of 0.5 s, padded to 0.7 s, differ only in length."""
    assert list(findings(corpus(longer=0.5, silent=2 / 7))) == ["length"]
    assert "silence" in findings(corpus(longer=0.5, silent=0.5))


def test_empty_high_bands_are_reported_with_their_lowest_frequency() -> None:
    row = findings(corpus(missing=8))["band_limit"]

    assert row["generated"] == pytest.approx(band_edges(SETTINGS)[BANDS - 8])
    assert f"above {row['generated']:.0f} Hz, theirs is at least 20 dB quieter" in row["text"]
    assert findings(corpus(missing=1)) == {}, "one of 32 bands is below the threshold"


def test_empty_high_bands_of_real_sounds_are_reported() -> None:
    real, generated = corpus(missing=8), corpus(seed=1)

    (row,) = mismatches("theirs", generated.sound(), real.sound(), 16000, band_edges(SETTINGS))

    assert row["kind"] == "band_limit"
    assert row["real"] == pytest.approx(band_edges(SETTINGS)[BANDS - 8])
    assert row["real"] < row["generated"]
    assert (
        "theirs is at least 20 dB louder than the real sounds: it contains noise, or the real"
        in row["text"]
    )


def test_quiet_bands_below_the_highest_are_no_band_limit() -> None:
    generated = corpus(seed=3)
    generated.spectrum[:, 4:20] -= 12

    assert "band_limit" not in findings(generated)


@pytest.mark.parametrize(("louder", "word"), [(6.0, "louder"), (-12.0, "quieter")])
def test_a_level_difference_is_reported_in_db(louder: float, word: str) -> None:
    row = findings(corpus(louder=louder))["level"]

    assert row["generated"] - row["real"] == pytest.approx(louder, abs=0.01)
    assert f"{abs(louder):.1f} dB {word}" in row["text"]


def test_a_level_difference_is_reported_with_the_setting_that_equalises_it() -> None:
    """The text has the YAML of the setting; if it is set already, the text states its limits."""
    advice = findings(corpus(louder=6))["level"]["text"]
    limits = findings(corpus(louder=6), normalised=True)["level"]["text"]

    setting = advice[advice.index("loudness:") : advice.index("}") + 1]
    assert FeatureSettings(**yaml.safe_load(setting)).loudness == Loudness(rms=-23)
    assert "complete clips" in limits
    assert "{rms" not in limits


@pytest.mark.parametrize(("longer", "word"), [(2.0, "longer"), (0.5, "shorter")])
def test_a_difference_of_length_is_reported(longer: float, word: str) -> None:
    assert word in findings(corpus(longer=longer))["length"]["text"]


def test_an_empty_corpus_has_no_mismatch() -> None:
    assert findings(corpus(clips=0)) == {}


def test_merged_parts_give_the_same_mismatches_as_one_part() -> None:
    for change in ({"missing": 8}, {"silent": 0.2}, {"rate": 8000}):
        generated = corpus(seed=2, **change)
        single, parts = findings(generated), findings(generated, parts=7)
        assert single
        assert list(parts) == list(single)
        for kind, row in parts.items():
            assert row["generated"] == pytest.approx(single[kind]["generated"])


def test_spectrum_and_level_exclude_padding() -> None:
    rng = np.random.default_rng(0)
    sound = rng.normal(-5, 1, (BANDS, 20)).astype(np.float32)
    padded = np.concatenate([np.full((BANDS, 30), np.log(1e-10), np.float32), sound], axis=1)

    spectra, levels, shares = spectrum_and_level(padded[np.newaxis])

    np.testing.assert_allclose(spectra[0], sound.mean(axis=1), rtol=1e-6)
    expected = 10 * np.log10(np.exp(sound.astype(np.float64)).sum(axis=0).mean())
    assert levels[0] == pytest.approx(expected, abs=1e-4)
    assert shares[0] == pytest.approx(0.4)


def test_the_level_of_silence_is_that_of_the_floor() -> None:
    spectra, levels, shares = spectrum_and_level(np.full((1, BANDS, 9), np.log(1e-10), np.float32))

    assert np.isfinite(spectra).all()
    assert shares[0] == 0
    assert levels[0] == pytest.approx(-100 + 10 * np.log10(BANDS), abs=1e-3)


def test_a_tenfold_power_raises_the_level_by_10_db() -> None:
    clip = np.random.default_rng(0).normal(-5, 1, (1, BANDS, 20)).astype(np.float32)

    _, quiet, _ = spectrum_and_level(clip)
    _, loud, _ = spectrum_and_level(clip + np.float32(np.log(10)))

    assert loud[0] - quiet[0] == pytest.approx(10, abs=1e-4)


def test_band_edges_are_the_lowest_frequencies_of_the_filters() -> None:
    filters = filterbank(SETTINGS).numpy()
    bins = np.linspace(0, 8000, filters.shape[0])

    for band, edge in enumerate(band_edges(SETTINGS)):
        found_bins = bins[filters[:, band] > 0]
        assert edge <= found_bins[0] <= edge + bins[1]
