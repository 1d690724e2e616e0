"""Ranks generators by a metric and tests their differences for significance."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

from raysound.metrics.intervals import difference
from raysound.metrics.significance import adjusted_p_values, significant


def ranking(corpora: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Ranks the generators by accuracy, or by MMD if no corpus has labels; best first.

    Args:
        corpora: measures by metric, by corpus.

    Returns:
        `metric`; `order`, with the generators without a value last; `pairs`, every pair of
        generators with a value: `a`, the better one, `b`, `metric`, `difference` (a measure, the
        value of a minus that of b, with the 95 % interval of this pair alone), `p_adjusted`, by
        Holm's method over all pairs, and `significant`, whether `p_adjusted` is below 0.05.
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
