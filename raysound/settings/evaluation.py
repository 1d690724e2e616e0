"""The section `evaluation`: scoring, further embeddings, copies and the report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, Tag, model_validator

from raysound.settings.features import MAX_CLIP_VALUES
from raysound.settings.fields import (
    CorpusName,
    NonNegativeFloat,
    NonNegativeInt,
    Number,
    PathOrUri,
    PositiveFloat,
    PositiveInt,
    Section,
)


class OnnxEmbedding(Section):
    """An embedding computed by an ONNX model from waveforms of `clip_length` seconds."""

    path: PathOrUri
    sample_rate: PositiveInt
    clip_length: PositiveFloat

    @model_validator(mode="after")
    def _fits_together(self) -> OnnxEmbedding:
        if not 3 <= self.clip_samples <= MAX_CLIP_VALUES:
            raise ValueError(
                f"clip_length {self.clip_length:g} s is {self.clip_samples} samples at "
                f"{self.sample_rate} Hz: a clip must have 3 to {MAX_CLIP_VALUES}"
            )
        return self

    @property
    def clip_samples(self) -> int:
        """Samples of a window of `clip_length` seconds."""
        return round(self.clip_length * self.sample_rate)


def _embedding_tag(value: Any) -> str:
    return LOG_MEL_STATISTICS if isinstance(value, str) else "OnnxEmbedding"


# An embedding without a model: mean, standard deviation and quantiles of each mel band.
LOG_MEL_STATISTICS = "log_mel_statistics"
Embedding = Annotated[
    Annotated[OnnxEmbedding, Tag("OnnxEmbedding")]
    | Annotated[Literal["log_mel_statistics"], Tag(LOG_MEL_STATISTICS)],
    Discriminator(_embedding_tag),
]


class CopiesSettings(Section):
    """The search for copies of training clips among generated clips.

    A generated clip counts as a copy above a threshold of similarity, which a share `rate` of the
    real clips exceeds. If there are more than `training_windows`, clips are sampled.
    """

    rate: Number = Field(0.01, gt=0, lt=1)
    """Share of real clips that count as copies."""
    training_windows: PositiveInt = 50_000
    """Maximum number of windows of training clips to search."""


class EvaluationSettings(Section):
    """Settings of the evaluation.

    `checkpoint` is the folder of a training run; the default is the run of this config. The report
    shows `examples` of the hardest and of the most convincing clips per class and corpus, up to
    `examples_megabytes`. `tensorboard` also writes the metrics as events, and `csv` the predictions
    of each corpus as a CSV file. The distances are also computed in the further `embeddings`.
    `reference` is a file of jobs/reference.py that replaces the real corpus; it requires
    `checkpoint`. `copies` searches for copies of training clips.
    """

    checkpoint: PathOrUri | None = None
    """Folder of the classifier, below training/; by default the one of this config."""
    reference: PathOrUri | None = None
    """File of `raysound reference` that replaces the real corpus; requires checkpoint."""
    batch_size: PositiveInt = 64
    """Windows per forward pass of the classifier."""
    examples: NonNegativeInt = 1
    """Hardest and most convincing clips to show, of each kind per class and corpus."""
    examples_megabytes: NonNegativeFloat = 12.0
    """Maximum size of all sounds in the report, MB."""
    tensorboard: StrictBool = False
    """Writes the metrics as TensorBoard events."""
    csv: StrictBool = False
    """Writes the predictions of each corpus as a CSV file."""
    embeddings: dict[CorpusName, Embedding] = {}
    """Further embeddings by name: log_mel_statistics or an ONNX model."""
    copies: CopiesSettings | None = None
