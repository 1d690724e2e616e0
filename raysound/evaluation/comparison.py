"""Compares two metrics.json, for example of two checkpoints of a generator."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from raysound import storage
from raysound.errors import UserError
from raysound.metrics.declarations import (
    COPIED_SHARE,
    EMBEDDING_METRICS,
    METRICS,
    METRICS_SCHEMA,
    Metric,
)
from raysound.metrics.intervals import difference, estimate
from raysound.metrics.significance import holm, p_value, significant

# Metrics are comparable only if these keys of `classifier` are equal.
CLASSIFIER_KEYS = ("run", "model", "labels", "feature_id", "split_digest")


def compare_files(first: str, second: str) -> str:
    """Compares two metrics.json as text, with one line per corpus and metric.

    Args:
        first: path or URI of the old one.
        second: path or URI of the new one.

    Raises:
        UserError: a file is missing or unreadable, or they can't be compared.
    """
    old, new = read_metrics(first), read_metrics(second)
    return "\n".join((*table_lines(compare(old, new)), *skipped_lines(old, new)))


def read_metrics(uri: str) -> dict[str, Any]:
    """Reads a metrics.json.

    Raises:
        UserError: the file is missing or has another version.
    """
    if not storage.exists(uri):
        raise UserError(f"there is no {uri}: give the metrics.json that jobs/evaluate.py wrote")
    try:
        metrics: dict[str, Any] = json.loads(storage.read_bytes(uri))
        schema = metrics["schema"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{uri} is not a metrics.json of raysound") from None
    if schema != METRICS_SCHEMA:
        raise UserError(
            f"{uri} has schema {schema}, this version reads {METRICS_SCHEMA}: run jobs/evaluate.py "
            "again"
        )
    return metrics


def compare(old: dict[str, Any], new: dict[str, Any]) -> list[dict[str, Any]]:
    """Compares the generated corpora that are in both; two single ones may have different names.

    Args:
        old: content of a metrics.json.
        new: content of another.

    Returns:
        A dict for each corpus and metric with a value in either: `corpus`, `metric`, `old` and
        `new` (values), `difference` (an estimate, new − old, with the 95 % interval of this row
        alone), `p_adjusted` (by Holm's method over all rows; None without an interval) and
        `verdict`. If `p_adjusted` is below 0.05, the verdict is `better`, `worse` or, for a metric
        without a better direction, `differs`; else `no significant difference`, or `not
        comparable` or `no interval` with the reason.

    Raises:
        UserError: the classifier, its features or its clips differ, or no corpus is in both.
    """
    for key in CLASSIFIER_KEYS:
        if old["classifier"][key] != new["classifier"][key]:
            raise UserError(
                f"the two files have different classifiers: classifier.{key} is "
                f"{old['classifier'][key]} in the first, {new['classifier'][key]} in the second; "
                "evaluate both with one classifier (evaluation.checkpoint=…)"
            )
    before, after = (generated_rows(metrics) for metrics in (old, new))
    pairs = corpus_pairs(before, after)
    if not pairs:
        raise UserError(
            f"no generated corpus is in both: {', '.join(before) or 'none'} in the first, "
            f"{', '.join(after) or 'none'} in the second"
        )
    found = [
        (metric, row)
        for was, now in pairs
        for metric in METRICS
        if (row := compare_metric(now, metric, before[was], after[now])) is not None
    ]
    found += compare_embeddings(old["embeddings"], new["embeddings"], pairs)
    found += compare_copies(old["copies"], new["copies"], pairs)
    adjusted = holm([row.pop("p") for _, row in found])
    return [
        row | {"p_adjusted": p, "verdict": row["verdict"] or verdict(metric, row, p)}
        for (metric, row), p in zip(found, adjusted, strict=True)
    ]


def compare_embeddings(
    old: dict[str, Any], new: dict[str, Any], pairs: list[tuple[str, str]]
) -> list[tuple[Metric, dict[str, Any]]]:
    """Compares the embeddings with equal digests; the metric is `<embedding>.<key>`.

    Args:
        old: `embeddings` of a metrics.json.
        new: `embeddings` of another.
        pairs: names of the corpora in both.
    """
    rows = [
        (name, metric, compare_metric(now, metric, *(
            side[name]["corpora"][corpus] for side, corpus in ((old, was), (new, now))
        )))
        for name in new
        if name in old and old[name]["digest"] == new[name]["digest"]
        for was, now in pairs
        for metric in EMBEDDING_METRICS
    ]  # fmt: skip
    return [
        (metric, row | {"metric": f"{name}.{metric.key}"})
        for name, metric, row in rows
        if row is not None
    ]


def compare_copies(
    old: dict[str, Any] | None, new: dict[str, Any] | None, pairs: list[tuple[str, str]]
) -> list[tuple[Metric, dict[str, Any]]]:
    """Compares `copies.share`, if threshold and training clips are equal.

    Args:
        old: `copies` of a metrics.json.
        new: `copies` of another.
        pairs: names of the corpora in both.
    """
    if old is None or new is None or not same_copies(old, new):
        return []
    rows = [
        compare_metric(now, COPIED_SHARE, old["corpora"][was], new["corpora"][now])
        for was, now in pairs
    ]
    return [(COPIED_SHARE, row | {"metric": "copies.share"}) for row in rows if row is not None]


def same_copies(old: dict[str, Any], new: dict[str, Any]) -> bool:
    """Whether training clips and threshold of the search for copies are equal."""
    return (
        old["threshold"]["value"] == new["threshold"]["value"]
        and old["training"]["digest"] == new["training"]["digest"]
    )


def corpus_pairs(before: dict[str, Any], after: dict[str, Any]) -> list[tuple[str, str]]:
    """Old and new names of the corpora to compare: equal names, or the only corpus of each."""
    pairs = [(name, name) for name in after if name in before]
    if not pairs and len(before) == len(after) == 1:
        pairs = [(next(iter(before)), next(iter(after)))]
    return pairs


def skipped_lines(old: dict[str, Any], new: dict[str, Any]) -> Iterator[str]:
    """Yields a line with the reason for each corpus, embedding and share of copies not compared."""
    before, after = (generated_rows(metrics) for metrics in (old, new))
    pairs = corpus_pairs(before, after)
    for side, corpora in enumerate((before, after)):
        in_both = {pair[side] for pair in pairs}
        for name in corpora:
            if name not in in_both:
                yield f"not compared: {name}, which only the {('first', 'second')[side]} has"
    first, second = old["embeddings"], new["embeddings"]
    for name in sorted({*first, *second}):
        if name not in first or name not in second:
            only = "first" if name in first else "second"
            yield f"not compared: the embedding {name}, which only the {only} has"
        elif first[name]["digest"] != second[name]["digest"]:
            yield (
                f"not compared: the embedding {name}, because model, sample rate, clip length, "
                "long_clips or features differ"
            )
    searched = old["copies"], new["copies"]
    if None not in searched:
        if not same_copies(*searched):
            yield "not compared: the share of copies: training clips or threshold differ"
    elif searched != (None, None):
        only = "second" if searched[0] is None else "first"
        yield f"not compared: the share of copies, which only the {only} has"


def generated_rows(metrics: dict[str, Any]) -> dict[str, Any]:
    """The rows of the generated corpora, by name."""
    return {name: row for name, row in metrics["corpora"].items() if row["role"] == "generated"}


def compare_metric(
    corpus: str, metric: Metric, before: dict[str, Any], after: dict[str, Any]
) -> dict[str, Any] | None:
    """One row of `compare` with the unadjusted `p`; None if neither side has a value.

    The verdict is empty if there is a p-value.
    """
    old, new = before[metric.key], after[metric.key]
    if old["value"] is None and new["value"] is None:
        return None
    gap, p, why = difference(new, old), p_value(new, old), ""
    del gap["significant"]
    if metric.needs_equal_n and before["compared"] != after["compared"]:
        why = f"{before['compared']} and {after['compared']} clips"
        gap, p = estimate(None, why=why), None
        why = f"not comparable: {gap['why']}"
    elif p is None:
        why = f"no interval: {gap['why']}"
    return {
        "corpus": corpus,
        "metric": metric.key,
        "old": old["value"],
        "new": new["value"],
        "difference": gap,
        "p": p,
        "verdict": why,
    }


def verdict(metric: Metric, row: dict[str, Any], adjusted: float | None) -> str:
    """The verdict of a row, by its adjusted p-value."""
    if not significant(adjusted):
        return "no significant difference"
    if metric.higher_is_better is None:
        return "differs"
    return "better" if metric.higher_is_better == (row["difference"]["value"] > 0) else "worse"


def table_lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    """The comparison as a table of text."""
    width = max([26, *(len(row["metric"]) for row in rows)])
    yield (
        f"{'corpus':<20} {'metric':<{width}} {'old':>9} {'new':>9}   "
        f"{'new − old (95 % interval)':<31} {'p':>7}  verdict"
    )
    for row in rows:
        change, interval = row["difference"], ""
        if change["low"] is not None:
            interval = f"{change['value']:+.4g} ({change['low']:+.4g} to {change['high']:+.4g})"
        old, new = ("–" if row[key] is None else format(row[key], ".4g") for key in ("old", "new"))
        p = row["p_adjusted"]
        shown = "–" if p is None else "<0.0001" if p < 1e-4 else f"{p:.4f}"
        yield (
            f"{row['corpus']:<20} {row['metric']:<{width}} {old:>9} {new:>9}   {interval:<31} "
            f"{shown:>7}  {row['verdict']}"
        )
    tested = sum(row["p_adjusted"] is not None for row in rows)
    yield (
        f"p: adjusted by Holm's method for the {tested} comparisons of this table; a difference is "
        "significant below 0.05. Each 95 % interval is of its row alone, unadjusted."
    )
