"""Chooses settings for a corpus and a machine."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound.audio.decode import LEAST_SURPLUS
from raysound.corpora.split import assign_split
from raysound.corpora.vocabulary import SPLITS, quoted
from raysound.errors import UserError
from raysound.init.survey import Corpus
from raysound.settings.corpora import SplitSettings
from raysound.wording import counted

# Seconds. The shortest one that FITTING_PERCENT of the clips fit in is chosen, or the longest.
CLIP_LENGTHS = (0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)
FITTING_PERCENT = 95
# Test and validation clips as shares of each class, in the order of preference.
FRACTIONS = (0.15, 0.2, 0.25)
# Minimum length of a Fourier transform in seconds, because the lowest mel bands are narrow, and in
# samples; maximum number of mel bands.
FFT_SECONDS, MIN_FFT, MAX_BANDS = 0.04, 64, 64
# Upper bound of training windows, batch size, epochs on a CPU, epochs on a GPU.
SIZES = (
    (500, 16, 60, 100),
    (2000, 16, 40, 80),
    (10_000, 32, 20, 50),
    (50_000, 64, 10, 40),
    (float("inf"), 64, 5, 20),
)
# Classes are balanced if the largest has more than this multiple of the clips of the smallest.
MAX_CLASS_RATIO = 3


@dataclass(frozen=True)
class SplitChoice:
    """The split of the real corpus.

    Attributes:
        settings: of the split.
        folds: of the corpus, ascending; empty if they are not used.
        given: names of the splits that the corpus itself defines.
        counts: number of clips per split.
        missing: labels that are missing in at least one split.
    """

    settings: SplitSettings
    folds: tuple[str, ...]
    given: frozenset[str]
    counts: dict[str, int]
    missing: tuple[str, ...]


@dataclass(frozen=True)
class FeatureChoice:
    """Settings of the log-mel.

    Attributes:
        sample_rate: Hz.
        clip_length: seconds.
        hop_length: samples.
        n_fft: samples.
        n_mels: bands.
        windows: per clip, on average.
    """

    sample_rate: int
    clip_length: float
    hop_length: int
    n_fft: int
    n_mels: int
    windows: float


@dataclass(frozen=True)
class TrainingChoice:
    """Settings of the classifier and its training.

    Attributes:
        model: name of the architecture.
        epochs: passes over the training clips.
        batch_size: clips per step.
        balanced: whether classes of unequal size are weighted.
        windows: approximate number of training windows.
    """

    model: str
    epochs: int
    batch_size: int
    balanced: bool
    windows: int


def choose_features(real: Corpus, has_gpu: bool) -> FeatureChoice:
    """Settings of the log-mel for the sounds of a corpus.

    Args:
        real: the corpus.
        has_gpu: without a GPU, the number of frames per second is halved.
    """
    longest = float(np.percentile(real.durations, FITTING_PERCENT))
    # A remainder shorter than LEAST_SURPLUS of a window has no window of its own.
    fitting = (length for length in CLIP_LENGTHS if longest <= length * (1 + LEAST_SURPLUS))
    clip_length = next(fitting, CLIP_LENGTHS[-1])
    rate = real.rate
    n_fft = max(MIN_FFT, 1 << int(np.ceil(np.log2(rate * FFT_SECONDS))))
    windows = np.maximum(np.ceil(real.durations / clip_length - LEAST_SURPLUS), 1)
    return FeatureChoice(
        sample_rate=rate,
        clip_length=clip_length,
        hop_length=max(1, round(rate / (100 if has_gpu else 50))),
        n_fft=n_fft,
        n_mels=min(MAX_BANDS, n_fft // 4),
        windows=float(windows.mean()),
    )


def choose_training(
    real: Corpus, split: SplitChoice, features: FeatureChoice, has_gpu: bool
) -> TrainingChoice:
    """Settings of the classifier and its training for the size of a corpus and the machine.

    Args:
        real: the corpus.
        split: of the corpus.
        features: settings of its log-mels.
        has_gpu: whether PyTorch finds a GPU.
    """
    windows = round(split.counts["train"] * features.windows)
    _, batch_size, *epochs = next(size for size in SIZES if windows < size[0])
    counts = real.classes.values()
    return TrainingChoice(
        model="resnetish18" if has_gpu else "cnn6",
        epochs=epochs[has_gpu],
        batch_size=batch_size,
        balanced=max(counts) > MAX_CLASS_RATIO * min(counts),
        windows=windows,
    )


def choose_split(real: Corpus) -> SplitChoice:
    """Chooses the folds of a corpus, or the shares with the fewest classes missing in a split.

    Splits that the corpus itself defines are kept.

    Raises:
        UserError: there are too few clips to train, validate and test.
    """
    choices = []
    first_error: UserError | None = None
    for settings, folds in _candidates(real.clips):
        try:
            found = _split(real, settings, folds)
        except UserError as error:
            first_error = first_error or error
            continue
        if not all(found.counts.values()):
            continue
        if folds:
            return found
        choices.append(found)
    if not choices:
        raise first_error or UserError(
            f"{real.path}: {counted(len(real.clips), 'clip')} of "
            f"{counted(len(real.classes), 'class')} are too few to train, validate and test: add "
            "clips"
        )
    return min(choices, key=lambda one: len(one.missing))


def _candidates(clips: pa.Table) -> Iterator[tuple[SplitSettings, tuple[str, ...]]]:
    """Yields possible settings of the split, the best first, with the folds that they use."""
    given = {*pc.unique(clips["split"].drop_null()).to_pylist()}
    folds = pc.unique(clips["fold"].drop_null()).to_pylist()
    folds.sort(key=lambda fold: (not fold.isdecimal(), len(fold) * fold.isdecimal(), fold))
    if not given and len(folds) > 1:
        if len(folds) > 2:
            both = SplitSettings(test_folds=(folds[-1],), validation_folds=(folds[-2],))
            yield both, tuple(folds)
        yield SplitSettings(test_folds=(folds[-1],)), tuple(folds)
    for share in FRACTIONS:
        yield SplitSettings(test_fraction=share, validation_fraction=share), ()


def _split(real: Corpus, settings: SplitSettings, folds: tuple[str, ...]) -> SplitChoice:
    clips_with_split = assign_split(real.clips, settings)
    given = frozenset(pc.unique(real.clips["split"].drop_null()).to_pylist())
    counts, missing = {}, set()
    for name in SPLITS:
        clips = clips_with_split.filter(pc.equal(clips_with_split["split"], name))
        counts[name] = len(clips)
        missing |= {*real.classes} - {*pc.unique(clips["label"]).to_pylist()}
    return SplitChoice(settings, folds, given, counts, tuple(map(quoted, sorted(missing))))
