"""Embeddings on a sheet of paper."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Plane = Callable[[NDArray[np.float32]], NDArray[np.float64]]


def principal_plane(embedding: NDArray[np.float32]) -> Plane:
    """The plane along which some embeddings differ most: their first two principal components.

    Args:
        embedding: `(n, size)`, n at least 1.

    Returns:
        A function of embeddings `(m, size)` that gives their places `(m, 2)`, in the embedding's
        own unit. The sign of an axis is that of its largest weight, so that it does not change
        from machine to machine.

    Examples:
        >>> plane = principal_plane(np.array([[0.0, 0, 0], [4, 0, 0], [2, 1, 0]], np.float32))
        >>> plane(np.array([[4.0, 1 / 3, 7]], np.float32)).round(6).tolist()
        [[2.0, 0.0]]
    """
    centre = embedding.mean(axis=0, dtype=np.float64)
    centred = embedding - centre
    _, axes = np.linalg.eigh(centred.T @ centred)
    axes = axes[:, -1:-3:-1]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 2 - axes.shape[1])))
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, np.arange(2)] < 0, -1, 1)
    return lambda other: (other - centre) @ axes
