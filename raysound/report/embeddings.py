"""Metrics in embeddings other than that of the classifier, as lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from raysound.metrics.declarations import EMBEDDING_METRICS
from raysound.report.formatting import format_estimate


def rows_of(embedding: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The rows of one embedding by displayed name, corpora first."""
    rows = {f"{name} (test)" if name == "real" else name: row for name, row in
            embedding["corpora"].items()}  # fmt: skip
    return rows | embedding["anchors"]


def embedding_lines(embeddings: Mapping[str, Any]) -> Iterator[str]:
    """A header, then one line per embedding and corpus; empty without embeddings."""
    shown = [
        (name, corpus, row)
        for name, embedding in embeddings.items()
        for corpus, row in rows_of(embedding).items()
    ]
    if not shown:
        return
    wide = max(len("embedding"), *(len(name) for name, _, _ in shown))
    width = max(len(corpus) for _, corpus, _ in shown)
    names = "  ".join(f"{metric.name:>{column(metric.name)}}" for metric in EMBEDDING_METRICS)
    yield f"{'embedding':<{wide}}  {'corpus':<{width}}  clips  {names}"
    for name, corpus, row in shown:
        values = "  ".join(
            f"{format_estimate(row[metric.key], metric.format):>{column(metric.name)}}"
            for metric in EMBEDDING_METRICS
        )
        yield f"{name:<{wide}}  {corpus:<{width}}  {row['clips']:5d}  {values}"


def column(name: str) -> int:
    """Width of the column of a metric."""
    return max(8, len(name))
