"""What the nearest neighbours of generated and reference clips tell: fidelity, diversity, copies.

A clip's radius is the distance to the k-th nearest other clip of its own set; its ball holds what
is strictly nearer.

Sources: T. Kynkäänniemi et al., "Improved precision and recall metric for assessing generative
models", NeurIPS 2019 (precision, recall, realism); M. F. Naeem et al., "Reliable fidelity and
diversity metrics for generative models", ICML 2020 (density, coverage); A. M. Alaa et al., "How
faithful is your synthetic data?", ICML 2022 (authenticity).
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, same_dimensions
from raysound.metrics.distances import centre, squared_distances
from raysound.metrics.intervals import (
    Measure,
    halves,
    measure,
    share_measure,
    spread_interval,
    spread_measure,
)

K = 5
# Of these many neighbours a random half holds 5 or more, but for one clip in 100,000.
KEPT = 32
# A neighbour at the radius itself is outside, whichever way the two were rounded.
STRICT = 1 - 1e-9


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Distances of generated to reference clips, and the radii of both sets.

    Attributes:
        squared: |generated - reference|², `(m, n)`: a row per reference clip.
        reference_radii: Squared radii, `(m,)`.
        reference_nearest: Squared distance of a reference clip to its nearest other one, `(m,)`.
        near: Generated clips' nearest other generated clips, `(n, up to 32)`, nearest first.
        near_squared: Their squared distances, `(n, up to 32)`.
        k: Which neighbour sets the radius.
    """

    squared: NDArray[np.float64]
    reference_radii: NDArray[np.float64]
    reference_nearest: NDArray[np.float64]
    near: NDArray[np.int64]
    near_squared: NDArray[np.float64]
    k: int


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
    for rows, block in squared_distances(near, near):
        np.fill_diagonal(block[:, rows], np.inf)
        found = np.argpartition(block, count - 1, axis=1)[:, :count]
        at = np.take_along_axis(block, found, axis=1)
        order = np.argsort(at, axis=1, kind="stable")
        indices[rows] = np.take_along_axis(found, order, axis=1)
        squared[rows] = np.take_along_axis(at, order, axis=1)
    return indices, squared


def neighbours(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near: NDArray[np.float64] | None = None,
) -> Neighbours:
    """Compute all distances once.

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
    for rows, block in squared_distances(y, x):
        squared[rows] = block
    return Neighbours(squared, own[:, k - 1], own[:, 0], near, near_squared, k)


def inside(of: Neighbours) -> NDArray[np.int64]:
    """In how many reference balls each generated clip lies, `(n,)`."""
    return (of.squared < STRICT * of.reference_radii[:, None]).sum(axis=0)


def precision(of: Neighbours) -> float:
    """Share of the generated clips that lie in a reference clip's ball, in [0, 1]."""
    return float((inside(of) > 0).mean())


def density(of: Neighbours) -> float:
    """Mean over the generated clips of (reference balls they lie in) / k, in [0, m/k], real 1."""
    return float(inside(of).mean() / of.k)


def recall(of: Neighbours) -> float:
    """Share of the reference clips that lie in a generated clip's ball, in [0, 1]."""
    return float((of.squared < STRICT * of.near_squared[:, of.k - 1]).any(axis=1).mean())


def coverage(of: Neighbours) -> float:
    """Share of the reference clips that have a generated clip in their ball, in [0, 1]."""
    return float((of.squared.min(axis=1) < STRICT * of.reference_radii).mean())


def authentic(of: Neighbours) -> NDArray[np.bool_]:
    """Whether each generated clip is no copy, `(n,)`.

    It is authentic when it lies farther from its nearest reference clip than that one from its own
    nearest other reference clip. At distance 0 it is a copy.
    """
    nearest_reference = of.squared.argmin(axis=0)
    away = np.take_along_axis(of.squared, nearest_reference[None], axis=0)[0]
    return STRICT * away > of.reference_nearest[nearest_reference]


def authenticity(of: Neighbours) -> float:
    """Share of the generated clips that are authentic, in [0, 1]; of the real source about 1/2."""
    return float(authentic(of).mean())


def neighbour_measures(of: Neighbours, seed: int = 0) -> dict[str, Measure]:
    """Precision, recall, density, coverage and authenticity, each with an interval.

    They cover other clips of the same generator against the same reference. Precision and
    authenticity are shares of the generated clips: Wilson. The others: half samples.
    """
    n = of.squared.shape[1]
    counts = inside(of)
    measures = {
        "precision": share_measure((counts > 0).sum(), n),
        # In this order of a report; filled below.
        "recall": {}, "density": {}, "coverage": {},
        "authenticity": share_measure(authentic(of).sum(), n),
    }  # fmt: skip
    values = {"recall": recall(of), "density": density(of), "coverage": coverage(of)}
    if n < 2 * (of.k + 1):
        why = f"{n} clips: their halves have no {of.k} neighbours"
        return measures | {name: measure(value, why=why) for name, value in values.items()}
    drawn = halves(n, seed=seed)
    at = {
        "recall": _recalls(of, drawn),
        "density": counts[drawn].mean(axis=1) / of.k,
        "coverage": _coverages(of, drawn),
    }
    for name, value in values.items():
        low, high = spread_interval(at[name], n, value)
        top = np.inf if name == "density" else 1.0
        measures[name] = spread_measure(
            value, max(0.0, float(low)), min(top, float(high)), n, "clips"
        )
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
