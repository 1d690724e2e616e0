"""Formatting of metrics, warnings about failed checks, and significant differences."""

from collections.abc import Mapping, Sequence
from typing import Any

from raysound.metrics.declarations import HEADLINE, METRICS
from raysound.metrics.significance import adjusted_p_values, significant

_NAMES = {metric.key: metric.name.lower() for metric in METRICS}

ANCHOR_DESCRIPTIONS = {
    "real_halves": "one half of the training clips compared with the other half",
    "training_copy": "training clips, as a generator would return them that only copies",
    "one_clip_per_class": "the most probable real clip of each class, repeated",
    "shuffled_labels": "the real test clips with permuted labels",
    "noise": "white noise",
    "silence": "digital silence",
}


def format_estimate(measure: Mapping[str, Any], form: str) -> str:
    """Formats the value of a measure; a dash if there is none."""
    return number(measure["value"], form)


def number(value: float | None, form: str) -> str:
    """Formats a number, with the typographic minus; a dash for None."""
    if value is None:
        return "–"
    text = f"{value:.1%}" if form == "percent" else format(value, form)
    if "e+" in text:
        text = f"{value:.0f}"
    if float(text.strip("%")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """A line per failed check, that is, per metric for which the classifier can't be trusted."""
    return [
        f"{_NAMES[check['metric']]} of {check['anchor'].replace('_', ' ')} is "
        f"{check['value']:.4g}; "
        f"it must be {check['expected']} that of {check['than'].replace('_', ' ')}, "
        f"{check['bound']:.4g}"
        for check in metrics["sanity"]
        if check["passed"] is False
    ]


def skipped_check_lines(metrics: Mapping[str, Any]) -> list[str]:
    """A line per anchor and reason with the metrics whose checks were skipped."""
    found: dict[tuple[str, str], list[str]] = {}
    for check in metrics["sanity"]:
        if check["passed"] is None:
            key = check["anchor"].replace("_", " "), check["why"]
            found.setdefault(key, []).append(_NAMES[check["metric"]])
    return [f"{anchor} ({', '.join(names)}): {why}" for (anchor, why), names in found.items()]


def differing_from_real(
    corpora: Mapping[str, Mapping[str, Any]], real: Mapping[str, Any] | None
) -> dict[str, dict[str, float]]:
    """Metrics of the first table that differ significantly from the real row, by corpus.

    All comparisons of these corpora are one family, adjusted by Holm's method. Metrics without a
    better direction are excluded, and metrics with a note that they had fewer clips than others.

    Args:
        corpora: Measures by metric, by corpus; without the real row.
        real: The real row; None or a row without clips gives no differences.

    Returns:
        By corpus, by key of the metric: the value minus the real value.
    """
    found: dict[str, dict[str, float]] = {name: {} for name in corpora}
    if real is None:
        return found
    tested = [
        (name, metric.key)
        for name, corpus in corpora.items()
        for metric in HEADLINE
        if metric.higher_is_better is not None and "note" not in corpus[metric.key]
    ]
    pairs = [(corpora[name][key], real[key]) for name, key in tested]
    adjusted = adjusted_p_values(pairs)
    for (name, key), (ours, theirs), p in zip(tested, pairs, adjusted, strict=True):
        if significant(p):
            found[name][key] = ours["value"] - theirs["value"]
    return found


def worse(differences: Mapping[str, float]) -> list[str]:
    """Names of the metrics, except accuracy, that are worse than in the real row."""
    return [
        metric.name
        for metric in HEADLINE
        if metric.key != "accuracy"
        and metric.key in differences
        and (differences[metric.key] < 0) == metric.higher_is_better
    ]


def not_worse_than_real(anchor: Mapping[str, Any], real: Mapping[str, Any] | None) -> Sequence[str]:
    """Names of the metrics of the table in which an anchor is not worse than real test clips."""
    if real is None:
        return []
    names = []
    for metric in HEADLINE:
        ours, theirs = anchor[metric.key]["value"], real[metric.key]["value"]
        if ours is None or theirs is None or metric.higher_is_better is None:
            continue
        if (ours >= theirs) if metric.higher_is_better else (ours <= theirs):
            names.append(metric.name)
    return names
