"""Generators side by side: in order, and which of them can't be told apart."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from raysound.metrics.intervals import difference

RANKED_BY = "accuracy"
# Whether a generator with more of it is the better, or the worse; None where neither is.
HIGHER_IS_BETTER: dict[str, bool | None] = {
    "accuracy": True,
    "balanced_accuracy": True,
    "macro_f1": True,
    "top_3": True,
    "map_3": True,
    "negative_log_likelihood": False,
    "inception_score": True,
    "predicted_classes": True,
    "frechet_distance": False,
    "frechet_distance_infinite": False,
    "mmd": False,
    "precision": True,
    "recall": True,
    "density": True,
    "coverage": True,
    "authenticity": None,
}


def ranking(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The generators by accuracy, best first.

    Args:
        corpora: measures by metric, by corpus.

    Returns:
        `metric`; `order`, those without a clip last; `pairs` of any two that have clips: `a`, the
        better one, `b`, `metric`, `difference` (a measure, a's less b's) and `told_apart`, whether
        its interval leaves 0 out.
    """
    value = {name: row[RANKED_BY]["value"] for name, row in corpora.items()}
    scored = sorted(
        (name for name in value if value[name] is not None), key=lambda name: -value[name]
    )

    def pair(a: str, b: str) -> dict[str, Any]:
        found = difference(corpora[a][RANKED_BY], corpora[b][RANKED_BY])
        told_apart = found.pop("told_apart")
        return {
            "a": a,
            "b": b,
            "metric": RANKED_BY,
            "difference": found,
            "told_apart": told_apart,
        }

    return {
        "metric": RANKED_BY,
        "order": [*scored, *(name for name in value if value[name] is None)],
        "pairs": [pair(a, b) for a, b in combinations(scored, 2)],
    }
