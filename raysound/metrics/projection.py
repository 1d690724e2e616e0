"""Two-dimensional projection of embeddings."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.sparse.linalg import svds

Plane = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def principal_plane(embedding: NDArray[np.float32]) -> Plane:
    """Principal component analysis with two components.

    Args:
        embedding: `(n, size)`, n at least 1.

    Returns:
        A function that projects embeddings `(m, size)` to `(m, 2)`, in the unit of the embedding.
        The weight of each axis with the largest magnitude is positive, so that signs do not
        depend on the machine.

    Examples:
        >>> plane = principal_plane(np.array([[0.0, 0, 0], [4, 0, 0], [2, 1, 0]], np.float32))
        >>> plane(np.array([[4.0, 1 / 3, 7]], np.float32)).round(6).tolist()
        [[2.0, 0.0]]
    """
    mean = embedding.mean(axis=0, dtype=np.float64)
    centred = embedding - mean
    axes = np.zeros((2, centred.shape[1]))
    if min(centred.shape) > 3 and centred.any():
        # A full decomposition of 4,096 dimensions takes 14 s, the first two components 0.1 s.
        axes[:] = svds(centred, k=2, rng=np.random.default_rng(0))[2][::-1]
    else:
        found = np.linalg.svd(centred, full_matrices=False)[2][:2]
        axes[: len(found)] = found
    largest = np.abs(axes).argmax(axis=1)
    axes *= np.where(axes[np.arange(2), largest] < 0, -1, 1)[:, None]
    return lambda other: (other - mean) @ axes.T
