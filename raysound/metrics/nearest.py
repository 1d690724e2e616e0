"""Nearest reference clip and realism of every generated clip, for large sets."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, rows, same_dimensions
from raysound.metrics.distances import centre, squared_distances
from raysound.metrics.neighbours import K, nearest_others

# Rows per block: 8 MB of distances to 10,000 clips fit into the cache of a core.
BLOCK_ROWS = 200
# Bound of the error of a squared distance in float32, as a fraction of |x|² + |y|².
FLOAT32_TOLERANCE = 4e-6
MAX_CANDIDATES = 8


@dataclass(frozen=True, eq=False)
class Nearest:
    """One entry per generated clip.

    Attributes:
        index: Index of the nearest reference clip, the lower one if equal, `(n,)` int64.
        distance: Distance to this clip in float64 precision, `(n,)`; 0 for a copy.
        realism: See `nearest_reference_clips`, `(n,)`; infinite for a copy.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    realism: NDArray[np.float64]


def nearest_reference_clips(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near_squared: NDArray[np.float64] | None = None,
) -> Nearest:
    """Nearest reference clip and realism of every generated clip.

    Realism is the maximum of (radius of a reference clip) / (distance to this clip), over the
    reference clips whose radius is at most the median, because the balls of isolated clips are too
    large. It is above 1 if the clip is in one of these balls. Distances are computed in float32
    around the mean of the reference. Pairs that float32 does not distinguish are compared in
    float64, so copies are found and have the distance 0. Realism has float32 precision, about 1e-5.

    Source: T. Kynkäänniemi et al., NeurIPS 2019, equation 3.

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
    y = embeddings("reference", reference)
    array = rows("generated", generated)
    same_dimensions(array, y)
    own = nearest_others(y, k)[1] if reference_near_squared is None else reference_near_squared
    radii = own[:, k - 1]
    # Clips with a radius of at most the median come first: realism reads contiguous columns.
    order = np.argsort(radii > np.median(radii), kind="stable")
    eligible = int((radii <= np.median(radii)).sum())
    mean = centre(y)
    near_y = y[order] - mean
    single = near_y.astype(np.float32)
    lengths = np.einsum("ij,ij->i", single, single)
    balls = radii[order][:eligible].astype(np.float32)
    n = len(array)
    index, distance, realism = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    for start in range(0, n, BLOCK_ROWS):
        part = slice(start, start + BLOCK_ROWS)
        x = embeddings("generated", array[part])
        near_x = x - mean
        single_x = near_x.astype(np.float32)
        own_lengths = np.einsum("ij,ij->i", single_x, single_x)[:, None]
        block = single_x @ single.T
        block *= -2
        block += lengths
        block += own_lengths
        index[part], distance[part] = _exact(x, near_x, y, near_y, order, block, own_lengths)
        np.maximum(block, np.float32(FLOAT32_TOLERANCE) * (own_lengths + 1e-30), out=block)
        best = np.sqrt((balls / block[:, :eligible]).max(axis=1).astype(np.float64))
        inside = np.flatnonzero(radii[index[part]] <= np.median(radii))
        with np.errstate(divide="ignore", invalid="ignore"):
            own_best = np.sqrt(radii[index[part]][inside]) / distance[part][inside]
        best[inside] = np.fmax(best[inside], own_best)
        realism[part] = np.where(distance[part] == 0, np.inf, best)
    return Nearest(index, distance, realism)


def _exact(
    x: NDArray[np.float64],
    near_x: NDArray[np.float64],
    y: NDArray[np.float64],
    near_y: NDArray[np.float64],
    order: NDArray[np.int64],
    block: NDArray[np.float32],
    own_lengths: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Exact nearest clip and distance, among the clips that float32 does not distinguish."""
    minimum = block.min(axis=1, keepdims=True)
    # The nearest clip has about the same length as the clip, or is far enough away for float32.
    tolerance = np.float32(2 * FLOAT32_TOLERANCE) * (own_lengths + minimum)
    clips, columns = np.nonzero(block <= minimum + tolerance)
    crowded = np.bincount(clips, minlength=len(x)) > MAX_CANDIDATES
    few = ~crowded[clips]
    clips, columns = clips[few], columns[few]
    for clip in np.flatnonzero(crowded):
        ((_, exact),) = squared_distances(near_x[clip : clip + 1], near_y)
        ties = np.flatnonzero(exact[0] == exact[0].min())
        clips, columns = np.append(clips, clip), np.append(columns, ties[order[ties].argmin()])
    candidates = order[columns]
    distances = np.linalg.norm(x[clips] - y[candidates], axis=1)
    first = np.lexsort((candidates, distances, clips))
    first = first[np.unique(clips[first], return_index=True)[1]]
    return candidates[first], distances[first]
