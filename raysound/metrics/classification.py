"""Accuracy, its confidence interval and the confusions of a classifier, on numpy arrays.

Every function takes `(truth, prediction, ...)` in that order. `truth` and `prediction` are integer
class indices of shape `(n,)`, one per clip; `probabilities` is `(n, classes)`.
"""

from collections.abc import Sequence
from math import nan, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def accuracy(truth: ArrayLike, prediction: ArrayLike) -> float:
    """Share of the clips whose predicted class is the true one.

    Args:
        truth: Class indices, `(n,)`.
        prediction: Class indices, `(n,)`.

    Returns:
        A share in [0, 1]; NaN where there are no clips.

    Raises:
        ValueError: The lengths differ, or a value is not a class index.

    Examples:
        >>> accuracy([0, 1, 2, 2], [0, 1, 2, 0])
        0.75
    """
    truth, prediction = _pair(truth, prediction)
    return float(np.mean(truth == prediction)) if len(truth) else nan


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval for a share of `correct` out of `n`.

    With p = correct / n and z the two-sided normal quantile of `confidence`, its ends are
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike the textbook p ± z √(p(1-p)/n) it
    stays inside [0, 1] and keeps a width when all or none are correct.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (158), 1927, pp. 209-212.

    Args:
        correct: Clips that were right, 0 to `n`.
        n: Clips in all.
        confidence: Coverage aimed at, inside (0, 1).

    Returns:
        `(low, high)`, shares in [0, 1]; `(0.0, 1.0)` where `n` is 0, for then nothing is known.

    Raises:
        ValueError: `correct` lies outside 0 to `n`, or `confidence` outside (0, 1).

    Examples:
        >>> low, high = wilson_interval(80, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.711 0.867'
        >>> wilson_interval(0, 0)
        (0.0, 1.0)
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must lie in 0..n, got correct={correct} and n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie inside (0, 1), got {confidence}")
    if n == 0:
        return 0.0, 1.0
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    share = correct / n
    shrink = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / shrink
    half = z / shrink * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The ends are exact at none and all correct; rounding would leave 1e-18 in their place.
    low = 0.0 if correct == 0 else max(0.0, centre - half)
    high = 1.0 if correct == n else min(1.0, centre + half)
    return low, high


def confusion_matrix(truth: ArrayLike, prediction: ArrayLike, classes: int) -> NDArray[np.int64]:
    """Count the clips of each true class that were predicted as each class.

    Args:
        truth: Class indices, `(n,)`, below `classes`.
        prediction: Class indices, `(n,)`, below `classes`.
        classes: Number of classes.

    Returns:
        Counts, `(classes, classes)` int64: rows are the truth, columns the prediction.

    Raises:
        ValueError: The lengths differ, or a class lies outside 0 to `classes - 1`.

    Examples:
        >>> confusion_matrix([0, 0, 1, 2], [0, 1, 1, 0], classes=3).tolist()
        [[1, 1, 0], [0, 1, 0], [1, 0, 0]]
    """
    truth, prediction = _pair(truth, prediction, classes)
    counts = np.bincount(truth * classes + prediction, minlength=classes * classes)
    return counts.astype(np.int64).reshape(classes, classes)


def per_class(
    truth: ArrayLike, prediction: ArrayLike, classes: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Count the clips of each true class, and those of them that were right.

    Args:
        truth: Class indices, `(n,)`, below `classes`.
        prediction: Class indices, `(n,)`, below `classes`.
        classes: Number of classes.

    Returns:
        `(clips, correct)`, each `(classes,)` int64.

    Raises:
        ValueError: The lengths differ, or a class lies outside 0 to `classes - 1`.

    Examples:
        >>> clips, correct = per_class([0, 0, 1], [0, 1, 1], classes=3)
        >>> clips.tolist(), correct.tolist()
        ([2, 1, 0], [1, 1, 0])
    """
    confusion = confusion_matrix(truth, prediction, classes)
    return confusion.sum(axis=1), np.diagonal(confusion).copy()


def top_k_accuracy(truth: ArrayLike, probabilities: ArrayLike, k: int) -> float:
    """Share of the clips whose true class is among the `k` most probable.

    Of equally probable classes the one of lower index comes first, as in `argmax`, so that the
    result does not hang on a sorting algorithm and `k=1` is the plain accuracy.

    Args:
        truth: Class indices, `(n,)`.
        probabilities: `(n, classes)`; only their order within a clip counts.
        k: How many classes may be named, 1 or more; above `classes` every clip is right.

    Returns:
        A share in [0, 1]; NaN where there are no clips.

    Raises:
        ValueError: `k` is below 1, the lengths differ, a class is out of range, or a probability
            is not finite.

    Examples:
        >>> top_k_accuracy([2, 0], [[0.5, 0.3, 0.2], [0.3, 0.3, 0.4]], k=2)
        0.5
    """
    truth, probabilities = _scored(truth, probabilities)
    hits = _top_k_hits(truth, probabilities, k)
    return float(np.mean(hits)) if len(hits) else nan


def classification_report(
    truth: ArrayLike, probabilities: ArrayLike, labels: Sequence[str]
) -> dict[str, Any]:
    """All numbers about one corpus, ready for JSON.

    Args:
        truth: Class indices, `(n,)`.
        probabilities: `(n, classes)`; the prediction is the most probable class, the lower index
            where two are equal.
        labels: Name of each class, in the order of the columns, none twice.

    Returns:
        `clips`, `accuracy`, `top_3`, `per_class` (by label) and `confusion` (rows are the truth).
        A share is `{"value", "low", "high"}` with its 95 % Wilson interval; its value is None
        where there are no clips.

    Raises:
        ValueError: The lengths differ, a class is out of range, a probability is not finite, or
            the labels do not fit the columns.

    Examples:
        >>> report = classification_report([0, 1], [[0.9, 0.1], [0.8, 0.2]], ["dog", "rain"])
        >>> report["clips"], report["accuracy"]["value"], report["confusion"]
        (2, 0.5, [[1, 0], [1, 0]])
        >>> report["per_class"]["rain"]["accuracy"]["value"]
        0.0
    """
    truth, probabilities = _scored(truth, probabilities)
    classes = probabilities.shape[1]
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for probabilities of {classes} classes")
    if len(set(labels)) != classes:
        twice = next(label for label in labels if list(labels).count(label) > 1)
        raise ValueError(f"{classes} classes have only {len(set(labels))} names: {twice!r} twice")
    confusion = confusion_matrix(truth, np.argmax(probabilities, axis=1), classes)
    clips, correct = confusion.sum(axis=1), np.diagonal(confusion)
    return {
        "clips": len(truth),
        "accuracy": _share(correct.sum(), len(truth)),
        "top_3": _share(_top_k_hits(truth, probabilities, 3).sum(), len(truth)),
        "per_class": {
            label: {"clips": int(of), "accuracy": _share(right, of)}
            for label, right, of in zip(labels, correct, clips, strict=True)
        },
        "confusion": confusion.tolist(),
    }


def _share(correct: int, n: int) -> dict[str, float | None]:
    correct, n = int(correct), int(n)
    low, high = wilson_interval(correct, n)
    return {"value": correct / n if n else None, "low": low, "high": high}


def _top_k_hits(
    truth: NDArray[np.int64], probabilities: NDArray[np.float64], k: int
) -> NDArray[np.bool_]:
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    own = np.take_along_axis(probabilities, truth[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < truth[:, None]
    ahead = (probabilities > own) | ((probabilities == own) & earlier)
    return ahead.sum(axis=1) < k


def _pair(
    truth: ArrayLike, prediction: ArrayLike, classes: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    truth, prediction = (
        _indices("truth", truth, classes),
        _indices("prediction", prediction, classes),
    )
    if len(truth) != len(prediction):
        raise ValueError(f"truth has {len(truth)} clips and prediction has {len(prediction)}")
    return truth, prediction


def _scored(
    truth: ArrayLike, probabilities: ArrayLike
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    probabilities = np.asarray(probabilities, dtype=np.float64)
    if probabilities.ndim != 2 or probabilities.shape[1] == 0:
        raise ValueError(f"probabilities must be (n, classes), got {probabilities.shape}")
    truth = _indices("truth", truth, probabilities.shape[1])
    if len(truth) != len(probabilities):
        raise ValueError(f"truth has {len(truth)} clips and probabilities has {len(probabilities)}")
    for clip, column in np.argwhere(~np.isfinite(probabilities))[:1]:
        value = probabilities[clip, column]
        raise ValueError(f"probability of clip {clip} for class {column} is {value}")
    return truth, probabilities


def _indices(name: str, values: ArrayLike, classes: int | None) -> NDArray[np.int64]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise ValueError(f"{name} must be (n,), got {array.shape}")
    # An empty list becomes float64, and says nothing about what its values would have been.
    if array.size and not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} must hold integer class indices, got {array.dtype}")
    wrong = (array < 0) | (array >= (np.inf if classes is None else classes))
    for clip in np.flatnonzero(wrong)[:1]:
        known = "0 and up" if classes is None else f"0..{classes - 1}"
        raise ValueError(f"{name} of clip {clip} is class {array[clip]}, the classes are {known}")
    return array.astype(np.int64)
