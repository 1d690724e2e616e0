"""The metrics in words: names, directions, how a number of each is written, what to warn of."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from raysound.metrics.intervals import difference


class Metric(NamedTuple):
    """How one metric is shown.

    Attributes:
        key: in metrics.json.
        name: in tables.
        better: `↑` where more is better, `↓` where less is, nothing where it depends.
        form: `percent`, or the format of a number.
        says: what it measures, its range, and what it can't see.
        least: its lowest value; an interval found by a spread may reach below.
    """

    key: str
    name: str
    better: str
    form: str
    says: str
    least: float = 0.0


METRICS = (
    Metric(
        key="accuracy",
        name="Accuracy",
        better="↑",
        form="percent",
        says=(
            "Share of the clips that the judge hears as what they were asked to be. Blind to "
            "how varied or how clean they are: one clear clip a class, repeated, has 100%."
        ),
    ),
    Metric(
        key="mmd",
        name="MMD",
        better="↓",
        form=".2f",
        says=(
            "Maximum mean discrepancy between the embeddings of these clips and of the "
            "reference, squared, unbiased, × 100, with a Gaussian kernel as wide as the median "
            "distance within the reference. 0 where both are drawn alike; a little below 0 by "
            "chance. Needs no labels, so it can't see wrong ones."
        ),
        least=-math.inf,
    ),
    Metric(
        key="frechet_distance",
        name="Fréchet",
        better="↓",
        form=".3g",
        says=(
            "Squared Fréchet distance between both sets of embeddings, each taken as a "
            "Gaussian. 0 and up. The fewer the clips, the larger: rows of fewer than the others "
            "say so."
        ),
    ),
    Metric(
        key="frechet_distance_infinite",
        name="Fréchet ∞",
        better="↓",
        form=".3g",
        says=(
            "The same, extrapolated to infinitely many clips on both sides. Told only where "
            "both have four clips a dimension."
        ),
        least=-math.inf,
    ),
    Metric(
        key="precision",
        name="Precision",
        better="↑",
        form="percent",
        says=(
            "Share of the clips that lie in the neighbourhood of a reference clip (5 nearest). "
            "Blind to variety."
        ),
    ),
    Metric(
        key="recall",
        name="Recall",
        better="↑",
        form="percent",
        says=(
            "Share of the reference clips that lie in the neighbourhood of one of these clips. "
            "Blind to clips that lie far from everything."
        ),
    ),
    Metric(
        key="density",
        name="Density",
        better="↑",
        form=".2f",
        says=(
            "How many reference neighbourhoods a clip lies in, over 5; about 1 for real clips, "
            "and may be more."
        ),
    ),
    Metric(
        key="coverage",
        name="Coverage",
        better="↑",
        form="percent",
        says=(
            "Share of the reference clips that have one of these clips in their neighbourhood: "
            "low where a generator knows few sounds. Copies of the reference cover it best."
        ),
    ),
    Metric(
        key="authenticity",
        name="Authenticity",
        better="",
        form="percent",
        says=(
            "Share of the clips that are farther from their nearest training clip than that is "
            "from its own nearest: about half for new real clips, near 0 for copies, and high "
            "for clips that are merely far off."
        ),
    ),
    Metric(
        key="top_3",
        name="Top 3",
        better="↑",
        form="percent",
        says="Share of the clips whose class is among the judge's three most probable.",
    ),
    Metric(
        key="balanced_accuracy",
        name="Balanced accuracy",
        better="↑",
        form="percent",
        says="Mean of the classes' accuracies.",
    ),
    Metric(
        key="macro_f1",
        name="Macro F1",
        better="↑",
        form="percent",
        says="Mean of the classes' F1 scores.",
    ),
    Metric(
        key="map_3",
        name="MAP@3",
        better="↑",
        form=".3f",
        says="Mean of 1 / rank of the asked class, 0 beyond rank 3.",
    ),
    Metric(
        key="negative_log_likelihood",
        name="Log loss",
        better="↓",
        form=".3f",
        says="Mean of −ln of the asked class's probability, in nats.",
    ),
    Metric(
        key="calibration_error",
        name="Calibration error",
        better="",
        form=".3f",
        says=(
            "How far the judge's confidence is from its accuracy, over 15 bins. Of the judge "
            "more than of the generator."
        ),
    ),
    Metric(
        key="inception_score",
        name="Inception score",
        better="↑",
        form=".2f",
        says=(
            "exp of the mean divergence of a clip's probabilities from their average, 1 to the "
            "number of classes, without splits. Not comparable between judges."
        ),
    ),
    Metric(
        key="predicted_classes",
        name="Classes heard",
        better="↑",
        form=".2f",
        says="Effective number of classes among the predictions, exp of their entropy.",
    ),
)
# Precision is not among them: noise and silence have all of it (docs/results.md).
HEADLINE = tuple(
    metric
    for metric in METRICS
    if metric.key in ("accuracy", "mmd", "frechet_distance", "recall", "coverage", "authenticity")
)
_NAMES = {metric.key: metric.name.lower() for metric in METRICS}

ANCHOR_WORDS = {
    "real_halves": "one half of the training clips against the other: real against real",
    "training_copy": "training clips, as a generator that only remembers would give them back",
    "one_clip_per_class": "of each class the clearest real clip, repeated",
    "shuffled_labels": "the real test clips, each asked to be what another one is",
    "noise": "white noise",
    "silence": "digital silence",
}


def written(measure: Mapping[str, Any], form: str) -> str:
    """A measure's value in its form, a dash where it has none."""
    return number(measure["value"], form)


def number(value: float | None, form: str) -> str:
    """A number of some form, with a minus that is as wide as a plus."""
    if value is None:
        return "–"
    text = f"{value:.1%}" if form == "percent" else format(value, form)
    if "e+" in text:
        text = f"{value:.0f}"
    if float(text.strip("%")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def warnings(metrics: Mapping[str, Any]) -> list[str]:
    """In words, the checks that don't hold: where the judge can't be trusted."""
    return [
        f"{_NAMES[check['metric']]} of {check['anchor'].replace('_', ' ')} is "
        f"{check['value']:.4g}; "
        f"it must be {check['must']} that of {check['than'].replace('_', ' ')}, "
        f"{check['bound']:.4g}"
        for check in metrics["sanity"]
        if check["holds"] is False
    ]


def unmade(metrics: Mapping[str, Any]) -> list[str]:
    """In words, the checks that could not be made: of which anchor, in which metrics, and why."""
    found: dict[tuple[str, str], list[str]] = {}
    for check in metrics["sanity"]:
        if check["holds"] is None:
            key = check["anchor"].replace("_", " "), check["why"]
            found.setdefault(key, []).append(_NAMES[check["metric"]])
    return [f"{anchor} ({', '.join(names)}): {why}" for (anchor, why), names in found.items()]


def worse_than_real(corpus: Mapping[str, Any], real: Mapping[str, Any] | None) -> list[str]:
    """Names of the table's metrics, but accuracy, that tell a corpus from real sounds, as worse.

    A number of fewer clips than the real one's is no ground.
    """
    if real is None:
        return []
    names = []
    for metric in HEADLINE[1:]:
        if not metric.better or "note" in corpus[metric.key]:
            continue
        gap = difference(corpus[metric.key], real[metric.key])
        if gap["told_apart"] and (gap["value"] < 0) == (metric.better == "↑"):
            names.append(metric.name)
    return names


def fooled(anchor: Mapping[str, Any], real: Mapping[str, Any] | None) -> Sequence[str]:
    """Names of the metrics of the table in which an anchor is no worse than the real test clips."""
    if real is None:
        return []
    names = []
    for metric in HEADLINE:
        ours, theirs = anchor[metric.key]["value"], real[metric.key]["value"]
        if ours is None or theirs is None or not metric.better:
            continue
        if (ours >= theirs) if metric.better == "↑" else (ours <= theirs):
            names.append(metric.name)
    return names
