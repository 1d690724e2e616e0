"""The content of metrics.json as types, from which docs/metrics.schema.json is generated.

python -m raysound.evaluation.metrics_schema > docs/metrics.schema.json
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, NotRequired

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, with_config
from pydantic.json_schema import GenerateJsonSchema
from typing_extensions import TypedDict

from raysound.metrics.declarations import EMBEDDING_METRICS, METRICS, METRICS_SCHEMA

CLOSED = ConfigDict(extra="forbid", use_attribute_docstrings=True)
Probability = Annotated[float, Field(ge=0, le=1)]


@with_config(CLOSED)
class Estimate(TypedDict):
    """A metric with its 95 % interval."""

    value: float | None
    low: float | None
    """Lower end of the 95 % interval."""
    high: float | None
    """Upper end of the 95 % interval."""
    why: NotRequired[str]
    """Why there is no value or no interval."""
    note: NotRequired[str]
    """Of a metric that depends on the number of clips: how many fewer these are."""
    of: NotRequired[NonNegativeInt]
    """Of a share: the number of clips."""


@with_config(CLOSED)
class ClassEstimates(TypedDict):
    """Metrics of one class of a corpus."""

    clips: NonNegativeInt
    accuracy: Estimate
    generated: NonNegativeInt
    """Clips compared."""
    reference: NonNegativeInt
    """Real training clips of the class."""
    mmd2_x100: Estimate
    coverage: Estimate
    fad_inf: Estimate


@with_config(CLOSED)
class WorstClip(TypedDict):
    """A clip without which MMD is lower."""

    clip_id: str
    label: str | None
    prediction: str
    nearest_train_clip_id: str | None
    """The nearest training clip in the embedding."""
    mmd_decrease: Annotated[float, Field(gt=0)]
    """MMD of the sample minus MMD without this clip."""


# A key for each declared metric, so that a new metric needs no entry here.
_keys: Any = {
    metric.key: Annotated[Estimate, Field(description=metric.description)] for metric in METRICS
}
Estimates: Any = TypedDict("Estimates", _keys)  # type: ignore[misc]
_keys = {metric.key: _keys[metric.key] for metric in EMBEDDING_METRICS}
DistanceEstimates: Any = TypedDict("DistanceEstimates", _keys)  # type: ignore[misc]


@with_config(CLOSED)
class Corpus(Estimates):
    """Metrics of one corpus."""

    role: Literal["real", "generated", "anchor"]
    found: NotRequired[NonNegativeInt]
    """Clips of the corpus, including rejected ones."""
    rejected: NotRequired[NonNegativeInt]
    clips: NonNegativeInt
    """Clips scored."""
    compared: NonNegativeInt
    """Clips from which the metrics that depend on the number of clips are computed."""
    labelled: bool
    """False for clips without labels: metrics that need labels are null."""
    predicted: dict[str, NonNegativeInt]
    """Clips by predicted class."""
    per_class: dict[str, ClassEstimates]
    """By label; by predicted class where clips have no labels."""
    confusion: list[list[NonNegativeInt]] | None
    """Rows are labels, columns are predictions; null without labels."""
    worst_clips: NotRequired[list[WorstClip]]
    """Up to ten clips of a sample of at most 5,000, the largest decrease first; not of anchors."""


@with_config(CLOSED)
class Distances(DistanceEstimates):
    """Metrics of one corpus in another embedding."""

    clips: NonNegativeInt
    """Clips that the classifier scored; of the real corpus its test clips."""
    compared: NonNegativeInt
    """Clips of Fréchet distance, recall and coverage. Other metrics use up to 5,000 clips."""


@with_config(CLOSED)
class Classifier(TypedDict):
    """The classifier that scored the clips."""

    run: str
    model: str
    labels: list[str]
    epoch: int
    validation_accuracy: float | None
    feature_id: str
    split_digest: str
    train_clips: int
    validation_clips: int
    embedding_size: int


@with_config(CLOSED)
class Reference(TypedDict):
    """The real training clips that corpora are compared with."""

    split: Literal["train"]
    clips: int
    used: int
    set_size: int
    file: NotRequired[str]
    """With evaluation.reference: the file from which the real row and the anchors come."""


@with_config(CLOSED)
class SanityCheck(TypedDict):
    """A metric of an anchor, whose value is known to lie below or above another."""

    anchor: str
    metric: str
    expected: Literal["below", "well below", "above", "at least", "at most"]
    than: str
    value: float | None
    bound: float | None
    passed: bool | None
    """Null for a skipped check."""
    why: NotRequired[str]
    """Why the check is skipped."""


@with_config(CLOSED)
class RankedPair(TypedDict):
    """The difference of two generators."""

    a: str
    b: str
    metric: str
    difference: Estimate
    """a minus b, with the 95 % interval of this pair alone."""
    p_adjusted: Probability | None
    """Two-sided p-value, adjusted by Holm's method for all pairs."""
    significant: bool
    """Whether p_adjusted is below 0.05."""


@with_config(CLOSED)
class Ranking(TypedDict):
    """Generators from best to worst."""

    metric: str
    order: list[str]
    pairs: list[RankedPair]


@with_config(CLOSED)
class Mismatch(TypedDict):
    """A difference between the files of a corpus and the real ones that affects distances."""

    corpus: str
    kind: Literal["sample_rate", "band_limit", "level", "length", "silence"]
    real: float
    generated: float
    text: str


@with_config(CLOSED)
class RunPair(TypedDict):
    """Runs of the two classifiers that are compared."""

    real: str
    generated: str


@with_config(CLOSED)
class ClassClips(TypedDict):
    """Clips of one class, of each of the two classifiers."""

    train: NonNegativeInt
    validation: NonNegativeInt


@with_config(CLOSED)
class CasAccuracy(TypedDict):
    """Accuracy of a classifier on real test clips."""

    accuracy: Estimate


@with_config(CLOSED)
class CasScore(TypedDict):
    """Classification accuracy score of one generator."""

    runs: RunPair
    train_clips: NonNegativeInt
    """Of each of the two classifiers."""
    validation_clips: NonNegativeInt
    test_clips: NonNegativeInt
    """Real test clips of the compared classes."""
    clips_by_class: dict[str, ClassClips]
    missing_classes: list[str]
    """Classes without a training clip in the corpus; they are not compared."""
    real_to_real: CasAccuracy
    """Trained on real clips, tested on real clips."""
    generated_to_real: CasAccuracy
    """Trained on generated clips, tested on real clips."""
    lost: Estimate
    """Accuracy of real_to_real minus generated_to_real; its interval is of this pair alone."""
    p_value: Probability
    """McNemar's exact test, two-sided."""
    p_adjusted: Probability
    """The same, adjusted by Holm's method for all generators."""
    significant: bool
    """Whether p_adjusted is below 0.05."""


@with_config(CLOSED)
class CasScores(TypedDict):
    """Classification accuracy scores."""

    test_clips: NonNegativeInt
    """Real test clips."""
    generated: dict[str, CasScore]


@with_config(CLOSED)
class EmbeddingDistances(TypedDict):
    """Distances in another embedding than the classifier's."""

    size: PositiveInt
    """Dimensions of the embedding."""
    source: str
    """The model that computes it."""
    digest: str
    """Of the model and the windows; only distances of equal digests are compared."""
    corpora: dict[str, Distances]
    anchors: dict[str, Distances]


@with_config(CLOSED)
class CopyPair(TypedDict):
    """A clip and the most similar training clip."""

    clip_id: str
    window: NonNegativeInt
    """The most similar window of the clip."""
    training_clip: str
    training_window: NonNegativeInt
    similarity: Annotated[float, Field(ge=-1, le=1)]
    lag: float
    """Seconds by which sounds occur later than in the training window."""


@with_config(CLOSED)
class CopyThreshold(TypedDict):
    """The similarity from which on a clip is a copy."""

    value: float | None
    clips: NonNegativeInt
    """Training clips for its calibration."""
    why: str
    """Why there is no value; else empty."""


@with_config(CLOSED)
class SearchedClips(TypedDict):
    """The training clips that are searched."""

    clips: PositiveInt
    of: PositiveInt
    """Number of all training clips."""
    windows: PositiveInt
    digest: str
    """Of the searched clips; only shares of equal digests are compared."""


@with_config(CLOSED)
class CorpusCopies(TypedDict):
    """Copies in one corpus."""

    clips: NonNegativeInt
    """Clips that the classifier scored; of the real corpus its test clips."""
    share: Estimate
    """Share of clips that are copies."""
    pairs: list[CopyPair]
    """The ten clips that are most similar to a training clip, the most similar first."""


@with_config(CLOSED)
class Copies(TypedDict):
    """The search for copies of training clips."""

    rate: Annotated[float, Field(gt=0, lt=1)]
    """Share of real clips that may be flagged."""
    threshold: CopyThreshold
    training: SearchedClips
    real_pairs: list[CopyPair]
    """The ten most similar pairs of training clips of different groups."""
    corpora: dict[str, CorpusCopies]


# `schema` is a method of pydantic's models, but a plain key of a TypedDict.
@with_config(CLOSED)
class MetricsFile(TypedDict):
    """Content of metrics.json; `schema` increases when a metric or a key changes."""

    schema: Annotated[int, Field(json_schema_extra={"const": METRICS_SCHEMA})]
    name: str
    classifier: Classifier
    reference: Reference
    corpora: dict[str, Corpus]
    anchors: dict[str, Corpus]
    sanity: list[SanityCheck]
    ranking: Ranking
    mismatch: list[Mismatch]
    cas: CasScores | None
    """From cas/cas.json, if its scores are of this classifier and these clips; else null."""
    embeddings: dict[str, EmbeddingDistances]
    """By the names in evaluation.embeddings."""
    copies: Copies | None
    """Null without evaluation.copies."""


class _WithoutTitles(GenerateJsonSchema):
    def field_title_should_be_set(self, schema: Any) -> bool:
        return False


def metrics_schema() -> str:
    """The JSON schema of metrics.json, for validators in any language."""
    schema = TypeAdapter(MetricsFile).json_schema(schema_generator=_WithoutTitles)
    schema["$schema"] = GenerateJsonSchema.schema_dialect
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    print(metrics_schema(), end="")
