"""Metrics of the nearest neighbours of generated and reference clips: fidelity, diversity, copies.

A clip's radius is the distance to the k-th nearest other clip of its own set; its ball holds what
is strictly nearer.

Sources: T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative
models", NeurIPS 2019 (precision, recall, realism); M. F. Naeem et al., "Reliable fidelity and
diversity metrics for generative models", ICML 2020 (density, coverage); A. M. Alaa et al., "How
faithful is your synthetic data?", ICML 2022 (authenticity).
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, rows, same_dimensions
from raysound.metrics.distances import centre, squared_distances
from raysound.metrics.intervals import (
    Estimate,
    estimate,
    half_samples,
    mean_measure,
    proportion_estimate,
    resampling_estimate,
    spread_interval,
)

K = 5
# Of these many neighbours a random half holds 5 or more, but for one clip in 100,000.
KEPT = 32
# A neighbour at the radius itself is outside, whichever way the two were rounded.
STRICT = 1 - 1e-9
# Clips whose distances to the whole reference are computed at a time.
BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of generated to reference clips, and the radii of both sets.

    Attributes:
        squared: |generated - reference|², `(m, n)`: a row per reference clip.
        reference_radii: Squared radii, `(m,)`.
        near: Generated clips' nearest other generated clips, `(n, up to 32)`, nearest first.
        near_squared: Their squared distances, `(n, up to 32)`.
        k: Which neighbour sets the radius.
    """

    squared: NDArray[np.float64]
    reference_radii: NDArray[np.float64]
    near: NDArray[np.int64]
    near_squared: NDArray[np.float64]
    k: int


@dataclass(frozen=True, eq=False)
class PerClip:
    """What the reference says of each generated clip alone.

    Attributes:
        balls: In how many reference balls it lies, `(n,)`.
        authentic: Whether it lies farther from its nearest reference clip than that one from its
            own nearest other reference clip, `(n,)`. At distance 0 it is a copy.
        k: Which neighbour sets the radius.
    """

    balls: NDArray[np.int64]
    authentic: NDArray[np.bool_]
    k: int


class BallCounts(NamedTuple):
    """Sums over clips of `PerClip`: integers, which add up to the same in any order.

    Attributes:
        clips: How many there are.
        inside: Those that lie in a ball.
        balls: Balls that they lie in, in all.
        squares: Sum of the squares of each clip's balls.
        authentic: Those that are authentic.
    """

    clips: int = 0
    inside: int = 0
    balls: int = 0
    squares: int = 0
    authentic: int = 0

    @classmethod
    def of(cls, balls: NDArray[np.int64], authentic: NDArray[np.bool_]) -> "BallCounts":
        """Of some clips, `(n,)` each."""
        numbers = (balls > 0, balls, balls * balls, authentic)
        return cls(len(balls), *(int(values.sum()) for values in numbers))

    def merge(self, other: "BallCounts") -> "BallCounts":
        """Of both."""
        return BallCounts(*(one + two for one, two in zip(self, other, strict=True)))


def nearest_others(
    values: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices and squared distances of each clip's `count` nearest other clips, nearest first.

    Raises:
        ValueError: There are not that many other clips.
    """
    if not 1 <= count < len(values):
        raise ValueError(f"{len(values)} clips have no {count} neighbours each")
    near = values - centre(values)
    indices = np.empty((len(values), count), dtype=np.int64)
    squared = np.empty((len(values), count))
    for part, block in squared_distances(near, near):
        np.fill_diagonal(block[:, part], np.inf)
        found = np.argpartition(block, count - 1, axis=1)[:, :count]
        at = np.take_along_axis(block, found, axis=1)
        order = np.argsort(at, axis=1, kind="stable")
        indices[part] = np.take_along_axis(found, order, axis=1)
        squared[part] = np.take_along_axis(at, order, axis=1)
    return indices, squared


def neighbours(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near: NDArray[np.float64] | None = None,
) -> Neighbours:
    """Compute all distances once; they take 8 · n · m bytes.

    Args:
        generated: Embeddings, `(n, d)`, more than `k` clips.
        reference: Embeddings, `(m, d)`, more than `k` clips.
        k: Which neighbour sets the radius, 1 or more.
        reference_near: Squared distances of `nearest_others(reference, k)`, if at hand.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, or a set of
            `k` clips or fewer.
    """
    x, y = embeddings("generated", generated), embeddings("reference", reference)
    same_dimensions(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"{k} neighbours need more than {k} clips on both sides, got {len(x)} and {len(y)}"
        )
    own = nearest_others(y, k)[1] if reference_near is None else reference_near
    near, near_squared = nearest_others(x, min(max(k, KEPT), len(x) - 1))
    x, y = x - centre(y), y - centre(y)
    squared = np.empty((len(y), len(x)))
    for part, block in squared_distances(y, x):
        squared[part] = block
    return Neighbours(squared, own[:, k - 1], near, near_squared, k)


def per_clip(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near: NDArray[np.float64] | None = None,
) -> PerClip:
    """Set every generated clip against the reference, a block of clips at a time.

    Args:
        generated: Embeddings, `(n, d)`, any number of clips.
        reference: Embeddings, `(m, d)`, more than `k` clips.
        k: Which neighbour sets the radius, 1 or more.
        reference_near: Squared distances of `nearest_others(reference, k)`, if at hand.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, or a
            reference of `k` clips or fewer.
    """
    x, y = rows("generated", generated), embeddings("reference", reference)
    same_dimensions(x, y)
    own = nearest_others(y, k)[1] if reference_near is None else reference_near
    middle = centre(y)
    y = y - middle
    balls, authentic = np.empty(len(x), dtype=np.int64), np.empty(len(x), dtype=bool)
    for start in range(0, len(x), BLOCK):
        some = embeddings("generated", x[start : start + BLOCK]) - middle
        for part, block in squared_distances(some, y):
            here = slice(start + part.start, start + part.start + len(block))
            balls[here] = (block < STRICT * own[:, k - 1]).sum(axis=1)
            nearest = block.argmin(axis=1)
            away = block[np.arange(len(block)), nearest]
            authentic[here] = STRICT * away > own[nearest, 0]
    return PerClip(balls, authentic, k)


def precision(of: PerClip) -> float:
    """Share of the generated clips that lie in a reference clip's ball, in [0, 1]."""
    return float((of.balls > 0).mean())


def density(of: PerClip) -> float:
    """Mean over the generated clips of (reference balls they lie in) / k, in [0, m/k], real 1."""
    return float(of.balls.mean() / of.k)


def authenticity(of: PerClip) -> float:
    """Share of the generated clips that are authentic, in [0, 1]; of the real source about 1/2."""
    return float(of.authentic.mean())


def recall(of: Neighbours) -> float:
    """Share of the reference clips that lie in a generated clip's ball, in [0, 1]."""
    return float((of.squared < STRICT * of.near_squared[:, of.k - 1]).any(axis=1).mean())


def coverage(of: Neighbours) -> float:
    """Share of the reference clips that have a generated clip in their ball, in [0, 1]."""
    return float((of.squared.min(axis=1) < STRICT * of.reference_radii).mean())


def neighbour_metrics(generated: ArrayLike, reference: ArrayLike, k: int = K) -> dict[str, float]:
    """Fidelity, diversity and novelty of generated clips by nearest neighbours in an embedding.

    Recall and coverage grow with the number of generated clips: compare equal numbers only.
    `fidelity_report` adds intervals, and draws equal numbers.

    Args:
        generated: Embeddings, `(n, d)`, more than `k` clips.
        reference: Embeddings of real clips, `(m, d)`, more than `k` clips.
        k: Which neighbour sets the radius of a clip, 1 or more.

    Returns:
        `precision`, `recall`, `coverage` and `authenticity`, shares in [0, 1], and `density` in
        [0, m/k].

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, or a set of
            `k` clips or fewer.

    Examples:
        >>> found = neighbour_metrics([[0.5], [1.5], [9.0]], [[0.0], [1.0], [2.0], [3.0]], k=1)
        >>> found["recall"], found["coverage"], round(found["precision"], 3)
        (1.0, 0.75, 0.667)
    """
    alone, both = per_clip(generated, reference, k), neighbours(generated, reference, k)
    return {
        "precision": precision(alone),
        "recall": recall(both),
        "density": density(alone),
        "coverage": coverage(both),
        "authenticity": authenticity(alone),
    }


def clip_measures(of: BallCounts, k: int = K) -> dict[str, Estimate]:
    """Precision, density and authenticity of one clip or more, each with an interval.

    Means over the clips: none depends on their number. The intervals cover other clips of the same
    generator against the same reference: Wilson's for the shares, ±1.96 standard errors for the
    density.
    """
    return {
        "precision": proportion_estimate(of.inside, of.clips),
        "density": mean_measure(of.balls / k, of.squares / k**2, of.clips),
        "authenticity": proportion_estimate(of.authentic, of.clips),
    }


def set_measures(of: Neighbours, seed: int = 0) -> dict[str, Estimate]:
    """Recall and coverage, each with an interval; both grow with the number of generated clips.

    The intervals, by half samples, cover other clips of the same generator against the same
    reference.
    """
    n = of.squared.shape[1]
    values = {"recall": recall(of), "coverage": coverage(of)}
    if n < 2 * (of.k + 1):
        why = f"{n} clips: their halves have no {of.k} neighbours"
        return {name: estimate(value, why=why) for name, value in values.items()}
    drawn = half_samples(n, seed=seed)
    at_halves = {"recall": _recalls(of, drawn), "coverage": _coverages(of, drawn)}
    measures = {}
    for name, value in values.items():
        low, high = map(float, spread_interval(at_halves[name], n, value))
        measures[name] = resampling_estimate(value, max(0.0, low), min(1.0, high), n, "clips")
    return measures


def _recalls(of: Neighbours, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = []
    for half in drawn:
        chosen = np.zeros(len(of.near), dtype=bool)
        chosen[half] = True
        # The k-th neighbour that is itself in the half.
        place = (chosen[of.near].cumsum(axis=1) < of.k).sum(axis=1)
        place = np.minimum(place, of.near.shape[1] - 1)
        radii = np.where(chosen, of.near_squared[np.arange(len(chosen)), place], -1)
        shares.append((of.squared < STRICT * radii).any(axis=1).mean())
    return np.array(shares)


def _coverages(of: Neighbours, drawn: NDArray[np.int64]) -> NDArray[np.float64]:
    chosen = np.zeros((of.squared.shape[1], len(drawn)), dtype=np.float32)
    np.put_along_axis(chosen, drawn.T, 1, axis=0)
    # Counts of up to n clips are exact in float32.
    balls = (of.squared < STRICT * of.reference_radii[:, None]).astype(np.float32)
    return (balls @ chosen > 0).mean(axis=0)
