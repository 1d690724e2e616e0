"""What sets a corpus apart before anyone listens: rate, bandwidth, loudness and length."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.sums import fold

# What is worth telling; level and length only where chance can't explain it.
LEVEL_DB = 3.0
BAND_DB = 20.0
BAND_SHARE = 1 / 16
LENGTH_RATIO = 1.25
RATE_SHARE = 0.05
SILENCE_SHARE = 0.05
# Natural log power, with room for rounding, at and below which a frame holds no sound.
EMPTY = np.log(1e-10) + 1e-3
DB = 10 / np.log(10)


@dataclass(frozen=True, eq=False)
class SoundSums:
    """Sums over the clips of some parts of a corpus.

    Attributes:
        rates: clips by the sample rate of their file, Hz.
        rows: float64 `(parts, 1 + n_mels)`: the sum of the clips' shares of digital silence,
            padding left out, and the sum of their spectra, natural log power; see `sums.fold`.
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
            sample_rate: of the files, Hz, `(n,)`.
            duration: of the files, s, `(n,)`.
            nonsilent_fraction: share of the frames that are not digital silence, `(n,)`.
            spectrum: mean log-mel where there is sound, natural log power, `(n, n_mels)`.
            clip_length: s, what shorter clips are padded to.
        """
        # What a short clip is padded with is ours, and of its length another row tells.
        own = np.minimum(1, duration / clip_length)
        silent = 1 - np.minimum(1, nonsilent_fraction / own)
        rates, counts = np.unique(sample_rate, return_counts=True)
        rows = np.append(silent.sum(dtype=np.float64), spectrum.sum(axis=0, dtype=np.float64))
        return cls(dict(zip(rates.tolist(), counts.tolist(), strict=True)), rows[np.newaxis])

    @property
    def clips(self) -> int:
        """How many clips there are."""
        return sum(self.rates.values())


def merge_sounds(parts: Sequence[SoundSums]) -> SoundSums:
    """Sums over one part or more, in their order; the rows stay apart."""
    rates = Counter[int]()
    for one in parts:
        rates.update(one.rates)
    return SoundSums(dict(rates), np.concatenate([one.rows for one in parts]))


@dataclass(frozen=True, eq=False)
class CorpusSound:
    """How the clips of one corpus sound.

    Attributes:
        sums: over all clips.
        level_db: mean mel power where there is sound, dB, of a sample of them; see `sound_of`.
        duration: of the files of the same sample, s.
    """

    sums: SoundSums
    level_db: NDArray[np.float32]
    duration: NDArray[np.float64]

    @property
    def means(self) -> NDArray[np.float64]:
        """Mean share of digital silence, and mean spectrum, `(1 + n_mels,)`."""
        return fold(self.sums.rows)[0] / self.sums.clips


def sound_of(
    log_mel: NDArray[np.floating[Any]],
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
    """Mean spectrum and level of log-mels over the frames that hold sound, and how many do.

    Padding is digital silence, and says nothing of how loud a clip is. Of a clip without any sound
    all frames count.

    Args:
        log_mel: natural log power, `(n, n_mels, n_frames)`.

    Returns:
        Mean log-mel `(n, n_mels)`; `(n,)` in dB, 10 log10 of the power, summed over bands and
        averaged over frames, of which only differences mean anything; share of frames, `(n,)`.
    """
    spectra = np.empty(log_mel.shape[:2], np.float32)
    levels = np.empty(len(log_mel), np.float32)
    shares = np.empty(len(log_mel), np.float32)
    for row, clip in enumerate(log_mel):
        nonsilent_fraction = clip.max(axis=0) > EMPTY
        frames = clip[:, nonsilent_fraction] if nonsilent_fraction.any() else clip
        spectra[row], shares[row] = frames.mean(axis=1), nonsilent_fraction.mean()
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
    """What a reader must know before comparing a generated corpus with the real one.

    Args:
        name: of the generated corpus.
        generated: its clips.
        real: the real clips.
        classifier_rate: Hz, what every clip is resampled to.
        band_edges: lower edge of each mel band, Hz, `(n_mels,)`.
        normalised: `features.loudness` is set.

    Returns:
        Rows of `corpus`, `kind` (`sample_rate`, `band_limit`, `level`, `length` or `silence`),
        `real`, `generated` (Hz, Hz, dB, s, a share of the frames) and `text`, a sentence. None
        where a corpus has no clip.
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


_Found = list[tuple[str, float, float, str]]


def _rates(name: str, generated: CorpusSound, real: CorpusSound, classifier_rate: int) -> _Found:
    ours, theirs = _commonest(real.sums.rates), _commonest(generated.sums.rates)
    # What both hold above the classifier's band is cut off from both.
    if ours == theirs or min(ours, theirs) >= classifier_rate:
        return _some_rates(name, generated, real, classifier_rate)
    lower = "generated" if theirs < ours else "real"
    text = (
        f"{name} is sampled at {theirs} Hz, the real sounds at {ours} Hz: above "
        f"{min(ours, theirs) / 2:g} Hz the {lower} clips hold nothing, and the classifier uses "
        f"frequencies up to {classifier_rate / 2:g} Hz; compare at the same rate"
    )
    return [("sample_rate", ours, theirs, text)]


def _some_rates(
    name: str, generated: CorpusSound, real: CorpusSound, classifier_rate: int
) -> _Found:
    """Of corpora of the same commonest rate: clips of lower ones among them."""
    ours, theirs = (
        sum(count for rate, count in sound.sums.rates.items() if rate < classifier_rate)
        / sound.sums.clips
        for sound in (real, generated)
    )
    if abs(theirs - ours) < RATE_SHARE:
        return []
    text = (
        f"{theirs:.0%} of {name}'s clips and {ours:.0%} of the real ones are sampled at less than "
        f"{classifier_rate} Hz: they lack treble that the classifier uses; compare at the same rate"
    )
    # The lowest of each side.
    return [("sample_rate", min(real.sums.rates), min(generated.sums.rates), text)]


def _band_limit(
    name: str, generated: CorpusSound, real: CorpusSound, band_edges: NDArray[np.float64]
) -> _Found:
    above = DB * (real.means[1:] - generated.means[1:])
    whole = float(band_edges[-1])
    for missing, of_real in ((above > BAND_DB, False), (-above > BAND_DB, True)):
        # Of the highest bands only: anything else is a matter of the sound, not of its bandwidth.
        kept = len(missing) - int(np.cumprod(missing[::-1]).sum())
        if len(missing) - kept < max(1, BAND_SHARE * len(missing)) or kept == 0:
            continue
        top = float(band_edges[kept])
        if of_real:
            text = (
                f"above {top:.0f} Hz {name} is {BAND_DB:g} dB or more louder than the real sounds: "
                "noise in it, or real sounds that were made at a lower sample rate"
            )
            return [("band_limit", top, whole, text)]
        text = (
            f"{name} has next to no sound above {top:.0f} Hz: there it is {BAND_DB:g} dB or more "
            "below the real sounds, as sounds are that were made at a lower sample rate"
        )
        return [("band_limit", whole, top, text)]
    return []


def _levels(name: str, generated: CorpusSound, real: CorpusSound, normalised: bool) -> _Found:
    ours, theirs = float(np.median(real.level_db)), float(np.median(generated.level_db))
    if abs(ours - theirs) < max(LEVEL_DB, _chance(generated.level_db, real.level_db)):
        return []
    word = "louder" if theirs > ours else "quieter"
    advice = (
        "features.loudness equalises whole clips, not the frames that hold sound, nor mel bands"
        if normalised
        else "if level is not what you compare, features.loudness: {rms: -23} makes all clips equal"
    )
    text = (
        f"{name} is {abs(theirs - ours):.1f} dB {word} than the real sounds (medians), and the "
        f"classifier takes account of level; {advice}"
    )
    return [("level", ours, theirs, text)]


def _lengths(name: str, generated: CorpusSound, real: CorpusSound) -> _Found:
    ours, theirs = float(np.median(real.duration)), float(np.median(generated.duration))
    few = abs(ours - theirs) < _chance(generated.duration, real.duration)
    if few or max(ours, theirs) < LENGTH_RATIO * min(ours, theirs):
        return []
    word = "longer" if theirs > ours else "shorter"
    text = (
        f"{name} has {word} clips than the real corpus: {theirs:.2f} s and {ours:.2f} s (medians)"
    )
    return [("length", ours, theirs, text)]


def _silence(name: str, generated: CorpusSound, real: CorpusSound) -> _Found:
    ours, theirs = float(real.means[0]), float(generated.means[0])
    if abs(ours - theirs) < SILENCE_SHARE:
        return []
    text = (
        f"{ours:.0%} of the real sounds' frames are digital silence, of {name}'s {theirs:.0%}: the "
        "classifier sees a noise floor or its absence; trim the real clips, or pad alike"
    )
    return [("silence", ours, theirs, text)]


def _chance(one: NDArray[np.floating[Any]], other: NDArray[np.floating[Any]]) -> float:
    """What the medians of two draws from one corpus seldom differ by: three standard errors."""
    variance = sum(np.var(values, dtype=np.float64) / len(values) for values in (one, other))
    return float(3 * np.sqrt(np.pi / 2 * variance))


def _commonest(rates: Mapping[int, int]) -> int:
    """The lowest of equally common ones."""
    return min(rates, key=lambda rate: (-rates[rate], rate))
