"""Copy detection by log-mel: the training window most similar to each generated window.

Copies are found despite a change of level, a shift or roll in time, added noise, or a lossy codec.
The embedding of the classifier is not used. There are two steps: `candidates` compares one vector
per window by matrix products; `similarity` aligns the log-mels of the best candidates.
`threshold_of` calibrates, on real clips, the similarity from which a clip counts as a copy.

Windows without variation, such as silence or a steady tone, have a similarity near 0 to every
window, including themselves: they are never copies.

A clip of several windows has one entry per window; `by_clip` takes its most similar window. Padding
is compared like sound: a copy with the same padding is found; an excerpt whose padding covers
steady sound of the original is not.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.copy_search import (
    CANDIDATES,
    MAX_LAG_SECONDS,
    TrainingWindows,
    candidates,
    coarse_vectors,
    normalised,
    similarity,
)
from raysound.metrics.intervals import Estimate, estimate, proportion_estimate


@dataclass(frozen=True, eq=False)
class Copies:
    """One entry per generated window, or per generated clip after `by_clip`.

    Attributes:
        index: the most similar training window, the lower index of equal ones, `(n,)`; -1 if there
            is no candidate.
        similarity: similarity to this window, in [-1, 1], `(n,)`.
        lag: seconds by which sounds occur later than in the training window, `(n,)`; for a rolled
            window, the direction with the smaller lag.
    """

    index: NDArray[np.int64]
    similarity: NDArray[np.float32]
    lag: NDArray[np.float32]


@dataclass(frozen=True)
class Threshold:
    """The similarity from which a clip counts as a copy.

    Attributes:
        value: a clip is a copy if its similarity is at least this; None if not calibrated.
        rate: share of real clips that may be flagged.
        clips: number of real clips of the calibration.
        why: reason, if there is no value.
    """

    value: float | None
    rate: float
    clips: int
    why: str = ""


def find_copies(
    generated: NDArray[np.uint8],
    reference: TrainingWindows,
    k: int = CANDIDATES,
    max_lag: float = MAX_LAG_SECONDS,
    excluded: NDArray[np.int64] | None = None,
    own: NDArray[np.int64] | None = None,
) -> Copies:
    """The most similar training window of every generated window.

    Args:
        generated: patches, `(n, n_mels, frames)`, of the reference's settings.
        reference: training windows.
        k: candidates that are compared exactly.
        max_lag: seconds, see `similarity`.
        excluded: group of each training window `(m,)`, if `generated` are training windows
            themselves: windows of the same group are not compared. Used for `threshold_of`.
        own: group of each of `generated` `(n,)`; None if they are all training windows, in order.

    Returns:
        One entry per generated window.

    Raises:
        ValueError: the shapes of the windows differ, or the lengths of groups and windows.
    """
    vectors = normalised(coarse_vectors(generated), reference.centre)
    groups = None
    if excluded is not None:
        groups = (excluded if own is None else own), excluded
        if (len(groups[0]), len(excluded)) != (len(generated), len(reference.patches)):
            raise ValueError(
                f"{len(groups[0])} and {len(excluded)} groups for {len(generated)} windows and "
                f"{len(reference.patches)} training windows"
            )
    chosen = candidates(vectors, reference.vectors, k, groups)
    found, lag = similarity(generated, reference.patches, chosen, reference.frame_seconds, max_lag)
    if groups is not None:
        found = np.where(groups[1][chosen] == groups[0][:, np.newaxis], -np.inf, found)
    # Of equally similar windows the lower index comes first.
    order = np.lexsort((chosen, -found), axis=1)[:, 0]
    rows = np.arange(len(chosen))
    best = found[rows, order]
    none = np.isneginf(best)
    return Copies(
        np.where(none, -1, chosen[rows, order]),
        np.where(none, np.float32(-1), best).astype(np.float32),
        np.where(none, np.float32(0), lag[rows, order]).astype(np.float32),
    )


def by_clip(copies: Copies, starts: ArrayLike) -> Copies:
    """The most similar window of each clip; clips of more windows have more chances of a match.

    Args:
        copies: one entry per window, the windows of a clip next to each other.
        starts: index of the first window of each clip, `(clips,)`, ascending from 0.
    """
    first = np.asarray(starts, np.int64)
    clip = np.repeat(np.arange(len(first)), np.diff(np.append(first, len(copies.index))))
    order = np.lexsort((np.arange(len(clip)), -copies.similarity, clip))
    best = order[first]
    return Copies(copies.index[best], copies.similarity[best], copies.lag[best])


def threshold_of(real_similarities: ArrayLike, rate: float = 0.01) -> Threshold:
    """The similarity that a real clip reaches with a probability of at most `rate`.

    With n clips and r = floor(rate (n + 1)), the value is the r-th largest similarity. A new clip
    of the same distribution is among the r largest of n + 1 with probability r / (n + 1). Real
    clips that are duplicates of each other increase the value: check the most similar real pairs.

    Source: V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a Random World", Springer
    2005, section 2.2: conformal prediction.

    Args:
        real_similarities: of real clips to their most similar training clip of another group,
            `(n,)`.
        rate: share of real clips that may be flagged, in (0, 1).

    Returns:
        A threshold; without a value if n + 1 < 1 / rate.

    Raises:
        ValueError: the rate is outside (0, 1), or a similarity is not finite.
    """
    if not 0 < rate < 1:
        raise ValueError(f"rate must be in (0, 1), got {rate}")
    values = np.sort(np.asarray(real_similarities, np.float64))[::-1]
    if not np.isfinite(values).all():
        raise ValueError("a similarity of a real clip is not finite")
    n = len(values)
    needed = ceil(1 / rate - 1e-9) - 1
    if n < needed:
        return Threshold(
            None, rate, n, f"{n} real clips: a threshold at {rate:.2%} needs at least {needed}"
        )
    allowed = floor(rate * (n + 1) + 1e-9)
    return Threshold(float(values[allowed - 1]), rate, n)


def copied_share(similarities: ArrayLike, threshold: Threshold) -> Estimate:
    """Share of clips that are copies, with the Wilson interval.

    Args:
        similarities: of generated clips, `(n,)`, see `by_clip`.
        threshold: without a value, the share has no value either, for the same reason.
    """
    if threshold.value is None:
        return estimate(None, why=threshold.why)
    values = np.asarray(similarities)
    return proportion_estimate(int((values >= threshold.value).sum()), len(values))
