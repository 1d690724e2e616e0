"""Count, mean and scatter matrix of embeddings; the moments of parts can be merged."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, rows

# Bounds the float64 copy of a block to a few MB; fixed, so that results are bitwise equal.
BLOCK = 2048


@dataclass(frozen=True, eq=False)
class Moments:
    """The moments of a Gaussian fit.

    Attributes:
        n: Number of clips.
        mean: Mean, `(d,)` float64.
        m2: Σ (x - mean)(x - mean)ᵀ, `(d, d)` float64: the covariance times n - 1.
    """

    n: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]


def moments(values: ArrayLike) -> Moments:
    """Moments of embeddings `(n, d)`, computed block by block in the order of the rows.

    Raises:
        ValueError: The shape is not `(n, d)`, there are no clips, or a number is not finite.

    Examples:
        >>> both = moments([[1.0, 0.0], [3.0, 0.0]])
        >>> both.n, both.mean.tolist(), covariance(both).tolist()
        (2, [2.0, 0.0], [[2.0, 0.0], [0.0, 0.0]])
    """
    array = rows("embeddings", values)
    if not len(array):
        raise ValueError("moments of no clips: at least one is needed")
    starts = range(0, len(array), BLOCK)
    return merge_moments(*(_block(embeddings("embeddings", array[i : i + BLOCK])) for i in starts))


def merge_moments(*parts: Moments) -> Moments:
    """Moments of the union of disjoint parts; groupings differ by about 1e-12, relative.

    n = Σ nᵢ, mean = Σ nᵢ meanᵢ / n, m2 = Σ m2ᵢ + Σ nᵢ (meanᵢ - mean)(meanᵢ - mean)ᵀ.

    Source: T. F. Chan, G. H. Golub, R. J. LeVeque, "Updating formulae and a pairwise algorithm for
    computing sample variances", Stanford STAN-CS-79-773, 1979.

    Raises:
        ValueError: There are no parts, or their dimensions differ.
    """
    if not parts:
        raise ValueError("nothing to merge: at least one part is needed")
    if len({len(part.mean) for part in parts}) > 1:
        raise ValueError(
            f"parts of {[len(part.mean) for part in parts]} dimensions: are they of one network?"
        )
    counts = np.array([part.n for part in parts], dtype=np.float64)
    means = np.stack([part.mean for part in parts])
    # Differences to the first mean keep their precision if all clips have a large offset.
    mean = means[0] + counts @ (means - means[0]) / counts.sum()
    deviations = (means - mean) * np.sqrt(counts)[:, None]
    m2 = deviations.T @ deviations
    for part in parts:
        m2 += part.m2
    return Moments(sum(part.n for part in parts), mean, m2)


def covariance(of: Moments) -> NDArray[np.float64]:
    """Unbiased covariance m2 / (n - 1), `(d, d)`.

    Raises:
        ValueError: There are fewer than two clips.
    """
    if of.n < 2:
        raise ValueError(f"a covariance needs at least 2 clips, got {of.n}")
    return of.m2 / (of.n - 1)


def _block(values: NDArray[np.float64]) -> Moments:
    # Differences to the first row keep their precision if all clips have a large offset.
    centred = values - values[0]
    centre = centred.mean(axis=0)
    centred -= centre
    return Moments(len(values), values[0] + centre, centred.T @ centred)
