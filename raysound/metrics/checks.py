"""Input validation; error messages name the wrong value."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

# Tolerance of the sum of a row: enough for float16 and 1,000 classes.
SUM_TOLERANCE = 1e-2


def indices(name: str, values: ArrayLike, classes: int | None = None) -> NDArray[np.int64]:
    """Checks class indices and returns them as `(n,)` int64.

    Raises:
        ValueError: The shape is not `(n,)`, the dtype is not an integer type, or a class is
            outside 0 to `classes - 1`.
    """
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be (n,), got {array.shape}")
    # An empty list becomes float64, so the dtype of an empty array is not checked.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integer class indices, got {array.dtype}")
    wrong = (array < 0) | (array >= (np.inf if classes is None else classes))
    for clip in np.flatnonzero(wrong)[:1]:
        known = "0 and up" if classes is None else f"0..{classes - 1}"
        raise ValueError(f"{name} of clip {clip} is class {array[clip]}, the classes are {known}")
    return array.astype(np.int64)


def scores(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Checks scores and returns them as `(n, classes)` float64; rows need not add up to 1.

    Raises:
        ValueError: The shape is not `(n, classes)`, there are no classes, or a number is not
            finite.
    """
    array = np.asarray(probabilities, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"probabilities must be (n, classes), got {array.shape}")
    # The sum is not finite if one of its terms is not; it needs no (n, classes) array.
    if not np.isfinite(array.sum()):
        for clip, column in np.argwhere(~np.isfinite(array))[:1]:
            value = array[clip, column]
            raise ValueError(f"probability of clip {clip} for class {column} is {value}")
    return array


def distributions(probabilities: ArrayLike) -> NDArray[np.float64]:
    """Checks probabilities and returns them as `(n, classes)` float64, each row normalised to 1.

    Raises:
        ValueError: As `scores`, a probability is negative, or a row does not add up to 1.
    """
    array = scores(probabilities)
    if array.size and array.min() < 0:
        clip, column = np.argwhere(array < 0)[0]
        value = array[clip, column]
        raise ValueError(f"probability of clip {clip} for class {column} is {value}, below 0")
    sums = array.sum(axis=1, keepdims=True)
    for clip in np.flatnonzero(np.abs(sums - 1) > SUM_TOLERANCE)[:1]:
        raise ValueError(f"probabilities of clip {clip} add up to {sums[clip, 0]:.4g}, not to 1")
    return array / sums


def scored(
    truth: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Checks truth and scores; returns them as `(n,)` int64 and `(n, classes)` float64.

    Raises:
        ValueError: The lengths differ, a class is out of range, or a score is not finite.
    """
    probabilities = scores(probabilities)
    truth = indices("truth", truth, probabilities.shape[1])
    if len(truth) != len(probabilities):
        raise ValueError(f"truth has {len(truth)} clips and probabilities has {len(probabilities)}")
    return truth, probabilities


def rows(name: str, values: ArrayLike) -> NDArray[Any]:
    """Returns embeddings as `(n, d)` in their own dtype, without a copy or a check of the values.

    Raises:
        ValueError: The shape is not `(n, d)`, or there are no dimensions.
    """
    array = np.asarray(values)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(f"{name} must be (clips, dimensions), got {array.shape}")
    return array


def embeddings(name: str, values: ArrayLike) -> NDArray[np.float64]:
    """Checks embeddings and returns them as `(n, d)` float64.

    Raises:
        ValueError: The shape is not `(n, d)`, there are no dimensions, or a number is not finite.
    """
    array = rows(name, values).astype(np.float64, copy=False)
    if not np.isfinite(array.sum()):
        for clip, column in np.argwhere(~np.isfinite(array))[:1]:
            raise ValueError(f"{name}: clip {clip} has {array[clip, column]} in dimension {column}")
    return array


def same_dimensions(a: NDArray[Any], b: NDArray[Any]) -> None:
    """Checks that two sets of embeddings have the same dimensions.

    Raises:
        ValueError: The numbers of columns differ.
    """
    if a.shape[1] != b.shape[1]:
        raise ValueError(
            f"embeddings of {a.shape[1]} and {b.shape[1]} dimensions: are they of one network?"
        )
