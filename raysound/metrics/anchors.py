"""Corpora whose worth is known beforehand, and whether every metric says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from raysound.metrics.corpus import Scored
from raysound.metrics.intervals import Measure, difference, measure

UNKNOWN = measure(None)
# anchor, metric, where its value must lie, of which row.
CHECKS = (
    *(
        (anchor, metric, must, "real")
        for anchor in ("noise", "silence")
        for metric, must in (
            ("accuracy", "below"),
            ("mmd", "above"),
            ("frechet_distance", "above"),
            ("coverage", "below"),
        )
    ),
    ("shuffled_labels", "accuracy", "below", "real"),
    ("shuffled_labels", "negative_log_likelihood", "above", "real"),
    ("shuffled_labels", "mmd", "equal", "real"),
    ("one_clip_per_class", "mmd", "above", "real"),
    ("one_clip_per_class", "frechet_distance", "above", "real"),
    ("one_clip_per_class", "recall", "below", "real"),
    ("one_clip_per_class", "coverage", "below", "real"),
    ("training_copy", "accuracy", "at least", "real"),
    ("training_copy", "mmd", "at most", "real"),
    ("training_copy", "frechet_distance", "at most", "real"),
    ("training_copy", "coverage", "at least", "real"),
    ("training_copy", "authenticity", "below", "real"),
    ("real_halves", "mmd", "below", "noise"),
    ("real_halves", "frechet_distance", "below", "noise"),
)


def anchors_of_real(test: Scored, train: Scored, set_size: int, seed: int = 0) -> dict[str, Scored]:
    """The anchors that real clips are turned into; none where the test split is empty.

    Args:
        test: the real test split.
        train: training clips that the distances are measured to.
        set_size: clips of the copy.
        seed: of the draws.

    Returns:
        `shuffled_labels`: the test split, each clip asked to be what another is.
        `one_clip_per_class`: of each class the test clip that the judge is surest of, as often as
        the class has test clips. `training_copy`: some of the training clips.
    """
    rng = np.random.default_rng(seed)
    asked = test.probabilities[np.arange(len(test.truth)), test.truth]
    # The last of each class, once the clips are sorted by class and then by how sure the judge is.
    order = np.lexsort((asked, test.truth))
    present, counts = np.unique(test.truth, return_counts=True)
    surest = order[np.cumsum(counts) - 1]
    whole = len(test.drawn) == len(test.truth)
    shuffled = Scored(rng.permutation(test.truth), test.probabilities, test.embedding, test.drawn)
    made = {"shuffled_labels": shuffled}
    if whole and len(present):
        made["one_clip_per_class"] = test.take(np.repeat(surest, counts))
    copied = rng.permutation(len(train.truth))[:set_size]
    made["training_copy"] = train.take(np.sort(copied))
    return made


def halves(train: Scored, seed: int = 0) -> tuple[Scored, Scored]:
    """Two halves of the training clips, drawn at random, each with half of every class."""
    order = np.random.default_rng(seed).permutation(len(train.truth))
    order = order[np.argsort(train.truth[order], kind="stable")]
    return train.take(order[::2]), train.take(order[1::2])


def sanity(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether each anchor's metrics lie where they must.

    Args:
        rows: measures by metric, by row: `real` and the anchors.

    Returns:
        A dict a check: `anchor`, `metric`, `must`, `than`, `value`, `bound` and `holds`. A check
        on a metric that could not be computed is left out.
    """
    checked = []
    for anchor, metric, must, than in CHECKS:
        ours, theirs = (rows.get(row, {}).get(metric, UNKNOWN) for row in (anchor, than))
        if ours["value"] is None or theirs["value"] is None:
            continue
        checked.append(
            {
                "anchor": anchor,
                "metric": metric,
                "must": must,
                "than": than,
                "value": ours["value"],
                "bound": theirs["value"],
                "holds": holds(ours, must, theirs),
            }
        )
    return checked


def holds(ours: Measure, must: str, theirs: Measure) -> bool:
    """Whether a measure lies where it must; `at least` and `at most` leave chance its share.

    Args:
        ours: with a value.
        must: `below`, `above`, `at least`, `at most` or `equal`.
        theirs: with a value.
    """
    gap = difference(ours, theirs)
    apart = gap["told_apart"]
    return {
        "below": gap["value"] < 0,
        "above": gap["value"] > 0,
        "at least": gap["value"] >= 0 or not apart,
        "at most": gap["value"] <= 0 or not apart,
        "equal": bool(np.isclose(gap["value"], 0)),
    }[must]
