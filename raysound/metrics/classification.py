"""Classification metrics of one corpus, with intervals.

They are computed from sums over clips, so that the memory does not depend on the size of the
corpus. For arrays, scikit-learn has the plain functions (accuracy, F1, confusion matrix).
"""

from collections.abc import Sequence
from math import inf, nan
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import distributions, scored
from raysound.metrics.declarations import METRICS
from raysound.metrics.intervals import (
    Estimate,
    bootstrap_interval,
    estimate,
    half_sample_interval,
    mean_estimate,
    proportion_estimate,
    resampling_estimate,
    wilson_interval,
)
from raysound.metrics.probabilities import (
    MIN_PROBABILITY,
    am_score_from_means,
    confidences,
    ece_from_bins,
    effective_num_classes,
    entropies,
    inception_score_from_entropies,
    modified_inception_score_from_means,
)
from raysound.metrics.sampling import sample_rows, size_note
from raysound.metrics.sums import TOP_K, ClassificationSums, sum_in_order


def classification_report(
    truth: ArrayLike,
    probabilities: ArrayLike,
    labels: Sequence[str],
    *,
    set_size: int | None = None,
    seed: int = 0,
    sums: ClassificationSums | None = None,
    real_marginal: ArrayLike | None = None,
    is_labelled: bool = True,
) -> dict[str, Any]:
    """Metrics of one corpus that are computed from class probabilities, as JSON-compatible values.

    Args:
        truth: Class indices, `(n,)`.
        probabilities: `(n, classes)`; each row adds up to 1. The prediction is the most probable
            class, the lower index of equal ones.
        labels: Unique name of each class, in the order of the columns.
        set_size: Number of clips to sample for the metrics whose value depends on the number of
            clips (`needs_equal_n` of their declarations); use the same for all corpora of a
            report. If the corpus has fewer clips, all of them are used and these metrics have a
            `note`. None uses all clips.
        seed: Seed of the samples.
        sums: Sums over all clips of the corpus, if the given clips are a sample; None if they are
            not.
        real_marginal: Mean probabilities of the real clips, `(classes,)`, for the AM score; with
            None there is no AM score.
        is_labelled: False for clips without labels. `truth` then contains the predicted classes,
            and metrics that need labels have no value.

    Returns:
        `clips`, `labelled`, `predicted` (clips by predicted class), `per_class` (by label: `clips`,
        `accuracy`; without labels by predicted class), `confusion` (rows are the truth; None
        without labels), and measures: `accuracy` and `top_3` with Wilson intervals,
        `balanced_accuracy` with the root of the sum of squares of the Wilson intervals of its
        classes, `map_3` and `log_loss` with ± 1.96 standard errors, `macro_f1` with a bootstrap
        interval. The intervals of `ece`, `inception_score`, `modified_inception_score`, `am_score`
        and `effective_num_classes` are from half samples, because resampling with replacement
        would double their bias. A value is None if there are no clips; those of `top_3` and
        `map_3` also with three classes or fewer, where every class is among the three most
        probable.

    Raises:
        ValueError: The lengths differ, a class is out of range, a row is not a distribution, or
            the labels do not match the columns.

    Examples:
        >>> report = classification_report([0, 1], [[0.9, 0.1], [0.8, 0.2]], ["dog", "rain"])
        >>> report["clips"], report["accuracy"]["value"], report["confusion"]
        (2, 0.5, [[1, 0], [1, 0]])
        >>> report["per_class"]["rain"]["accuracy"]["value"]
        0.0
    """
    probabilities = distributions(probabilities)
    truth, probabilities = scored(truth, probabilities)
    n, classes = probabilities.shape
    if len(labels) != classes:
        raise ValueError(f"{len(labels)} labels for probabilities of {classes} classes")
    if len(set(labels)) != classes:
        duplicate = next(label for label in labels if list(labels).count(label) > 1)
        raise ValueError(
            f"{classes} classes have only {len(set(labels))} different names: {duplicate!r} is "
            "not unique"
        )
    of_all = ClassificationSums.of(truth, probabilities) if sums is None else sums
    confusion = of_all.confusion(classes)
    clips, correct = confusion.sum(axis=1), np.diagonal(confusion)
    some = sample_rows(np.arange(n), n if set_size is None else set_size, seed)
    report = {
        "clips": of_all.clips,
        "labelled": is_labelled,
        "predicted": dict(zip(labels, confusion.sum(axis=0).tolist(), strict=True)),
        "accuracy": proportion_estimate(correct.sum(), of_all.clips),
        "balanced_accuracy": _balanced(confusion),
        **_means(of_all, classes),
        **_equal_n(truth[some], probabilities[some], real_marginal),
        "per_class": {
            label: {"clips": int(of), "accuracy": proportion_estimate(right, of)}
            for label, right, of in zip(labels, correct, clips, strict=True)
        },
        "confusion": confusion.tolist(),
    }
    if not is_labelled:
        none = estimate(None, why="no labels" if of_all.clips else "no clips")
        report |= {metric.key: none for metric in METRICS if metric.needs_labels}
        report["confusion"] = None
        for row in report["per_class"].values():
            row["accuracy"] = none
    for metric in METRICS:
        if metric.needs_equal_n and metric.key in report and set_size is not None:
            report[metric.key] = report[metric.key] | size_note(len(some), set_size)
    return report


def _f1(confusion: NDArray[np.int64]) -> float:
    """Mean F1 over the classes that are true or predicted at least once, as in scikit-learn."""
    counts = confusion.sum(axis=0) + confusion.sum(axis=1)
    hits = np.diagonal(confusion)[counts > 0]
    return float(np.mean(2 * hits / counts[counts > 0])) if len(hits) else nan


def _balanced(confusion: NDArray[np.int64]) -> Estimate:
    clips = confusion.sum(axis=1)
    # A class without clips has no accuracy.
    correct, clips = np.diagonal(confusion)[clips > 0], clips[clips > 0]
    if not len(clips):
        return estimate(None, why="no clips")
    shares = correct / clips
    ends = np.array([wilson_interval(int(a), int(b)) for a, b in zip(correct, clips, strict=True)])
    # Zou and Donner 2008: the half-width of a sum is the root of the sum of squared half-widths.
    below, above = np.sqrt(((ends - shares[:, None]) ** 2).sum(axis=0)) / len(clips)
    return estimate(shares.mean(), shares.mean() - below, shares.mean() + above)


def _means(sums: ClassificationSums, classes: int) -> dict[str, Estimate]:
    """Metrics that are means over the clips, so their value does not depend on their number."""
    n = sums.clips
    if not n:
        names = ("top_3", "map_3", "log_loss")
        return {name: estimate(None, why="no clips") for name in names}
    ranks, rank_squares, losses, loss_squares = sum_in_order(sums.rows)[0].tolist()
    found = {
        "top_3": proportion_estimate(sums.in_top, n),
        "map_3": mean_estimate(ranks, rank_squares, n, highest=1.0),
        "log_loss": mean_estimate(losses, loss_squares, n),
    }
    if classes <= TOP_K:
        why = f"{classes} classes: each is among the {TOP_K} most probable"
        found |= {name: estimate(None, why=why) for name in ("top_3", "map_3")}
    return found


def _equal_n(
    truth: NDArray[np.int64], probabilities: NDArray[np.float64], real_marginal: ArrayLike | None
) -> dict[str, Estimate]:
    """Metrics that depend on the number of clips, so that only equal numbers are comparable."""
    names = (
        "macro_f1", "ece", "inception_score", "effective_num_classes",
        "modified_inception_score", "am_score",
    )  # fmt: skip
    n, classes = probabilities.shape
    if not n:
        return {name: estimate(None, why="no clips") for name in names}
    prediction, bins = confidences(probabilities)
    correct, confidence = truth == prediction, probabilities.max(axis=1)
    entropy = entropies(probabilities)
    cells = truth * classes + prediction
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY))
    real = None if real_marginal is None else np.asarray(real_marginal, np.float64)

    def f1(chosen: NDArray[np.int64]) -> float:
        return _f1(np.bincount(cells[chosen], minlength=classes**2).reshape(classes, classes))

    def half_sample_statistics(chosen: NDArray[np.int64]) -> tuple[float, ...]:
        # A product with counts is faster than gathering the rows.
        counts, of = np.bincount(chosen, minlength=n), len(chosen)
        marginal, mean_entropy = counts @ probabilities / of, entropy[chosen].mean()
        return (
            ece_from_bins(bins[chosen], correct[chosen], confidence[chosen]),
            inception_score_from_entropies(marginal, mean_entropy),
            effective_num_classes(prediction[chosen], classes),
            modified_inception_score_from_means(marginal, counts @ logs / of, mean_entropy, of),
            nan if real is None else am_score_from_means(marginal, real, mean_entropy),
        )

    all_clips = np.arange(n)
    low, high = map(float, bootstrap_interval(f1, n))
    found = {"macro_f1": resampling_estimate(f1(all_clips), low, high, n, "clips")}
    values = np.array(half_sample_statistics(all_clips))
    lows, highs = values, values
    if n >= 4:
        lows, highs = half_sample_interval(half_sample_statistics, n, values, draws=100)
    limits = ((0, 1), (1, classes), (1, classes), (1, inf), (0, inf))
    for name, value, below, above, (floor, top) in zip(
        names[1:], values, lows, highs, limits, strict=True
    ):
        found[name] = resampling_estimate(value, max(below, floor), min(above, top), n, "clips")
    if n < 2:
        found["modified_inception_score"] = estimate(None, why="1 clip: a pair needs 2")
    if real is None:
        found["am_score"] = estimate(None, why="no real clips to compare with")
    return found
