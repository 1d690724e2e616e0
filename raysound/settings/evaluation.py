"""The section `evaluation`: scoring, further embeddings, copies and the report."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StrictBool, Tag, model_validator

from raysound.settings.features import LARGEST_CLIP
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
        if not 3 <= self.clip_samples <= LARGEST_CLIP:
            raise ValueError(
                f"clip_length {self.clip_length:g} s is {self.clip_samples} samples at "
                f"{self.sample_rate} Hz: a clip may have 3 to {LARGEST_CLIP}"
            )
        return self

    @property
    def clip_samples(self) -> int:
        """Samples of one window of `clip_length`."""
        return round(self.clip_length * self.sample_rate)


def _embedding_tag(value: Any) -> str:
    return LOG_MEL_STATISTICS if isinstance(value, str) else "OnnxEmbedding"


# Mean, standard deviation and quantiles of each mel band: an embedding that needs no model.
LOG_MEL_STATISTICS = "log_mel_statistics"
Embedding = Annotated[
    Annotated[OnnxEmbedding, Tag("OnnxEmbedding")]
    | Annotated[Literal["log_mel_statistics"], Tag(LOG_MEL_STATISTICS)],
    Discriminator(_embedding_tag),
]


class CopiesSettings(Section):
    """The search for copies of training clips among generated clips.

    A clip counts as a copy above the similarity that a share of `rate` of real clips reach. At most
    so many `training_windows` are searched: of more, whole clips are drawn.
    """

    rate: Number = Field(0.01, gt=0, lt=1)
    """Share of real clips that may be called copies."""
    training_windows: PositiveInt = 50_000
    """Windows of training clips that are searched, at most."""


class EvaluationSettings(Section):
    """How the classifier scores. `checkpoint` is a training run's folder; by default this config's.

    The report shows so many of the hardest and of the most convincing clips of each class and
    corpus, as far as `examples_megabytes` hold. `tensorboard` writes the numbers as events, too,
    `csv` the predictions of each corpus as a CSV file. `embeddings` are further embeddings, by
    name, in which the distances are computed. `reference` is a file of jobs/reference.py, which
    stands for the real corpus; it wants `checkpoint`. `copies` searches copies of training clips.
    """

    checkpoint: PathOrUri | None = None
    """Folder of the classifier, below training/; this config's own by default."""
    reference: PathOrUri | None = None
    """File of `raysound reference` in place of the real corpus; needs checkpoint."""
    batch_size: PositiveInt = 64
    """Of the classifier."""
    examples: NonNegativeInt = 1
    """Hardest and most convincing clips shown, per class and corpus."""
    examples_megabytes: NonNegativeFloat = 12.0
    """Size of all sounds in the report."""
    tensorboard: StrictBool = False
    """Writes the metrics as TensorBoard events."""
    csv: StrictBool = False
    """Writes the predictions of each corpus as a CSV file."""
    embeddings: dict[CorpusName, Embedding] = {}
    """Further embeddings, by name: log_mel_statistics, or an ONNX model."""
    copies: CopiesSettings | None = None
