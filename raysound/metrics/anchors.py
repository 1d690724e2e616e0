"""Corpora whose worth is known beforehand, and whether every metric says so."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.corpus import Scored
from raysound.metrics.intervals import Estimate, difference, estimate
from raysound.metrics.neighbours import K

# Why there is no such row.
MISSING = {
    "shuffled_labels": "the test clips are of one class",
    "one_clip_per_class": f"needs more than {K} real test clips a class",
    "real_halves": "needs more training clips",
}
# An interval of a difference of shares that is wider decides nothing.
WIDEST = 0.5
# anchor, metric, where its value must lie, of which row.
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
    """The anchors that real clips are turned into; none where the test split is empty.

    Args:
        test: the real test split.
        train: training clips that the distances are measured to.
        set_size: clips of the copy.
        seed: of the draws.

    Returns:
        `shuffled_labels`: the test split, each clip asked to be what another is.
        `one_clip_per_class`: of each class the most probable test clip, all as often.
        `training_copy`: some of the training clips. What would be no other than the test split is
        left out: labels that stay what they are, and copies so few that neighbours don't see them.
    """
    rng = np.random.default_rng(seed)
    made = {}
    labels = rng.permutation(test.truth)
    if (labels != test.truth).any():
        made["shuffled_labels"] = Scored(labels, test.probabilities, test.embedding)
    # A ball that reaches the K-th copy has no width, one that reaches past all of them is huge.
    surest = clearest(test)
    copies = min(len(test.truth), set_size) // max(1, len(surest))
    if copies > K:
        made["one_clip_per_class"] = test.take(np.repeat(surest, copies))
    copied = rng.permutation(len(train.truth))[:set_size]
    made["training_copy"] = train.take(np.sort(copied))
    return made


def clearest(some: Scored) -> NDArray[np.int64]:
    """Of each class the clip that the classifier is surest of."""
    asked = some.probabilities[np.arange(len(some.truth)), some.truth]
    # The last of each class, once the clips are sorted by class and then by their probability.
    order = np.lexsort((asked, some.truth))
    _, counts = np.unique(some.truth, return_counts=True)
    return order[np.cumsum(counts) - 1]


def split_in_halves(train: Scored, seed: int = 0) -> tuple[Scored, Scored]:
    """Two halves of the training clips, drawn at random, each with half of every class."""
    order = np.random.default_rng(seed).permutation(len(train.truth))
    order = order[np.argsort(train.truth[order], kind="stable")]
    return train.take(order[::2]), train.take(order[1::2])


def sanity_checks(rows: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Whether each anchor's metrics lie where they must.

    Args:
        rows: measures by metric, by row: `real` and the anchors.

    Returns:
        A dict a check: `anchor`, `metric`, `expected`, `than`, `value`, `bound` and `passed`. The
        last is None for a check that can't be made, and `why` gives the reason.
    """
    checked = []
    for anchor, metric, expected, than in CHECKS:
        ours, theirs = (
            rows.get(row, {}).get(metric) or estimate(None, why=MISSING.get(row, f"no {row}"))
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
    """Whether a measure lies where it must; None where chance decides, and how much is not known.

    `at least` and `at most` leave chance its share, `well below` leaves it none.

    Args:
        ours: with a value.
        expected: `below`, `well below`, `above`, `at least` or `at most`.
        theirs: with a value.
    """
    gap = difference(ours, theirs)
    known, apart = gap["low"] is not None, gap["significant"]
    if expected == "well below":
        few = not known or gap["high"] - gap["low"] > WIDEST
        return True if gap["value"] < 0 and apart else None if few else False
    if expected in ("at least", "at most"):
        right = gap["value"] >= 0 if expected == "at least" else gap["value"] <= 0
        return True if right else not apart if known else None
    return bool(gap["value"] < 0 if expected == "below" else gap["value"] > 0)
