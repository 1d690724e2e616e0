"""The sections of the YAML as frozen, validated models. Their fields are the words of the file."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Literal

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    StringConstraints,
    model_validator,
)

# Raise it when the same settings would give other log-mels: older folders are then left alone.
FEATURE_VERSION = 1


def digest(value: object) -> str:
    """Eight hex digits of a JSON-like value, the same in every process and on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Section(BaseModel):
    """One section of the YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


# Folds are names: `1` in a YAML and `"1"` in a CSV are the same fold.
Fold = Annotated[str, BeforeValidator(str)]
CorpusName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class SplitSettings(Section):
    """Which real clips train, which choose the checkpoint, which judge the judge."""

    test_folds: tuple[Fold, ...] = ()
    validation_folds: tuple[Fold, ...] = ()
    test_fraction: float = Field(0.15, ge=0, lt=1)
    validation_fraction: float = Field(0.15, ge=0, lt=1)
    seed: int = 0

    @model_validator(mode="after")
    def _folds_differ(self) -> SplitSettings:
        both = sorted({*self.test_folds} & {*self.validation_folds})
        if both:
            raise ValueError(f"fold {', '.join(both)} can't be both test and validation")
        return self


class RealCorpus(Section):
    """The labelled recordings that the judge learns from."""

    path: str
    split: SplitSettings = SplitSettings()


class CorporaSettings(Section):
    """One real corpus, any number of generated ones by name."""

    real: RealCorpus
    generated: dict[CorpusName, str] = {}

    @model_validator(mode="after")
    def _real_is_taken(self) -> CorporaSettings:
        if "real" in self.generated:
            raise ValueError("'real' is the name of the real corpus: name the generated one else")
        return self


class FeatureSettings(Section):
    """From waveform to log-mel. Lengths in seconds or samples, frequencies in Hz."""

    clip_length: PositiveFloat = 5.0
    sample_rate: PositiveInt = 44100
    hop_length: PositiveInt = 441
    n_fft: int = Field(1024, ge=2)
    n_mels: PositiveInt = 64
    f_min: NonNegativeFloat = 0.0
    f_max: PositiveFloat = 22050.0
    long_clips: Literal["split", "center", "start"] = "split"
    dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _fits_together(self) -> FeatureSettings:
        if self.f_max > self.sample_rate / 2:
            raise ValueError(
                f"f_max {self.f_max:g} Hz is above half the sample_rate "
                f"({self.sample_rate / 2:g} Hz)"
            )
        if self.f_min >= self.f_max:
            raise ValueError(f"f_min {self.f_min:g} Hz is not below f_max {self.f_max:g} Hz")
        if self.clip_samples <= self.n_fft // 2:
            raise ValueError(
                f"clip_length {self.clip_length:g} s is {self.clip_samples} samples at "
                f"{self.sample_rate} Hz: it must exceed half of n_fft ({self.n_fft // 2})"
            )
        return self

    @property
    def clip_samples(self) -> int:
        """Samples in one clip of `clip_length`."""
        return round(self.clip_length * self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames in one log-mel: centred frames, so one more than whole hops."""
        return 1 + (self.clip_samples - self.n_fft % 2) // self.hop_length

    @property
    def id(self) -> str:
        """Eight hex digits that stand for these settings and the version of the arithmetic."""
        return digest({"version": FEATURE_VERSION, **self.model_dump()})


class ModelSettings(Section):
    """Which classifier is the judge."""

    name: Literal["cnn", "alexnet", "vggish", "resnetish18", "resnetish34", "resnetish50"] = (
        "resnetish18"
    )


class Adam(Section):
    """torch.optim.Adam."""

    name: Literal["Adam"] = "Adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Section):
    """torch.optim.AdamW."""

    name: Literal["AdamW"] = "AdamW"
    lr: PositiveFloat = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01


class SGD(Section):
    """torch.optim.SGD."""

    name: Literal["SGD"] = "SGD"
    lr: PositiveFloat = 1e-2
    momentum: NonNegativeFloat = 0.9
    weight_decay: NonNegativeFloat = 0.0
    nesterov: bool = False


class StepLR(Section):
    """torch.optim.lr_scheduler.StepLR, stepped once an epoch."""

    name: Literal["StepLR"]
    step_size: PositiveInt
    gamma: PositiveFloat = 0.1


class MultiStepLR(Section):
    """torch.optim.lr_scheduler.MultiStepLR, stepped once an epoch."""

    name: Literal["MultiStepLR"]
    milestones: tuple[PositiveInt, ...]
    gamma: PositiveFloat = 0.1


class ExponentialLR(Section):
    """torch.optim.lr_scheduler.ExponentialLR, stepped once an epoch."""

    name: Literal["ExponentialLR"]
    gamma: PositiveFloat


class CosineAnnealingLR(Section):
    """torch.optim.lr_scheduler.CosineAnnealingLR, stepped once an epoch; T_max is all epochs."""

    name: Literal["CosineAnnealingLR"]
    eta_min: NonNegativeFloat = 0.0


class ReduceLROnPlateau(Section):
    """torch.optim.lr_scheduler.ReduceLROnPlateau.

    It watches what its mode belongs to: `min` the validation loss, `max` the validation accuracy.
    """

    name: Literal["ReduceLROnPlateau"]
    mode: Literal["min", "max"] = "min"
    factor: float = Field(0.1, gt=0, lt=1)
    patience: NonNegativeInt = 10
    min_lr: NonNegativeFloat = 0.0


Optimizer = Annotated[Adam | AdamW | SGD, Field(discriminator="name")]
Scheduler = Annotated[
    StepLR | MultiStepLR | ExponentialLR | CosineAnnealingLR | ReduceLROnPlateau,
    Field(discriminator="name"),
]


def _adam_if_unnamed(value: object) -> object:
    return {"name": "Adam", **value} if isinstance(value, dict) else value


class TrainingSettings(Section):
    """How the judge learns. `batch_size` counts the clips of one step over all workers."""

    epochs: PositiveInt = 50
    batch_size: PositiveInt = 32
    optimizer: Annotated[Optimizer, BeforeValidator(_adam_if_unnamed)] = Adam()
    scheduler: Scheduler | None = None
    shuffle_buffer: PositiveInt = 4096
    seed: NonNegativeInt = 0


class EvaluationSettings(Section):
    """How the judge scores. `checkpoint` is a training run's folder; by default this config's."""

    checkpoint: str | None = None
    batch_size: PositiveInt = 64
    examples: NonNegativeInt = 8


class ComputeSettings(Section):
    """What of the machine or cluster is used; no result depends on it, but for float rounding."""

    workers: PositiveInt = 1
    use_gpu: Literal[True, False, "auto"] = "auto"
    cpus_per_worker: PositiveFloat | None = None
    local_cpus: PositiveInt | None = None
    shard_clips: PositiveInt | Literal["auto"] = "auto"


class FormulaSettings(Section):
    """Corpora made by formula: one real and three generated ones, a folder each below `output`."""

    output: str
    clips_per_class: PositiveInt = 40
    generated_clips_per_class: PositiveInt = 20
    seconds: PositiveFloat = 1.0
    sample_rate: PositiveInt = 16000
    seed: NonNegativeInt = 0


class GriffinLimSettings(Section):
    """A generated corpus made of real test clips, by log-mel and back."""

    output: str
    iterations: PositiveInt = 32


class SynthesisSettings(Section):
    """Corpora that raysound makes itself."""

    formula: FormulaSettings | None = None
    griffin_lim: GriffinLimSettings | None = None


class Config(Section):
    """One experiment: everything that a job reads."""

    name: CorpusName
    output: str
    corpora: CorporaSettings
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    compute: ComputeSettings = ComputeSettings()
    synthesis: SynthesisSettings = SynthesisSettings()

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> Config:
        if self.training.batch_size % self.compute.workers:
            raise ValueError(
                f"training.batch_size {self.training.batch_size} can't be split evenly over "
                f"compute.workers {self.compute.workers}"
            )
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults filled in, as YAML that `load` takes."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
