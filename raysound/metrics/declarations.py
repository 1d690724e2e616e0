"""Every metric of metrics.json, declared once: name, direction, format, meaning, dependence on n.

Reports, comparisons, rankings, TensorBoard events and the JSON schema of metrics.json read it.
"""

import math
from typing import NamedTuple

# Version of metrics.json: raised whenever a key changes its meaning or goes away.
METRICS_SCHEMA = 7
# Most clips of a corpus for the metrics whose value depends on the number of clips: 4 for each of
# 512 dimensions, so that the Fréchet distance in the embedding of a resnetish18 has an interval.
SET_CLIPS = 2048
# Most clips of a corpus for what is computed from pairs of clips, as MMD: they take 200 MB. Of a
# larger corpus a sample stands for all.
PAIR_CLIPS = 5000
# Most numbers of embedding in the samples of one corpus's classes: they take 100 MB.
EMBEDDING_NUMBERS = 25_600_000


class Metric(NamedTuple):
    """How one metric is computed, compared and shown.

    Attributes:
        key: In metrics.json.
        name: In tables.
        higher_is_better: None where neither direction is better.
        form: `percent`, or the format of a number.
        says: What it measures, its range, and what it can't detect.
        needs_equal_n: Its expected value depends on the number of clips, so it is computed on the
            same number of clips of every corpus, and values of different numbers are not compared.
        needs_labels: Has no value for clips without labels.
        headline: Shown in the first table of the report.
        least: Its lowest value; an interval computed from a spread may reach below.
    """

    key: str
    name: str
    higher_is_better: bool | None
    form: str
    says: str
    needs_equal_n: bool = False
    needs_labels: bool = False
    headline: bool = False
    least: float = 0.0

    @property
    def arrow(self) -> str:
        """`↑` where higher is better, `↓` where lower is, empty where neither is."""
        return {True: "↑", False: "↓", None: ""}[self.higher_is_better]


METRICS = (
    Metric(
        key="accuracy",
        name="Accuracy",
        higher_is_better=True,
        needs_labels=True,
        form="percent",
        headline=True,
        says=(
            "Share of the clips whose predicted class is their label. It does not measure "
            "variety or quality: one clear clip per class, repeated, has 100%."
        ),
    ),
    Metric(
        key="mmd2_x100",
        name="MMD",
        higher_is_better=False,
        form=".2f",
        headline=True,
        says=(
            "Maximum mean discrepancy between the embeddings of these clips and of the "
            "reference, squared, unbiased, × 100, with a Gaussian kernel as wide as the median "
            "distance within the reference. About 0 for equal distributions; chance can make it "
            "slightly negative. It does not use labels, so it does not detect wrong ones."
        ),
        least=-math.inf,
    ),
    Metric(
        key="frechet_distance",
        name="Fréchet",
        higher_is_better=False,
        form=".3g",
        needs_equal_n=True,
        headline=True,
        says=(
            "Squared Fréchet distance between both sets of embeddings, each taken as a "
            "Gaussian. 0 and up. Fewer clips give larger values. It has an interval if there are "
            "at least four clips per dimension."
        ),
    ),
    Metric(
        key="fad_inf",
        name="Fréchet ∞",
        higher_is_better=False,
        form=".3g",
        says=(
            "The same, extrapolated to infinitely many clips on both sides. Given only where "
            "both have four clips per dimension."
        ),
        least=-math.inf,
    ),
    Metric(
        key="precision",
        name="Precision",
        higher_is_better=True,
        form="percent",
        says=(
            "Share of the clips that lie in the neighbourhood of a reference clip (5 nearest). "
            "It does not measure variety."
        ),
    ),
    Metric(
        key="recall",
        name="Recall",
        higher_is_better=True,
        form="percent",
        needs_equal_n=True,
        headline=True,
        says=(
            "Share of the reference clips that lie in the neighbourhood of one of these clips. "
            "It does not detect clips that are far from all others."
        ),
    ),
    Metric(
        key="density",
        name="Density",
        higher_is_better=True,
        form=".2f",
        says=(
            "How many reference neighbourhoods a clip lies in, over 5; about 1 for real clips, "
            "and may be more."
        ),
    ),
    Metric(
        key="coverage",
        name="Coverage",
        higher_is_better=True,
        form="percent",
        needs_equal_n=True,
        headline=True,
        says=(
            "Share of the reference clips that have one of these clips in their neighbourhood: "
            "low for a generator of few different sounds. Copies of the reference have the "
            "highest coverage."
        ),
    ),
    Metric(
        key="authenticity",
        name="Authenticity",
        higher_is_better=None,
        form="percent",
        headline=True,
        says=(
            "Share of the clips that are farther from their nearest training clip than that is "
            "from its own nearest: about half for new real clips, near 0 for copies, and high "
            "for clips that are merely far off."
        ),
    ),
    Metric(
        key="top_3",
        name="Top 3",
        higher_is_better=True,
        needs_labels=True,
        form="percent",
        says=(
            "Share of the clips whose class is among the three most probable ones. Not given "
            "with three classes or fewer, where it is always 100%."
        ),
    ),
    Metric(
        key="balanced_accuracy",
        name="Balanced accuracy",
        higher_is_better=True,
        needs_labels=True,
        form="percent",
        says="Mean of the classes' accuracies.",
    ),
    Metric(
        key="macro_f1",
        name="Macro F1",
        higher_is_better=True,
        needs_labels=True,
        form="percent",
        needs_equal_n=True,
        says="Mean of the classes' F1 scores. Lower where a class has few clips.",
    ),
    Metric(
        key="map_3",
        name="MAP@3",
        higher_is_better=True,
        needs_labels=True,
        form=".3f",
        says=(
            "Mean of 1 / rank of the label, 0 beyond rank 3. Not given with three classes "
            "or fewer, where every rank counts."
        ),
    ),
    Metric(
        key="log_loss",
        name="Log loss",
        higher_is_better=False,
        needs_labels=True,
        form=".3f",
        says="Mean of −ln of the label's probability, in nats.",
    ),
    Metric(
        key="ece",
        name="Calibration error",
        higher_is_better=None,
        needs_labels=True,
        form=".3f",
        needs_equal_n=True,
        says=(
            "How far the classifier's confidence is from its accuracy, over 15 bins. It says more "
            "about the classifier than about the generator."
        ),
    ),
    Metric(
        key="inception_score",
        name="Inception score",
        higher_is_better=True,
        form=".2f",
        needs_equal_n=True,
        says=(
            "exp of the mean divergence of a clip's probabilities from their average, 1 to the "
            "number of classes, without splits. Fewer clips give lower values. Not comparable "
            "between classifiers."
        ),
    ),
    Metric(
        key="modified_inception_score",
        name="Modified inception score",
        higher_is_better=True,
        form=".2f",
        needs_equal_n=True,
        says=(
            "exp of the mean divergence between the probabilities of two clips, 1 and up. Unlike "
            "the inception score it rises where clips of one class differ. Not comparable between "
            "classifiers."
        ),
        least=1.0,
    ),
    Metric(
        key="am_score",
        name="AM score",
        higher_is_better=False,
        form=".3f",
        needs_equal_n=True,
        says=(
            "Activation maximization score, in nats: mean entropy of a clip's probabilities plus "
            "the divergence of their mean from that of the reference. 0 where every clip is clear "
            "and each class as frequent as in the reference. Not comparable between classifiers."
        ),
    ),
    Metric(
        key="effective_num_classes",
        name="Effective classes",
        higher_is_better=True,
        form=".2f",
        needs_equal_n=True,
        says=(
            "Effective number of predicted classes, exp of their entropy. Fewer clips give lower "
            "values."
        ),
    ),
)
# Precision is not in the first table: noise and silence have all of it (docs/results.md).
HEADLINE = tuple(metric for metric in METRICS if metric.headline)
# Those that come from the embeddings alone, so that they can be computed in any other embedding.
EMBEDDING_METRICS = tuple(
    metric
    for metric in METRICS
    if metric.key
    in (
        "mmd2_x100", "frechet_distance", "fad_inf", "precision", "recall", "density",
        "coverage", "authenticity",
    )
)  # fmt: skip
# Of `evaluation.copies`, which not every evaluation has.
COPIED_SHARE = Metric(
    key="share",
    name="Copies",
    higher_is_better=False,
    form="percent",
    says="Share of clips that resemble a training clip more than real clips do.",
)
