"""Generators in order of accuracy, and which of them differ significantly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from raysound.metrics.intervals import difference
from raysound.metrics.significance import adjusted_p_values, significant

RANKED_BY = "accuracy"


def ranking(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The generators by accuracy, best first.

    Args:
        corpora: measures by metric, by corpus.

    Returns:
        `metric`; `order`, those without a clip last; `pairs` of any two that have clips: `a`, the
        better one, `b`, `metric`, `difference` (a measure, a's less b's, its interval is one of
        95 % for this pair alone), `p_adjusted`, by Holm's method over all pairs, and
        `significant`, whether that is below 0.05.
    """
    value = {name: row[RANKED_BY]["value"] for name, row in corpora.items()}
    scored = sorted(
        (name for name in value if value[name] is not None), key=lambda name: -value[name]
    )
    names = list(combinations(scored, 2))
    measures = [(corpora[a][RANKED_BY], corpora[b][RANKED_BY]) for a, b in names]
    pairs = []
    for (a, b), both, p in zip(names, measures, adjusted_p_values(measures), strict=True):
        gap = difference(*both)
        del gap["told_apart"]
        pairs.append(
            {
                "a": a,
                "b": b,
                "metric": RANKED_BY,
                "difference": gap,
                "p_adjusted": p,
                "significant": significant(p),
            }
        )
    return {
        "metric": RANKED_BY,
        "order": [*scored, *(name for name in value if value[name] is None)],
        "pairs": pairs,
    }
