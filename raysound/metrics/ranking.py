"""Generators in order of a metric, and which of them differ significantly."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from raysound.metrics.intervals import difference
from raysound.metrics.significance import adjusted_p_values, significant


def ranking(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """The generators by accuracy, or by MMD where no corpus has labels; best first.

    Args:
        corpora: measures by metric, by corpus.

    Returns:
        `metric`; `order`, those without a value of it last; `pairs` of any two that have one: `a`,
        the better one, `b`, `metric`, `difference` (a measure, a's less b's, its interval is one of
        95 % for this pair alone), `p_adjusted`, by Holm's method over all pairs, and `significant`,
        whether that is below 0.05.
    """
    has_labels = any(row["accuracy"]["value"] is not None for row in corpora.values())
    metric, sign = ("accuracy", -1) if has_labels else ("mmd2_x100", 1)
    value = {name: row[metric]["value"] for name, row in corpora.items()}
    scored = sorted(
        (name for name in value if value[name] is not None), key=lambda name: sign * value[name]
    )
    names = list(combinations(scored, 2))
    measures = [(corpora[a][metric], corpora[b][metric]) for a, b in names]
    pairs = []
    for (a, b), both, p in zip(names, measures, adjusted_p_values(measures), strict=True):
        gap = difference(*both)
        del gap["significant"]
        pairs.append(
            {
                "a": a,
                "b": b,
                "metric": metric,
                "difference": gap,
                "p_adjusted": p,
                "significant": significant(p),
            }
        )
    return {
        "metric": metric,
        "order": [*scored, *(name for name in value if value[name] is None)],
        "pairs": pairs,
    }
