"""Anchors: corpora of known quality, and checks that the metrics reflect it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.corpus import Scored
from raysound.metrics.intervals import Estimate, difference, estimate
from raysound.metrics.neighbours import K

# Why a row is missing.
SKIP_REASONS = {
    "shuffled_labels": "the test clips are of one class",
    "one_clip_per_class": f"needs more than {K} real test clips per class",
    "real_halves": "needs more training clips",
}
# A difference of shares with a wider interval does not decide a check.
MAX_INTERVAL_WIDTH = 0.5
# Anchor, metric, expected relation, row to compare with.
CHECKS = (
    *(
        (anchor, metric, expected, "real")
        for anchor in ("noise", "silence")
        for metric, expected in (
            ("accuracy", "below"),
            ("mmd2_x100", "above"),
            ("frechet_distance", "above"),
            ("coverage", "below"),
        )
    ),
    ("shuffled_labels", "accuracy", "well below", "real"),
    ("shuffled_labels", "log_loss", "above", "real"),
    ("one_clip_per_class", "mmd2_x100", "above", "real"),
    ("one_clip_per_class", "frechet_distance", "above", "real"),
    ("one_clip_per_class", "recall", "below", "real"),
    ("one_clip_per_class", "coverage", "below", "real"),
    ("training_copy", "accuracy", "at least", "real"),
    ("training_copy", "mmd2_x100", "at most", "real"),
    ("training_copy", "frechet_distance", "at most", "real"),
    ("training_copy", "coverage", "at least", "real"),
    ("training_copy", "authenticity", "below", "real"),
    ("real_halves", "mmd2_x100", "below", "noise"),
    ("real_halves", "frechet_distance", "below", "noise"),
)


def anchors_of_real(test: Scored, train: Scored, set_size: int, seed: int = 0) -> dict[str, Scored]:
    """Anchors made of real clips.

    Args:
        test: the real test split.
        train: training clips, the reference of the distances.
        set_size: number of clips of the training copy.
        seed: seed of the samples.

    Returns:
        `shuffled_labels`: the test split with permuted labels; missing if no label changes.
        `one_clip_per_class`: the most probable test clip of each class, repeated equally often;
        missing if there are too few copies to be each other's K nearest neighbours.
        `training_copy`: a sample of the training clips.
    """
    rng = np.random.default_rng(seed)
    anchors = {}
    labels = rng.permutation(test.truth)
    if (labels != test.truth).any():
        anchors["shuffled_labels"] = Scored(labels, test.probabilities, test.embedding)
    # With more than K copies the radius is 0; with fewer it extends to clips of other classes.
    most_probable = most_probable_clips(test)
    copies = min(len(test.truth), set_size) // max(1, len(most_probable))
    if copies > K:
        anchors["one_clip_per_class"] = test.take(np.repeat(most_probable, copies))
    copied = rng.permutation(len(train.truth))[:set_size]
    anchors["training_copy"] = train.take(np.sort(copied))
    return anchors


def most_probable_clips(clips: Scored) -> NDArray[np.int64]:
    """Index of the clip of each class with the highest probability of this class."""
    target = clips.probabilities[np.arange(len(clips.truth)), clips.truth]
    # Sorted by class and probability, the last clip of each class is the most probable.
    order = np.lexsort((target, clips.truth))
    _, counts = np.unique(clips.truth, return_counts=True)
    return order[np.cumsum(counts) - 1]


def split_in_halves(train: Scored, seed: int = 0) -> tuple[Scored, Scored]:
    """Random halves of the training clips, stratified by class."""
    order = np.random.default_rng(seed).permutation(len(train.truth))
    order = order[np.argsort(train.truth[order], kind="stable")]
    return train.take(order[::2]), train.take(order[1::2])


def sanity_checks(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Checks the metrics of the anchors.

    Args:
        rows: measures by metric, by row: `real` and the anchors.

    Returns:
        A dict per check: `anchor`, `metric`, `expected`, `than`, `value`, `bound` and `passed`. A
        skipped check has `passed` None and the reason in `why`.
    """
    checked = []
    for anchor, metric, expected, than in CHECKS:
        ours, theirs = (
            rows.get(row, {}).get(metric) or estimate(None, why=SKIP_REASONS.get(row, f"no {row}"))
            for row in (anchor, than)
        )
        check = {
            "anchor": anchor,
            "metric": metric,
            "expected": expected,
            "than": than,
            "value": ours["value"],
            "bound": theirs["value"],
            "passed": None,
        }
        unknown = [one for one in (ours, theirs) if one["value"] is None]
        if unknown:
            check["why"] = unknown[0].get("why", "no clips")
        else:
            check["passed"] = passes(ours, expected, theirs)
            if check["passed"] is None:
                check["why"] = difference(ours, theirs).get("why", "too few clips to decide")
        checked.append(check)
    return checked


def passes(ours: Estimate, expected: str, theirs: Estimate) -> bool | None:
    """Whether a measure meets an expectation; None if the effect of chance is not known.

    `at least` and `at most` also pass if the difference is not significant, `well below` passes
    only if it is significant.

    Args:
        ours: a measure with a value.
        expected: `below`, `well below`, `above`, `at least` or `at most`.
        theirs: the measure to compare with, with a value.
    """
    gap = difference(ours, theirs)
    known, significant = gap["low"] is not None, gap["significant"]
    if expected == "well below":
        few = not known or gap["high"] - gap["low"] > MAX_INTERVAL_WIDTH
        return True if gap["value"] < 0 and significant else None if few else False
    if expected in ("at least", "at most"):
        right = gap["value"] >= 0 if expected == "at least" else gap["value"] <= 0
        return True if right else not significant if known else None
    return bool(gap["value"] < 0 if expected == "below" else gap["value"] > 0)
