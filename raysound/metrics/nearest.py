"""The nearest reference clip of every generated clip, and how realistic each is, for many clips."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, rows, same_dimensions
from raysound.metrics.distances import centre, squared_distances
from raysound.metrics.neighbours import K, nearest_others

# 8 MB of distances to 10,000 clips stay in a core's cache.
ROWS = 200
# Of |x|² + |y|²: what float32 products may be wrong by, with some to spare.
DOUBT = 4e-6
MOST_CANDIDATES = 8


@dataclass(frozen=True, eq=False)
class Nearest:
    """One entry per generated clip.

    Attributes:
        index: Its nearest reference clip, the lower index of two at one distance, `(n,)` int64.
        distance: Its distance to it, exact to float64's rounding, `(n,)`; 0 for a copy.
        realism: See `nearest`, `(n,)`; infinite for a copy.
    """

    index: NDArray[np.int64]
    distance: NDArray[np.float64]
    realism: NDArray[np.float64]


def nearest_reference_clips(
    generated: ArrayLike,
    reference: ArrayLike,
    k: int = K,
    reference_near: NDArray[np.float64] | None = None,
) -> Nearest:
    """Nearest reference clip and realism of every generated clip.

    Realism is the largest (radius of a reference clip) / (distance to it), over the reference
    clips whose radius is not above the median, for a lone clip's ball is no evidence. It is above 1
    where the clip lies in a ball. Distances are found in float32 around the reference's mean; the
    pairs that this cannot distinguish are decided in float64, so a copy is found and has
    distance 0. Realism keeps float32's precision, about 1e-5.

    Source: T. Kynkäänniemi et al., NeurIPS 2019, equation 3.

    Args:
        generated: Embeddings, `(n, d)`, any number of clips.
        reference: Embeddings, `(m, d)`, more than `k` clips.
        k: Which neighbour sets the radius, 1 or more.
        reference_near: Squared distances of `nearest_others(reference, k)`, if at hand.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, or a
            reference of `k` clips or fewer.
    """
    y = embeddings("reference", reference)
    array = rows("generated", generated)
    same_dimensions(array, y)
    own = nearest_others(y, k)[1] if reference_near is None else reference_near
    radii = own[:, k - 1]
    # Those within the median come first, so that realism reads one block of columns.
    order = np.argsort(radii > np.median(radii), kind="stable")
    kept = int((radii <= np.median(radii)).sum())
    middle = centre(y)
    near_y = y[order] - middle
    single = near_y.astype(np.float32)
    lengths = np.einsum("ij,ij->i", single, single)
    balls = radii[order][:kept].astype(np.float32)
    n = len(array)
    index, distance, realism = np.empty(n, dtype=np.int64), np.empty(n), np.empty(n)
    for start in range(0, n, ROWS):
        part = slice(start, start + ROWS)
        x = embeddings("generated", array[part])
        near_x = x - middle
        single_x = near_x.astype(np.float32)
        own_lengths = np.einsum("ij,ij->i", single_x, single_x)[:, None]
        block = single_x @ single.T
        block *= -2
        block += lengths
        block += own_lengths
        index[part], distance[part] = _exact(x, near_x, y, near_y, order, block, own_lengths)
        np.maximum(block, np.float32(DOUBT) * (own_lengths + 1e-30), out=block)
        best = np.sqrt((balls / block[:, :kept]).max(axis=1).astype(np.float64))
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
    """Index and distance of the nearest, among all that float32 cannot distinguish from it."""
    least = block.min(axis=1, keepdims=True)
    # The nearest has about the clip's own length, or is far enough for float32.
    clips, places = np.nonzero(block <= least + np.float32(2 * DOUBT) * (own_lengths + least))
    crowded = np.bincount(clips, minlength=len(x)) > MOST_CANDIDATES
    alone = ~crowded[clips]
    clips, places = clips[alone], places[alone]
    for clip in np.flatnonzero(crowded):
        ((_, exact),) = squared_distances(near_x[clip : clip + 1], near_y)
        ties = np.flatnonzero(exact[0] == exact[0].min())
        clips, places = np.append(clips, clip), np.append(places, ties[order[ties].argmin()])
    candidates = order[places]
    away = np.linalg.norm(x[clips] - y[candidates], axis=1)
    first = np.lexsort((candidates, away, clips))
    first = first[np.unique(clips[first], return_index=True)[1]]
    return candidates[first], away[first]
