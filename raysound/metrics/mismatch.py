"""Technical differences between corpora: sample rate, bandwidth, level, length and silence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.sums import sum_in_order

# Thresholds of the reported differences; level and length must also be significant.
LEVEL_DB = 3.0
BAND_DB = 20.0
BAND_SHARE = 1 / 16
LENGTH_RATIO = 1.25
RATE_SHARE = 0.05
SILENCE_SHARE = 0.05
# Natural log power, with a tolerance for rounding, up to which a frame is silent.
SILENT_LOG_POWER = np.log(1e-10) + 1e-3
DB_PER_NEPER = 10 / np.log(10)


@dataclass(frozen=True, eq=False)
class SoundSums:
    """Sums over the clips of some parts of a corpus.

    Attributes:
        rates: number of clips by the sample rate of their file, Hz.
        rows: float64 `(parts, 1 + n_mels)`: the sum of the shares of digital silence, without
            padding, and the sum of the spectra, natural log power; see `sums.sum_in_order`.
    """

    rates: Mapping[int, int]
    rows: NDArray[np.float64]

    @classmethod
    def of(
        cls,
        sample_rate: NDArray[np.integer[Any]],
        duration: NDArray[np.float64],
        nonsilent_fraction: NDArray[np.floating[Any]],
        spectrum: NDArray[np.floating[Any]],
        clip_length: float,
    ) -> SoundSums:
        """Sums over the clips of one part.

        Args:
            sample_rate: sample rate of the files, Hz, `(n,)`.
            duration: duration of the files, s, `(n,)`.
            nonsilent_fraction: share of the frames that are not digital silence, `(n,)`.
            spectrum: mean log-mel of the nonsilent frames, natural log power, `(n, n_mels)`.
            clip_length: s, length to which shorter clips are padded.
        """
        # Padding is not counted as silence; the length of clips is compared separately.
        unpadded = np.minimum(1, duration / clip_length)
        silent = 1 - np.minimum(1, nonsilent_fraction / unpadded)
        rates, counts = np.unique(sample_rate, return_counts=True)
        rows = np.append(silent.sum(dtype=np.float64), spectrum.sum(axis=0, dtype=np.float64))
        return cls(dict(zip(rates.tolist(), counts.tolist(), strict=True)), rows[np.newaxis])

    @property
    def clips(self) -> int:
        """Number of clips."""
        return sum(self.rates.values())


def merge_sounds(parts: Sequence[SoundSums]) -> SoundSums:
    """Merges the sums of one or more parts, in their order; the rows are concatenated."""
    rates = Counter[int]()
    for one in parts:
        rates.update(one.rates)
    return SoundSums(dict(rates), np.concatenate([one.rows for one in parts]))


@dataclass(frozen=True, eq=False)
class CorpusSound:
    """Technical properties of the clips of one corpus.

    Attributes:
        sums: sums over all clips.
        level_db: mean mel power of the nonsilent frames, dB, of a sample of the clips; see
            `spectrum_and_level`.
        duration: duration of the files of the same sample, s.
    """

    sums: SoundSums
    level_db: NDArray[np.float32]
    duration: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean share of digital silence, and mean spectrum, `(1 + n_mels,)`."""
        return sum_in_order(self.sums.rows)[0] / self.sums.clips


def spectrum_and_level(
    log_mel: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean spectrum and level of the nonsilent frames of log-mels, and the share of these frames.

    Silent frames, such as padding, do not count for the level of a clip. If all frames of a clip
    are silent, all of them are used.

    Args:
        log_mel: natural log power, `(n, n_mels, n_frames)`.

    Returns:
        Mean log-mel, `(n, n_mels)`; level in dB, 10 log10 of the power summed over bands and
        averaged over frames, `(n,)`, of which only differences are meaningful; share of nonsilent
        frames, `(n,)`.
    """
    spectra = np.empty(log_mel.shape[:2], np.float32)
    levels = np.empty(len(log_mel), np.float32)
    shares = np.empty(len(log_mel), np.float32)
    for row, clip in enumerate(log_mel):
        nonsilent = clip.max(axis=0) > SILENT_LOG_POWER
        frames = clip[:, nonsilent] if nonsilent.any() else clip
        spectra[row], shares[row] = frames.mean(axis=1), nonsilent.mean()
        power = np.exp(frames, dtype=np.float64).sum(axis=0).mean()
        levels[row] = 10 * np.log10(power)
    return spectra, levels, shares


def mismatches(
    name: str,
    generated: CorpusSound,
    real: CorpusSound,
    classifier_rate: int,
    band_edges: NDArray[np.float64],
    normalised: bool = False,
) -> list[dict[str, Any]]:
    """Technical differences between a generated corpus and the real corpus.

    Args:
        name: name of the generated corpus.
        generated: the generated clips.
        real: the real clips.
        classifier_rate: Hz, sample rate to which every clip is resampled.
        band_edges: lower edge of each mel band, Hz, `(n_mels,)`.
        normalised: whether `features.loudness` is set.

    Returns:
        Rows of `corpus`, `kind` (`sample_rate`, `band_limit`, `level`, `length` or `silence`),
        `real`, `generated` (Hz, Hz, dB, s, share of the frames) and `text`, a sentence. Empty if a
        corpus has no clips.
    """
    if not generated.sums.clips or not real.sums.clips:
        return []
    return [
        {
            "corpus": name,
            "kind": kind,
            "real": float(ours),
            "generated": float(theirs),
            "text": text,
        }
        for kind, ours, theirs, text in (
            *_rates(name, generated, real, classifier_rate),
            *_band_limit(name, generated, real, band_edges),
            *_levels(name, generated, real, normalised),
            *_lengths(name, generated, real),
            *_silence(name, generated, real),
        )
    ]


_Findings = list[tuple[str, float, float, str]]


def _rates(name: str, generated: CorpusSound, real: CorpusSound, classifier_rate: int) -> _Findings:
    ours, theirs = _most_common_rate(real.sums.rates), _most_common_rate(generated.sums.rates)
    # Frequencies above the band of the classifier are removed from both corpora.
    if ours == theirs or min(ours, theirs) >= classifier_rate:
        return _mixed_rates(name, generated, real, classifier_rate)
    lower = "generated" if theirs < ours else "real"
    text = (
        f"{name} has a sample rate of {theirs} Hz, the real sounds of {ours} Hz: above "
        f"{min(ours, theirs) / 2:g} Hz the {lower} clips contain no sound, and the classifier uses "
        f"frequencies up to {classifier_rate / 2:g} Hz; compare at the same rate"
    )
    return [("sample_rate", ours, theirs, text)]


def _mixed_rates(
    name: str, generated: CorpusSound, real: CorpusSound, classifier_rate: int
) -> _Findings:
    """Compares the shares of clips with lower rates, if the most common rates are equal."""
    ours, theirs = (
        sum(count for rate, count in sound.sums.rates.items() if rate < classifier_rate)
        / sound.sums.clips
        for sound in (real, generated)
    )
    if abs(theirs - ours) < RATE_SHARE:
        return []
    text = (
        f"{theirs:.0%} of the clips of {name} and {ours:.0%} of the real clips have a sample rate "
        f"below {classifier_rate} Hz: they lack high frequencies that the classifier uses; compare "
        "at the same rate"
    )
    return [("sample_rate", min(real.sums.rates), min(generated.sums.rates), text)]


def _band_limit(
    name: str, generated: CorpusSound, real: CorpusSound, band_edges: NDArray[np.float64]
) -> _Findings:
    above = DB_PER_NEPER * (real.means[1:] - generated.means[1:])
    highest = float(band_edges[-1])
    for missing, of_real in ((above > BAND_DB, False), (-above > BAND_DB, True)):
        # Only the highest bands show a band limit; other bands differ with the sounds.
        kept = len(missing) - int(np.cumprod(missing[::-1]).sum())
        if len(missing) - kept < max(1, BAND_SHARE * len(missing)) or kept == 0:
            continue
        top = float(band_edges[kept])
        if of_real:
            text = (
                f"above {top:.0f} Hz, {name} is at least {BAND_DB:g} dB louder than the real "
                "sounds: it contains noise, or the real sounds were made at a lower sample rate"
            )
            return [("band_limit", top, highest, text)]
        text = (
            f"above {top:.0f} Hz, {name} is at least {BAND_DB:g} dB quieter than the real sounds: "
            "it was probably made at a lower sample rate"
        )
        return [("band_limit", highest, top, text)]
    return []


def _levels(name: str, generated: CorpusSound, real: CorpusSound, normalised: bool) -> _Findings:
    ours, theirs = float(np.median(real.level_db)), float(np.median(generated.level_db))
    if abs(ours - theirs) < max(
        LEVEL_DB, _three_standard_errors(generated.level_db, real.level_db)
    ):
        return []
    word = "louder" if theirs > ours else "quieter"
    advice = (
        "features.loudness equalises complete clips, not their nonsilent frames or mel bands"
        if normalised
        else "to compare without level differences, set features.loudness: {rms: -23}"
    )
    text = (
        f"{name} is {abs(theirs - ours):.1f} dB {word} than the real sounds (medians), and the "
        f"classifier depends on the level; {advice}"
    )
    return [("level", ours, theirs, text)]


def _lengths(name: str, generated: CorpusSound, real: CorpusSound) -> _Findings:
    ours, theirs = float(np.median(real.duration)), float(np.median(generated.duration))
    few = abs(ours - theirs) < _three_standard_errors(generated.duration, real.duration)
    if few or max(ours, theirs) < LENGTH_RATIO * min(ours, theirs):
        return []
    word = "longer" if theirs > ours else "shorter"
    text = (
        f"{name} has {word} clips than the real corpus: {theirs:.2f} s, real {ours:.2f} s (medians)"
    )
    return [("length", ours, theirs, text)]


def _silence(name: str, generated: CorpusSound, real: CorpusSound) -> _Findings:
    ours, theirs = float(real.means[0]), float(generated.means[0])
    if abs(ours - theirs) < SILENCE_SHARE:
        return []
    text = (
        f"{ours:.0%} of the real frames and {theirs:.0%} of the frames of {name} are digital "
        "silence, which a classifier may distinguish from a noise floor; trim or pad both alike"
    )
    return [("silence", ours, theirs, text)]


def _three_standard_errors(
    one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]
) -> float:
    """Three standard errors of the difference of the medians of two samples of one corpus."""
    variance = sum(np.var(values, dtype=np.float64) / len(values) for values in (one, other))
    return float(3 * np.sqrt(np.pi / 2 * variance))


def _most_common_rate(rates: Mapping[int, int]) -> int:
    """The most common sample rate; the lowest of equally common rates."""
    return min(rates, key=lambda rate: (-rates[rate], rate))
