"""Euclidean distances between embeddings, in blocks that fit into memory."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

# Of |x|² + |y|²: what float64 products leave of the distance of a clip to its copy.
ZERO = 2e-13
# Entries of one block of distances: 8 MB stay in a core's cache.
BLOCK = 1_000_000


def squared_distances(
    x: NDArray[np.float64], y: NDArray[np.float64]
) -> Iterator[tuple[slice, NDArray[np.float64]]]:
    """|x - y|² in blocks of rows of `x`: pairs of `(rows, block (rows, m))`.

    By |x|² + |y|² - 2xy, so both should be near the origin. What is below 2e-13 (|x|² + |y|²) is
    set to exactly 0: two clips nearer than 5e-7 of their length, float32's own precision, count as
    copies, however a product is rounded.
    """
    of_x, of_y = np.einsum("ij,ij->i", x, x), np.einsum("ij,ij->i", y, y)
    step = max(1, BLOCK // max(1, len(y)))
    for start in range(0, len(x), step):
        rows = slice(start, start + step)
        lengths = of_x[rows, None] + of_y
        block = x[rows] @ y.T
        block *= -2
        block += lengths
        lengths *= ZERO
        block[block <= lengths] = 0
        yield rows, block


def centre(reference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of a set, `(d,)`; seen from it, an offset common to all sets costs no digits."""
    return reference[0] + (reference - reference[0]).mean(axis=0)
