"""The metrics of an evaluation as lines of text."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from raysound.report.copies import copy_lines
from raysound.report.embeddings import embedding_lines
from raysound.report.formatting import skipped_check_lines, warnings


def metrics_table(metrics: dict[str, Any]) -> Iterator[str]:
    """The corpora, the anchors and their scores as lines of text, warnings last."""
    rows = {
        f"{name} (test)" if row["role"] == "real" else name: row
        for name, row in (metrics["corpora"] | metrics["anchors"]).items()
    }
    width = max(map(len, rows))
    yield (
        f"{'corpus':<{width}}  clips  accuracy  95 % interval       MMD     recall  coverage  "
        "authenticity"
    )
    for name, row in rows.items():
        accuracy = row["accuracy"]
        if not row["clips"]:
            yield f"{name:<{width}}  {0:5d}"
            continue
        shares = "  ".join(
            f"{'–' if row[key]['value'] is None else format(row[key]['value'], '.1%'):>{wide}}"
            for key, wide in (("recall", 9), ("coverage", 8), ("authenticity", 12))
        )
        mmd, interval = row["mmd2_x100"]["value"], f"{'–':>7}   {'no labels':<15}"
        if accuracy["value"] is not None:
            interval = (
                f"{accuracy['value']:7.1%}   {accuracy['low']:6.1%} – {accuracy['high']:6.1%}"
            )
        yield (
            f"{name:<{width}}  {row['clips']:5d}  {interval}  "
            f"{'–' if mmd is None else format(mmd, '.2f'):>8}  {shares}"
        )
    yield from embedding_lines(metrics["embeddings"])
    yield from copy_lines(metrics["copies"])
    if "file" in metrics["reference"]:
        yield f"note: the real row and the anchors are those of {metrics['reference']['file']}"
    for row in metrics["mismatch"]:
        yield f"note: {row['text']}"
    for row in skipped_check_lines(metrics):
        yield f"note: not checked: {row}"
    for warning in warnings(metrics):
        yield f"WARNING: {warning}"
