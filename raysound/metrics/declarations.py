"""Declarations of the metrics of metrics.json: name, direction, format, description.

Reports, comparisons, rankings, TensorBoard events and the JSON schema of metrics.json use them.
"""

import math
from typing import NamedTuple

# Version of metrics.json: increased when a metric is added or removed, or a key changes.
METRICS_SCHEMA = 7
# Maximum number of clips for metrics whose value depends on the number of clips: 4 for each of 512
# dimensions, so that the Fréchet distance in the embedding of a resnetish18 has an interval.
SET_CLIPS = 2048
# Maximum number of clips for metrics of pairs of clips, such as MMD: 5,000 take 200 MB. Larger
# corpora are sampled.
PAIR_CLIPS = 5000
# Maximum number of embedding values in the samples per class of one corpus: 100 MB.
EMBEDDING_NUMBERS = 25_600_000


class Metric(NamedTuple):
    """How a metric is computed, compared and shown.

    Attributes:
        key: Key in metrics.json.
        name: Name in tables.
        higher_is_better: None if neither direction is better.
        format: `percent`, or a format specification.
        description: What the metric measures, its range, and what it does not detect.
        needs_equal_n: The expected value depends on the number of clips. The metric is computed on
            the same number of clips of every corpus, and values of different numbers of clips are
            not compared.
        needs_labels: The metric has no value for clips without labels.
        headline: The metric is shown in the first table of the report.
        min_value: Lowest possible value; an interval computed from a spread may extend below it.
    """

    key: str
    name: str
    higher_is_better: bool | None
    format: str
    description: str
    needs_equal_n: bool = False
    needs_labels: bool = False
    headline: bool = False
    min_value: float = 0.0

    @property
    def arrow(self) -> str:
        """`↑` if higher is better, `↓` if lower is better, otherwise empty."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


METRICS = (
    Metric(
        key="accuracy",
        name="Accuracy",
        higher_is_better=True,
        needs_labels=True,
        format="percent",
        headline=True,
        description=(
            "Share of the clips whose predicted class is their label. It does not measure "
            "variety or quality: one clear clip per class, repeated, gives 100%."
        ),
    ),
    Metric(
        key="mmd2_x100",
        name="MMD",
        higher_is_better=False,
        format=".2f",
        headline=True,
        description=(
            "Squared maximum mean discrepancy between the embeddings of these clips and of the "
            "reference, unbiased, × 100. The bandwidth of the Gaussian kernel is the median "
            "distance within the reference. About 0 for equal distributions; chance can make it "
            "slightly negative. It does not use labels, so it does not detect wrong labels."
        ),
        min_value=-math.inf,
    ),
    Metric(
        key="frechet_distance",
        name="Fréchet",
        higher_is_better=False,
        format=".3g",
        needs_equal_n=True,
        headline=True,
        description=(
            "Squared Fréchet distance between both sets of embeddings, each approximated by a "
            "Gaussian. 0 or more. Fewer clips give larger values. It has an interval if there are "
            "at least four clips per dimension."
        ),
    ),
    Metric(
        key="fad_inf",
        name="Fréchet ∞",
        higher_is_better=False,
        format=".3g",
        description=(
            "Fréchet distance, extrapolated to infinitely many clips on both sides. Given only if "
            "both sides have at least four clips per dimension."
        ),
        min_value=-math.inf,
    ),
    Metric(
        key="precision",
        name="Precision",
        higher_is_better=True,
        format="percent",
        description=(
            "Share of the clips that are in the neighbourhood of a reference clip (5 nearest). "
            "It does not measure variety."
        ),
    ),
    Metric(
        key="recall",
        name="Recall",
        higher_is_better=True,
        format="percent",
        needs_equal_n=True,
        headline=True,
        description=(
            "Share of the reference clips that are in the neighbourhood of one of these clips. "
            "It does not detect clips that are far from all others."
        ),
    ),
    Metric(
        key="density",
        name="Density",
        higher_is_better=True,
        format=".2f",
        description=(
            "Mean number of reference neighbourhoods that contain a clip, divided by 5. About 1 "
            "for real clips; it can be larger."
        ),
    ),
    Metric(
        key="coverage",
        name="Coverage",
        higher_is_better=True,
        format="percent",
        needs_equal_n=True,
        headline=True,
        description=(
            "Share of the reference clips that have one of these clips in their neighbourhood: "
            "low for a generator of few different sounds. Copies of the reference have the "
            "highest coverage."
        ),
    ),
    Metric(
        key="authenticity",
        name="Authenticity",
        higher_is_better=None,
        format="percent",
        headline=True,
        description=(
            "Share of the clips that are farther from their nearest training clip than this clip "
            "is from its own nearest training clip: about 50% for new real clips, near 0% for "
            "copies, and high for clips that are far from all real clips."
        ),
    ),
    Metric(
        key="top_3",
        name="Top 3",
        higher_is_better=True,
        needs_labels=True,
        format="percent",
        description=(
            "Share of the clips whose class is among the three most probable classes. Not given "
            "with three classes or fewer, where it is always 100%."
        ),
    ),
    Metric(
        key="balanced_accuracy",
        name="Balanced accuracy",
        higher_is_better=True,
        needs_labels=True,
        format="percent",
        description="Mean of the accuracies of the classes.",
    ),
    Metric(
        key="macro_f1",
        name="Macro F1",
        higher_is_better=True,
        needs_labels=True,
        format="percent",
        needs_equal_n=True,
        description="Mean of the F1 scores of the classes. Lower if a class has few clips.",
    ),
    Metric(
        key="map_3",
        name="MAP@3",
        higher_is_better=True,
        needs_labels=True,
        format=".3f",
        description=(
            "Mean of 1 / rank of the label, 0 beyond rank 3. Not given with three classes "
            "or fewer, where no rank is beyond 3."
        ),
    ),
    Metric(
        key="log_loss",
        name="Log loss",
        higher_is_better=False,
        needs_labels=True,
        format=".3f",
        description="Mean of −ln of the probability of the label, in nats.",
    ),
    Metric(
        key="ece",
        name="Calibration error",
        higher_is_better=None,
        needs_labels=True,
        format=".3f",
        needs_equal_n=True,
        description=(
            "Mean difference between the confidence of the classifier and its accuracy, over 15 "
            "bins. It characterises the classifier more than the generator."
        ),
    ),
    Metric(
        key="inception_score",
        name="Inception score",
        higher_is_better=True,
        format=".2f",
        needs_equal_n=True,
        description=(
            "exp of the mean divergence of the probabilities of a clip from their mean, 1 to the "
            "number of classes, without splits. Fewer clips give lower values. Not comparable "
            "between classifiers."
        ),
    ),
    Metric(
        key="modified_inception_score",
        name="Modified inception score",
        higher_is_better=True,
        format=".2f",
        needs_equal_n=True,
        description=(
            "exp of the mean divergence between the probabilities of two clips, 1 or more. Unlike "
            "the inception score it increases if clips of one class differ. Not comparable "
            "between classifiers."
        ),
        min_value=1.0,
    ),
    Metric(
        key="am_score",
        name="AM score",
        higher_is_better=False,
        format=".3f",
        needs_equal_n=True,
        description=(
            "Activation maximization score, in nats: mean entropy of the probabilities of a clip "
            "plus the divergence of their mean from that of the reference. 0 if every prediction "
            "is certain and each class is as frequent as in the reference. Not comparable between "
            "classifiers."
        ),
    ),
    Metric(
        key="effective_num_classes",
        name="Effective classes",
        higher_is_better=True,
        format=".2f",
        needs_equal_n=True,
        description=(
            "Effective number of predicted classes, exp of their entropy. Fewer clips give lower "
            "values."
        ),
    ),
)
# Precision is not in the first table: it does not detect noise or silence (docs/results.md).
HEADLINE = tuple(metric for metric in METRICS if metric.headline)
# Metrics that use only embeddings, so they can be computed in other embeddings as well.
EMBEDDING_METRICS = tuple(
    metric
    for metric in METRICS
    if metric.key
    in (
        "mmd2_x100", "frechet_distance", "fad_inf", "precision", "recall", "density",
        "coverage", "authenticity",
    )
)  # fmt: skip
# Metric of `evaluation.copies`, which is optional.
COPIED_SHARE = Metric(
    key="share",
    name="Copies",
    higher_is_better=False,
    format="percent",
    description="Share of clips that resemble a training clip more than real clips do.",
)
