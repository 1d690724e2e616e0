"""Nearest-neighbour metrics of generated and reference clips: fidelity, diversity, copies.

The radius of a clip is the distance to the k-th nearest other clip of its own set. Its ball
contains the clips that are strictly nearer than the radius.

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
    mean_estimate,
    proportion_estimate,
    resampling_estimate,
    spread_interval,
)

K = 5
# A random half contains at least 5 of this many neighbours, except for one clip in 100,000.
MAX_NEIGHBOURS = 32
# Factor on squared radii: a neighbour at the radius is outside the ball, despite rounding.
RADIUS_TOLERANCE = 1 - 1e-9
# Clips per block of distances to the reference.
BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of generated to reference clips, and the radii of both sets.

    Attributes:
        squared: |generated - reference|², `(m, n)`: one row per reference clip.
        reference_radii: Squared radii, `(m,)`.
        near: Nearest other generated clips of each generated clip, `(n, up to 32)`, nearest first.
        near_squared: Squared distances to them, `(n, up to 32)`.
        k: The k-th neighbour determines the radius.
    """

    squared: NDArray[np.float64]
    reference_radii: NDArray[np.float64]
    near: NDArray[np.int64]
    near_squared: NDArray[np.float64]
    k: int


@dataclass(frozen=True, eq=False)
class PerClip:
    """Comparison of each generated clip with the reference.

    Attributes:
        balls: Number of reference balls that contain the clip, `(n,)`.
        authentic: Whether the clip is farther from its nearest reference clip than this one is from
            its own nearest other reference clip, `(n,)`. At distance 0 the clip is a copy.
        k: The k-th neighbour determines the radius.
    """

    balls: NDArray[np.int64]
    authentic: NDArray[np.bool_]
    k: int


class BallCounts(NamedTuple):
    """Sums of `PerClip` over clips; integers, so that the order does not matter.

    Attributes:
        clips: Number of clips.
        inside: Number of clips that are in at least one ball.
        balls: Sum over the clips of the number of balls that contain them.
        squares: Sum of the squares of these numbers.
        authentic: Number of authentic clips.
    """

    clips: int = 0
    inside: int = 0
    balls: int = 0
    squares: int = 0
    authentic: int = 0

    @classmethod
    def of(cls, balls: NDArray[np.int64], authentic: NDArray[np.bool_]) -> "BallCounts":
        """Sums over some clips, from arrays `(n,)`."""
        numbers = (balls > 0, balls, balls * balls, authentic)
        return cls(len(balls), *(int(values.sum()) for values in numbers))

    def merge(self, other: "BallCounts") -> "BallCounts":
        """Sums over both sets of clips."""
        return BallCounts(*(one + two for one, two in zip(self, other, strict=True)))


def nearest_others(
    values: NDArray[np.float64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Indices and squared distances of the `count` nearest other clips of each clip, nearest first.

    Raises:
        ValueError: There are fewer than `count` other clips.
    """
    if not 1 <= count < len(values):
        raise ValueError(f"{count} neighbours need more than {count} clips, got {len(values)}")
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
    reference_near_squared: NDArray[np.float64] | None = None,
) -> Neighbours:
    """Computes all distances; they take 8 · n · m bytes.

    Args:
        generated: Embeddings, `(n, d)`, more than `k` clips.
        reference: Embeddings, `(m, d)`, more than `k` clips.
        k: The k-th neighbour determines the radius, 1 or more.
        reference_near_squared: Squared distances of `nearest_others(reference, k)`; computed if
            None.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, the dimensions differ, or a
            set has `k` clips or fewer.
    """
    x, y = embeddings("generated", generated), embeddings("reference", reference)
    same_dimensions(x, y)
    if not 1 <= k < min(len(x), len(y)):
        raise ValueError(
            f"{k} neighbours need more than {k} clips on both sides, got {len(x)} and {len(y)}"
        )
    own = nearest_others(y, k)[1] if reference_near_squared is None else reference_near_squared
    near, near_squared = nearest_others(x, min(max(k, MAX_NEIGHBOURS), len(x) - 1))
    x, y = x - centre(y), y - centre(y)
    squared = np.empty((len(y), len(x)))
    for part, block in squared_distances(y, x):
        squared[part] = block
    return Neighbours(squared, own[:, k - 1], near, near_squared, k)


def per_clip(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near_squared: NDArray[np.float64] | None = None,
) -> PerClip:
    """Compares every generated clip with the reference, in blocks of clips.

    Args:
        generated: Embeddings, `(n, d)`, any number of clips.
        reference: Embeddings, `(m, d)`, more than `k` clips.
        k: The k-th neighbour determines the radius, 1 or more.
        reference_near_squared: Squared distances of `nearest_others(reference, k)`; computed if
            None.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, the dimensions differ, or the
            reference has `k` clips or fewer.
    """
    x, y = rows("generated", generated), embeddings("reference", reference)
    same_dimensions(x, y)
    own = nearest_others(y, k)[1] if reference_near_squared is None else reference_near_squared
    mean = centre(y)
    y = y - mean
    balls, authentic = np.empty(len(x), dtype=np.int64), np.empty(len(x), dtype=bool)
    for start in range(0, len(x), BLOCK):
        some = embeddings("generated", x[start : start + BLOCK]) - mean
        for part, block in squared_distances(some, y):
            target = slice(start + part.start, start + part.start + len(block))
            balls[target] = (block < RADIUS_TOLERANCE * own[:, k - 1]).sum(axis=1)
            nearest = block.argmin(axis=1)
            distance = block[np.arange(len(block)), nearest]
            authentic[target] = RADIUS_TOLERANCE * distance > own[nearest, 0]
    return PerClip(balls, authentic, k)


def precision(of: PerClip) -> float:
    """Share of the generated clips that are in the ball of a reference clip, in [0, 1]."""
    return float((of.balls > 0).mean())


def density(of: PerClip) -> float:
    """Mean number of reference balls that contain a clip, divided by k, in [0, m/k]; real: 1."""
    return float(of.balls.mean() / of.k)


def authenticity(of: PerClip) -> float:
    """Share of the generated clips that are authentic, in [0, 1]; about 1/2 for real clips."""
    return float(of.authentic.mean())


def recall(of: Neighbours) -> float:
    """Share of the reference clips that are in the ball of a generated clip, in [0, 1]."""
    return float((of.squared < RADIUS_TOLERANCE * of.near_squared[:, of.k - 1]).any(axis=1).mean())


def coverage(of: Neighbours) -> float:
    """Share of the reference clips that have a generated clip in their ball, in [0, 1]."""
    return float((of.squared.min(axis=1) < RADIUS_TOLERANCE * of.reference_radii).mean())


def neighbour_metrics(generated: ArrayLike, reference: ArrayLike, k: int = K) -> dict[str, float]:
    """Fidelity, diversity and novelty of generated clips by nearest neighbours in an embedding.

    Recall and coverage increase with the number of generated clips: compare equal numbers only.
    `fidelity_report` adds intervals and samples equal numbers of clips.

    Args:
        generated: Embeddings, `(n, d)`, more than `k` clips.
        reference: Embeddings of real clips, `(m, d)`, more than `k` clips.
        k: The k-th neighbour determines the radius of a clip, 1 or more.

    Returns:
        `precision`, `recall`, `coverage` and `authenticity`, shares in [0, 1], and `density` in
        [0, m/k].

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, the dimensions differ, or a
            set has `k` clips or fewer.

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


def clip_estimates(of: BallCounts, k: int = K) -> dict[str, Estimate]:
    """Precision, density and authenticity of one or more clips, each with an interval.

    They are means over the clips, so they do not depend on their number. The intervals cover other
    clips of the same generator against the same reference: Wilson intervals of the shares, and
    ±1.96 standard errors of the density.
    """
    return {
        "precision": proportion_estimate(of.inside, of.clips),
        "density": mean_estimate(of.balls / k, of.squares / k**2, of.clips),
        "authenticity": proportion_estimate(of.authentic, of.clips),
    }


def set_estimates(of: Neighbours, seed: int = 0) -> dict[str, Estimate]:
    """Recall and coverage with intervals; both increase with the number of generated clips.

    The intervals, from half samples, cover other clips of the same generator against the same
    reference.
    """
    n = of.squared.shape[1]
    values = {"recall": recall(of), "coverage": coverage(of)}
    if n < 2 * (of.k + 1):
        why = f"{n} clips: half of them have fewer than {of.k} neighbours"
        return {name: estimate(value, why=why) for name, value in values.items()}
    halves = half_samples(n, seed=seed)
    at_halves = {"recall": _recalls(of, halves), "coverage": _coverages(of, halves)}
    measures = {}
    for name, value in values.items():
        low, high = map(float, spread_interval(at_halves[name], n, value))
        measures[name] = resampling_estimate(value, max(0.0, low), min(1.0, high), n, "clips")
    return measures


def _recalls(of: Neighbours, halves: NDArray[np.int64]) -> NDArray[np.float64]:
    shares = []
    for half in halves:
        chosen = np.zeros(len(of.near), dtype=bool)
        chosen[half] = True
        # Column of the k-th neighbour within the half.
        column = (chosen[of.near].cumsum(axis=1) < of.k).sum(axis=1)
        column = np.minimum(column, of.near.shape[1] - 1)
        radii = np.where(chosen, of.near_squared[np.arange(len(chosen)), column], -1)
        shares.append((of.squared < RADIUS_TOLERANCE * radii).any(axis=1).mean())
    return np.array(shares)


def _coverages(of: Neighbours, halves: NDArray[np.int64]) -> NDArray[np.float64]:
    chosen = np.zeros((of.squared.shape[1], len(halves)), dtype=np.float32)
    np.put_along_axis(chosen, halves.T, 1, axis=0)
    # float32 is exact for counts of up to n clips.
    balls = (of.squared < RADIUS_TOLERANCE * of.reference_radii[:, None]).astype(np.float32)
    return (balls @ chosen > 0).mean(axis=0)
