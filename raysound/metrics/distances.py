"""Euclidean distances between embeddings, in blocks that fit into memory."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Bound of the rounding error of a squared distance in float64, as a fraction of |x|² + |y|².
FLOAT64_TOLERANCE = 2e-13
# Entries of one block of distances: 8 MB fit into the cache of a core.
BLOCK = 1_000_000


def squared_distances(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """Yields |x - y|² in blocks of rows of `x`, as `(rows, block)` with a block of `(rows, m)`.

    The formula is |x|² + |y|² - 2xy, so both sets should be near the origin. Values below
    2e-13 (|x|² + |y|²) are set to exactly 0: two clips whose distance is below 5e-7 of their
    length, about the precision of float32, count as copies, independent of rounding.
    """
    of_x, of_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    step = max(1, BLOCK // max(1, len(y)))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        lengths = of_x[rows, None] + of_y
        block = x[rows] @ y.T
        block *= -2
        block += lengths
        lengths *= FLOAT64_TOLERANCE
        block[block <= lengths] = 0
        yield rows, block


def centre(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a set, `(d,)`; subtracting it from all sets avoids the rounding of large offsets."""
    return reference[0] + (reference - reference[0]).mean(axis=0)
