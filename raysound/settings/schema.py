"""The sections of the YAML as frozen, validated models. Their fields are the words of the file."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Discriminator,
    Field,
    SerializerFunctionWrapHandler,
    StrictBool,
    StringConstraints,
    Tag,
    ValidationError,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raysound.wording import counted

# Raise it when the same settings would give other log-mels: older folders are then left alone.
FEATURE_VERSION = 1
# The type of a fault whose value must not be shown.
SECRET = "secret"
# The most values of one clip, as samples or as a log-mel: 1 GiB of float32.
LARGEST_CLIP = 2**28
# Hz. The K-weighting of BS.1770 has a shelf at 1682 Hz, which must lie below half the rate.
LEAST_LUFS_RATE = 4000
# dBFS or LUFS, the absolute gate of BS.1770: a clip below it counts as silence.
LOUDNESS_FLOOR = -70.0
LOUDNESS_FORMS = "none, {rms: -23} or {lufs: -23}"
# The least share of a CPU or GPU that Ray can reserve.
LEAST_SHARE = 0.0001
# Names of the rows that every evaluation adds to a config's own corpora.
RESERVED_NAMES = (
    "real", "noise", "silence", "shuffled_labels", "one_clip_per_class", "training_copy",
    "real_halves",
)  # fmt: skip


def digest(value: object) -> str:
    """Eight hex digits of a JSON-like value, the same in every process and on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Section(BaseModel):
    """One section of the YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _without_secrets(uri: str) -> str:
    """Refuses a URI that holds what only the environment should: configs are kept and shown."""
    scheme, separator, rest = uri.partition("://")
    if separator and ("@" in rest.partition("/")[0] or "?" in rest):
        raise PydanticCustomError(
            SECRET,
            "write it as {scheme}://bucket/folder: keys, secrets and endpoints come from the "
            "environment, as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
            {"scheme": scheme},
        )
    return uri


def _no_other_type(value: object) -> object:
    """Refuses what pydantic would convert: `true` is no 1, and a quoted number is a text."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _fold_name(value: object) -> object:
    """Folds are names: `1` in a YAML and `"1"` in a CSV are the same fold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _whole_number(value: object) -> object:
    """Refuses whole numbers that numpy, Arrow and Ray can't hold everywhere."""
    if isinstance(value, int | float) and value >= 2**31:
        raise PydanticCustomError("int_size", "Input should be less than 2147483648")
    return _no_other_type(value)


Number = Annotated[float, BeforeValidator(_no_other_type)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(_no_other_type)]
NonNegativeFloat = Annotated[float, Field(ge=0), BeforeValidator(_no_other_type)]
Integer = Annotated[int, BeforeValidator(_whole_number)]
PositiveInt = Annotated[int, Field(gt=0), BeforeValidator(_whole_number)]
NonNegativeInt = Annotated[int, Field(ge=0), BeforeValidator(_whole_number)]
# What numpy and torch take for a seed.
Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(_no_other_type)]
# Of an exponential mean, as Adam's and momentum's.
Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(_no_other_type)]
# A signal-to-noise ratio in dB: beyond, one of the two is lost in float32.
Decibels = Annotated[float, Field(ge=-200, le=200), BeforeValidator(_no_other_type)]
# dBFS or LUFS.
Level = Annotated[float, Field(ge=LOUDNESS_FLOOR, le=0), BeforeValidator(_no_other_type)]
# A path or URI of a file or folder.
PathOrUri = Annotated[str, StringConstraints(min_length=1), AfterValidator(_without_secrets)]
Fold = Annotated[str, BeforeValidator(_fold_name)]
CorpusName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]


class SplitSettings(Section):
    """Which real clips train, which choose the checkpoint, which test the classifier."""

    test_folds: tuple[Fold, ...] = ()
    """Folds that test the classifier."""
    validation_folds: tuple[Fold, ...] = ()
    """Folds that choose the epoch."""
    test_fraction: Number = Field(0.15, ge=0, lt=1)
    """Share of each class that tests, without test_folds."""
    validation_fraction: Number = Field(0.15, ge=0, lt=1)
    """Share of each class that validates, without validation_folds."""
    seed: Seed = 0
    """Of the clips that are drawn."""

    @model_validator(mode="after")
    def _folds_differ(self) -> SplitSettings:
        both = sorted({*self.test_folds} & {*self.validation_folds})
        if both:
            raise ValueError(f"fold {', '.join(both)} can't be both test and validation")
        # Folds that are named take the place of a share.
        drawn = 0.0 if self.test_folds else self.test_fraction
        drawn += 0.0 if self.validation_folds else self.validation_fraction
        if drawn >= 1:
            raise ValueError(
                f"test_fraction {self.test_fraction:g} and validation_fraction "
                f"{self.validation_fraction:g} must add up to less than 1: the rest trains"
            )
        return self


class RealCorpus(Section):
    """The labelled recordings that the classifier learns from."""

    path: PathOrUri
    """Folder, table or files of the real recordings; a path or URI."""
    split: SplitSettings = SplitSettings()

    @model_validator(mode="before")
    @classmethod
    def _a_path_alone_will_do(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class CorporaSettings(Section):
    """One real corpus, any number of generated ones by name.

    `real` is left out where `evaluation.reference` stands for it.
    """

    real: RealCorpus | None = None
    generated: dict[CorpusName, PathOrUri] = {}
    """Path or URI of each generated corpus, by name."""

    @model_validator(mode="after")
    def _names_are_free(self) -> CorporaSettings:
        taken = [name for name in self.generated if name in RESERVED_NAMES]
        if taken:
            raise ValueError(
                f"the name '{taken[0]}' in generated is reserved, like "
                f"{', '.join(name for name in RESERVED_NAMES if name != taken[0])}: the report has "
                "a row of that name; rename the corpus"
            )
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """All corpora, `real` first where there is one."""
        return (*(("real",) if self.real else ()), *self.generated)


class Loudness(Section):
    """The loudness that every clip is brought to before its log-mel: one of the two.

    `rms` is the root mean square of the whole mono clip in dBFS, 20 log10 of it, of which a
    full-scale sine has -3.01. `lufs` is its integrated loudness by ITU-R BS.1770-4: K-weighted,
    without pauses.
    """

    rms: Level | None = None
    """Root mean square of every clip, dBFS."""
    lufs: Level | None = None
    """Integrated loudness of every clip by ITU-R BS.1770-4, LUFS."""

    @model_validator(mode="after")
    def _is_one(self) -> Loudness:
        if (self.rms is None) == (self.lufs is None):
            given = "neither rms nor lufs" if self.rms is None else "rms and lufs"
            raise ValueError(f"write {LOUDNESS_FORMS} (got {given})")
        return self

    @property
    def level(self) -> float:
        """DBFS or LUFS."""
        level = self.rms if self.lufs is None else self.lufs
        assert level is not None
        return level

    @model_serializer(mode="wrap")
    def _only_what_is_set(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class FeatureSettings(Section):
    """From waveform to log-mel. Lengths in seconds or samples, frequencies in Hz.

    `f_max` is half the sample rate where it is left out or null. With `loudness` every clip gets
    one gain before it is cut into windows; one below -70 dBFS or LUFS keeps its level, and what
    exceeds full scale is not clipped.
    """

    clip_length: PositiveFloat = 5.0
    """Seconds of a window; shorter clips are padded with zeros."""
    sample_rate: PositiveInt = 44100
    """Hz; every clip is resampled to it."""
    hop_length: PositiveInt = 441
    """Samples between two frames."""
    n_fft: Integer = Field(1024, ge=2)
    """Samples of a Fourier transform."""
    n_mels: PositiveInt = 64
    """Mel bands."""
    f_min: NonNegativeFloat = 0.0
    """Lowest frequency of the mel bands, Hz."""
    # Without a sample rate there is another fault to report.
    f_max: PositiveFloat = Field(default_factory=lambda known: known.get("sample_rate", 2) / 2)
    """Highest frequency of the mel bands, Hz; half the sample rate by default."""
    long_clips: Literal["split", "center", "start"] = "split"
    """Windows of a longer clip: all, the one in the center, or the first."""
    dtype: Literal["float32", "float16"] = "float32"
    """Of the stored log-mels."""
    loudness: Loudness | None = None

    @field_validator("loudness", mode="before")
    @classmethod
    def _none_is_a_word(cls, value: Any) -> Any:
        if value == "none":
            return None
        if not isinstance(value, dict | Loudness | None):
            raise ValueError(f"write {LOUDNESS_FORMS}")
        return value

    @model_serializer(mode="wrap")
    def _without_no_loudness(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leaves `loudness` out where it is none: features made before it keep their ids."""
        tree: dict[str, Any] = serialize(self)
        if self.loudness is None:
            tree.pop("loudness", None)
        return tree

    @model_validator(mode="before")
    @classmethod
    def _null_is_half_the_rate(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("f_max", 0) is None:
            return {key: value[key] for key in value if key != "f_max"}
        return value

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
        if self.clip_samples > LARGEST_CLIP:
            raise ValueError(
                f"clip_length {self.clip_length:g} s is {self.clip_samples} samples at "
                f"{self.sample_rate} Hz: more than the {LARGEST_CLIP} that a clip may have"
            )
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"hop_length {self.hop_length} exceeds n_fft {self.n_fft}: samples between two "
                "frames would be in neither"
            )
        # A Fourier bin lies inside two mel bands at the most.
        if self.n_mels > 2 * self.bins_inside:
            raise ValueError(
                f"n_mels {self.n_mels} is too many for the {self.bins_inside} Fourier bins between "
                f"f_min {self.f_min:.10g} Hz and f_max {self.f_max:.10g} Hz at n_fft {self.n_fft}, "
                f"of which each is in two bands at most: lower n_mels or raise n_fft"
            )
        if self.n_mels * self.n_frames > LARGEST_CLIP:
            raise ValueError(
                f"n_mels {self.n_mels} × {self.n_frames} frames are more than the {LARGEST_CLIP} "
                "values that a log-mel may have: shorten clip_length or raise hop_length"
            )
        lufs = self.loudness is not None and self.loudness.lufs is not None
        if lufs and self.sample_rate < LEAST_LUFS_RATE:
            raise ValueError(
                f"loudness.lufs wants a sample_rate of {LEAST_LUFS_RATE} Hz or more (got "
                f"{self.sample_rate}): its K-weighting reaches that far; use loudness.rms"
            )
        return self

    @property
    def bins_inside(self) -> int:
        """Fourier bins above `f_min` and below `f_max`."""
        width = self.sample_rate / self.n_fft
        return max(0, math.ceil(self.f_max / width) - 1 - math.floor(self.f_min / width))

    @property
    def clip_samples(self) -> int:
        """Samples in one clip of `clip_length`."""
        return round(self.clip_length * self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames in one log-mel: centred frames, so one more than whole hops."""
        return 1 + (self.clip_samples - self.n_fft % 2) // self.hop_length

    def frames_of(self, seconds: float) -> int:
        """Frames of a piece of a log-mel that lasts so long, at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop_length))

    @property
    def id(self) -> str:
        """Eight hex digits that stand for these settings and the version of the arithmetic."""
        return digest({"version": FEATURE_VERSION, **self.model_dump()})


class ModelSettings(Section):
    """Which classifier is the classifier, and the weights that its training starts from.

    `weights` is a safetensors file, or a PyTorch state dict; what fits by name and shape is loaded.
    """

    name: Literal["cnn", "alexnet", "vggish", "resnetish18", "resnetish34", "resnetish50"] = (
        "resnetish18"
    )
    """Architecture of the classifier."""
    weights: PathOrUri | None = None
    """Weights to start from: a safetensors file or a PyTorch state dict."""


class Adam(Section):
    """torch.optim.Adam."""

    name: Literal["Adam"] = "Adam"
    lr: PositiveFloat = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.0


class AdamW(Section):
    """torch.optim.AdamW."""

    name: Literal["AdamW"] = "AdamW"
    lr: PositiveFloat = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: NonNegativeFloat = 0.01


class SGD(Section):
    """torch.optim.SGD."""

    name: Literal["SGD"] = "SGD"
    lr: PositiveFloat = 1e-2
    momentum: Decay = 0.9
    weight_decay: NonNegativeFloat = 0.0
    nesterov: StrictBool = False

    @model_validator(mode="after")
    def _nesterov_has_momentum(self) -> SGD:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov: true wants a momentum above 0 (got 0)")
        return self


class StepLR(Section):
    """torch.optim.lr_scheduler.StepLR, stepped once an epoch."""

    name: Literal["StepLR"]
    step_size: PositiveInt
    gamma: PositiveFloat = 0.1


class MultiStepLR(Section):
    """torch.optim.lr_scheduler.MultiStepLR, stepped once an epoch."""

    name: Literal["MultiStepLR"]
    milestones: tuple[PositiveInt, ...] = Field(min_length=1)
    gamma: PositiveFloat = 0.1

    @model_validator(mode="after")
    def _milestones_rise(self) -> MultiStepLR:
        if list(self.milestones) != sorted(set(self.milestones)):
            raise ValueError(f"milestones {list(self.milestones)} must rise from one to the next")
        return self


class ExponentialLR(Section):
    """torch.optim.lr_scheduler.ExponentialLR, stepped once an epoch."""

    name: Literal["ExponentialLR"]
    gamma: PositiveFloat


class CosineAnnealingLR(Section):
    """torch.optim.lr_scheduler.CosineAnnealingLR, stepped once an epoch; T_max is all epochs."""

    name: Literal["CosineAnnealingLR"]
    eta_min: NonNegativeFloat = 0.0


class OneCycleLR(Section):
    """torch.optim.lr_scheduler.OneCycleLR over all epochs, stepped once an epoch; `lr` its peak."""

    name: Literal["OneCycleLR"]
    pct_start: Number = Field(0.3, gt=0, lt=1)
    div_factor: Number = Field(25.0, ge=1)
    final_div_factor: Number = Field(1e4, ge=1)


class ReduceLROnPlateau(Section):
    """torch.optim.lr_scheduler.ReduceLROnPlateau.

    It watches what its mode belongs to: `min` the validation loss, `max` the validation accuracy.
    """

    name: Literal["ReduceLROnPlateau"]
    mode: Literal["min", "max"] = "min"
    factor: Number = Field(0.1, gt=0, lt=1)
    patience: NonNegativeInt = 10
    min_lr: NonNegativeFloat = 0.0


Optimizer = Annotated[Adam | AdamW | SGD, Field(discriminator="name")]
Scheduler = Annotated[
    StepLR | MultiStepLR | ExponentialLR | CosineAnnealingLR | OneCycleLR | ReduceLROnPlateau,
    Field(discriminator="name"),
]


def _adam_if_unnamed(value: object) -> object:
    return {"name": "Adam", **value} if isinstance(value, dict) else value


class AugmentSettings(Section):
    """What training does to a batch, drawn anew for every clip; as it stands here, nothing.

    `roll` turns clips round in time, `gain_db` is the largest change of level, `mixup` the alpha of
    the blending; of SpecAugment's masks the number, and the widest as a share of bands or frames.
    """

    roll: StrictBool = False
    """Rolls clips in time by a random amount."""
    # Log-mels span about 100 dB.
    gain_db: Number = Field(0.0, ge=0, le=100)
    """Largest random change of level, dB."""
    mixup: Number = Field(0.0, ge=0, le=100)
    """Alpha of mixup's Beta distribution; 0 is off."""
    frequency_masks: Integer = Field(0, ge=0, le=100)
    """SpecAugment masks over bands, per clip."""
    max_frequency_mask: Number = Field(0.15, gt=0, lt=1)
    """Largest width of a frequency mask, as a share of the bands."""
    time_masks: Integer = Field(0, ge=0, le=100)
    """SpecAugment masks over frames, per clip."""
    max_time_mask: Number = Field(0.15, gt=0, lt=1)
    """Largest width of a time mask, as a share of the frames."""

    @field_validator("mixup")
    @classmethod
    def _mixup_can_be_drawn(cls, value: float) -> float:
        if 0 < value < 0.001:
            # So small an alpha underflows, and each draw would be an even blend.
            raise ValueError("write 0 for no mixup, else 0.001 or more")
        return value


class FinetuneSettings(Section):
    """Epochs after all others, at a fixed rate and without mixup."""

    epochs: NonNegativeInt = 0
    """Epochs after all others, without mixup."""
    lr: PositiveFloat = 1e-4
    """Their learning rate."""


class TrainingSettings(Section):
    """How the classifier learns.

    `batch_size` is the global batch size, over all workers. `warmup_epochs` come before the
    schedule. `early_stopping` ends the epochs before fine-tuning after so many without a better
    one. `checkpoint_policy` selects the epoch whose weights are the classifier's: that of the best
    validation accuracy, or the last. `ema_decay` replaces the weights by their exponential moving
    average. `folds: all` trains a classifier per fold, and `seeds` that many of each.
    """

    epochs: PositiveInt = 50
    """Passes over the training clips."""
    batch_size: PositiveInt = 32
    """Clips of one optimizer step, over all workers."""
    gradient_accumulation_steps: PositiveInt = 1
    """Gradient accumulation steps of a batch."""
    optimizer: Annotated[Optimizer, BeforeValidator(_adam_if_unnamed)] = Adam()
    """{name: Adam, lr: 0.001, …}, AdamW or SGD."""
    scheduler: Scheduler | None = None
    """torch learning-rate scheduler by name, with its options; stepped once an epoch."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs in which the learning rate rises, before the scheduler."""
    finetune: FinetuneSettings = FinetuneSettings()
    early_stopping: PositiveInt | None = None
    """Epochs without a better one after which training ends."""
    checkpoint_policy: Literal["best", "last"] = "best"
    """Epoch whose weights are kept: best validation accuracy, or the last."""
    ema_decay: Number | None = Field(None, gt=0, lt=1)
    """Decay of the exponential moving average of the weights, which is kept."""
    max_grad_norm: PositiveFloat | None = None
    """Largest norm of the gradient."""
    label_smoothing: Number = Field(0.0, ge=0, lt=1)
    """Of the cross-entropy loss."""
    class_balance: Literal["none", "weights", "sampling"] = "none"
    """Classes of unequal size: weights in the loss, or sampling."""
    augment: AugmentSettings = AugmentSettings()
    crop_length: PositiveFloat | None = None
    """Seconds of a random crop of each clip."""
    shuffle_buffer: PositiveInt = 4096
    """Clips in the shuffle buffer, where features are streamed."""
    seed: Seed = 0
    """Of weights, order and augmentation."""
    seeds: PositiveInt = 1
    """Number of trainings, with seeds from seed on."""
    folds: Literal["all"] | None = None
    """all trains a classifier for each fold."""

    @model_validator(mode="after")
    def _fits_together(self) -> TrainingSettings:
        if self.warmup_epochs >= self.epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be less than epochs {self.epochs}: the "
                "learning rate would never reach optimizer.lr"
            )
        if self.seed + self.seeds > 2**32:
            raise ValueError(f"seed {self.seed} and seeds {self.seeds} go beyond 2**32")
        if self.scheduler is not None:
            self._check_scheduler(self.scheduler)
        return self

    def _check_scheduler(self, scheduler: Scheduler) -> None:
        """Raises ValueError for a scheduler that contradicts the other settings."""
        if isinstance(scheduler, OneCycleLR) and self.warmup_epochs:
            raise ValueError(
                f"warmup_epochs {self.warmup_epochs} must be 0 with OneCycleLR, which has a "
                "warm-up of its own: set scheduler.pct_start"
            )
        if isinstance(scheduler, CosineAnnealingLR) and scheduler.eta_min >= self.optimizer.lr:
            raise ValueError(
                f"scheduler.eta_min {scheduler.eta_min:g} must be less than optimizer.lr "
                f"{self.optimizer.lr:g}"
            )

    @property
    def unreached_step(self) -> str | None:
        """A note on a step of the learning rate for which the epochs are too few, or None.

        It is no error: a trial run of a few epochs may keep the schedule of the long one.
        """
        name, last = "", 0
        if isinstance(self.scheduler, StepLR):
            name, last = "step_size", self.scheduler.step_size
        elif isinstance(self.scheduler, MultiStepLR):
            name, last = "milestones", self.scheduler.milestones[-1]
        epochs = self.epochs - self.warmup_epochs
        if last < epochs:
            return None
        after = f" after {self.warmup_epochs} of warm-up" if self.warmup_epochs else ""
        return (
            f"training.scheduler.{name} {last} is not reached in {counted(epochs, 'epoch')}{after}"
        )

    @property
    def trains_several(self) -> bool:
        """True where a classifier is trained for each fold or seed."""
        return self.folds is not None or self.seeds > 1

    @property
    def needs_validation(self) -> bool:
        """True where validation clips choose something: an epoch, a rate, or when to stop."""
        plateau = isinstance(self.scheduler, ReduceLROnPlateau)
        return self.checkpoint_policy == "best" or plateau or self.early_stopping is not None


class Dimension(Section):
    """What a searched setting may be: one of some values, or a number between two.

    `loguniform` draws its logarithm evenly; `integer` draws whole numbers, both ends included.
    """

    choice: tuple[Any, ...] | None = Field(None, min_length=1)
    uniform: tuple[Number, Number] | None = None
    loguniform: tuple[PositiveFloat, PositiveFloat] | None = None
    integer: tuple[Integer, Integer] | None = None

    @model_validator(mode="after")
    def _is_one_of_them(self) -> Dimension:
        named = [kind for kind in type(self).model_fields if getattr(self, kind) is not None]
        if len(named) != 1:
            raise ValueError(
                "write one of {choice: [a, b, …]}, {uniform: [low, high]}, "
                "{loguniform: [low, high]}, {integer: [low, high]}"
            )
        if self.choice is None and not self.values[0] < self.values[-1]:
            raise ValueError(f"{named[0]} {list(self.values)} does not begin with the lower number")
        return self

    @property
    def values(self) -> tuple[Any, ...]:
        """The choices, or both ends."""
        found = self.choice or self.uniform or self.loguniform or self.integer
        return found or ()

    @property
    def samples(self) -> tuple[Any, ...]:
        """Every choice; of a range both ends and, where it has any, a number that is not whole."""
        if self.choice is not None or self.integer is not None:
            return self.values
        low, high = self.values
        return low, low + (high - low) / math.pi, high


class ASHAScheduler(Section):
    """ray.tune.schedulers.ASHAScheduler.

    After `grace_period` epochs, and each `reduction_factor` times as many, a trial goes on if it is
    among the best 1 / `reduction_factor` that came so far.
    """

    name: Literal["ASHAScheduler"]
    grace_period: PositiveInt = 1
    reduction_factor: Integer = Field(4, ge=2)


class HyperBandScheduler(Section):
    """ray.tune.schedulers.HyperBandScheduler: thins a group out once all in it have come so far."""

    name: Literal["HyperBandScheduler"]
    reduction_factor: Integer = Field(3, ge=2)


class MedianStoppingRule(Section):
    """ray.tune.schedulers.MedianStoppingRule: stops what is worse than the others' median."""

    name: Literal["MedianStoppingRule"]
    grace_period: PositiveInt = 1
    min_samples_required: PositiveInt = 3


class PopulationBasedTraining(Section):
    """ray.tune.schedulers.PopulationBasedTraining.

    Every so many epochs the worst quarter goes on with the weights of one of the best quarter, and
    settings near its own.
    """

    name: Literal["PopulationBasedTraining"]
    perturbation_interval: PositiveInt = 5


TrialScheduler = Annotated[
    ASHAScheduler | HyperBandScheduler | MedianStoppingRule | PopulationBasedTraining,
    Field(discriminator="name"),
]


class SearchSettings(Section):
    """Which settings are tried, how they are drawn, and who may train on.

    `space` names settings by their path. `trials` are drawn at `random`, by Optuna's `tpe`, or
    `grid` crosses all choices. Without a `scheduler` each trains to its end. `gpus_per_trial` may
    be a fraction: then trials share a GPU.
    """

    space: dict[str, Dimension] = {}
    """Settings to search: {training.optimizer.lr: {loguniform: [0.0001, 0.01]}, …}."""
    algorithm: Literal["random", "grid", "tpe"] = "random"
    """random, grid over all choices, or Optuna's tpe."""
    trials: PositiveInt = 16
    """Number of trials; a grid has its own."""
    scheduler: TrialScheduler | None = None
    """Trial scheduler of Ray Tune by name, with its options; none trains all to the end."""
    time_budget_hours: PositiveFloat | None = None
    """Time limit of the search."""
    max_concurrent_trials: PositiveInt | None = None
    """Trials at a time; as many as fit by default."""
    gpus_per_trial: Number | None = Field(None, ge=LEAST_SHARE)
    """GPUs of a trial, or a share of one."""
    seed: Seed = 0
    """Of the values that are drawn."""

    @field_validator("gpus_per_trial")
    @classmethod
    def _is_a_share_or_whole(cls, value: float | None) -> float | None:
        if value is not None and value > 1 and value % 1:
            raise ValueError("write a share of one GPU, up to 1, or a whole number of GPUs")
        return value


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


class ComputeSettings(Section):
    """What of the machine or cluster is used; no result depends on it, but for float rounding.

    `workers: [2, 8]` trains with as many as the cluster has room for, while it grows and shrinks.
    `auto` is what helps: bfloat16 and channels_last where the GPU or the CPU computes bfloat16
    itself, float32 elsewhere; on a GPU also pinned memory, two batches prefetched, and batch norm
    over all workers' clips.

    A cluster that grows by itself is given `node_timeout_minutes` minutes to bring the nodes that a
    training wants; 0 wants them there. Training workers run on nodes with the `labels`, close
    together (PACK) or apart (SPREAD); tasks run wherever a CPU is free.
    """

    workers: PositiveInt | tuple[PositiveInt, PositiveInt] = 1
    """Training workers, or the least and the most: [2, 8]."""
    use_gpu: Literal[True, False, "auto"] = "auto"
    """Whether workers get a GPU each."""
    cpus_per_worker: Number | None = Field(None, ge=LEAST_SHARE)
    """CPUs of a training worker."""
    num_cpus: PositiveInt | None = None
    """CPUs of the Ray that is started on this machine; all by default."""
    node_timeout_minutes: NonNegativeFloat = 0
    """Minutes to wait for nodes of a cluster that grows."""
    labels: dict[str, str] = {}
    """Ray labels of the nodes that train."""
    placement: Literal["PACK", "SPREAD", "STRICT_PACK", "STRICT_SPREAD"] = "PACK"
    """Ray's placement strategy of the workers."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of training and scoring; auto takes bfloat16 where the device computes it natively."""
    channels_last: Literal[True, False, "auto"] = "auto"
    """Memory format of convolutions."""
    compile: StrictBool = False
    """Uses torch.compile."""
    tf32: StrictBool = True
    """Allows TensorFloat-32 on GPUs."""
    pin_memory: Literal[True, False, "auto"] = "auto"
    """Copies batches to the GPU from pinned memory."""
    prefetch_batches: NonNegativeInt | Literal["auto"] = "auto"
    """Batches prepared ahead."""
    sync_batch_norm: Literal[True, False, "auto"] = "auto"
    """Batch norm over the clips of all workers."""
    shard_clips: PositiveInt | Literal["auto"] = "auto"
    """Clips of a shard."""

    @field_validator("workers", mode="wrap")
    @classmethod
    def _is_a_number_or_a_range(
        cls, value: Any, validated: ValidatorFunctionWrapHandler
    ) -> int | tuple[int, int]:
        try:
            workers: int | tuple[int, int] = validated(value)
        except ValidationError:
            # One line for both of the types that it may have.
            raise ValueError("write a number from 1, or the least and the most, [2, 8]") from None
        if isinstance(workers, tuple) and workers[0] > workers[1]:
            raise ValueError(f"[{workers[0]}, {workers[1]}] begins with the larger number")
        return workers

    @property
    def workers_range(self) -> tuple[int, int]:
        """The least and the most workers."""
        return self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)


class FormulaSettings(Section):
    """Corpora made by formula: one real and three generated ones, a folder each below `output`."""

    output: PathOrUri
    """Folder of the corpora."""
    clips_per_class: PositiveInt = 40
    """Real clips of each class."""
    generated_clips_per_class: PositiveInt = 20
    """Clips of each class and generated corpus."""
    # Shorter or at a lower rate the formulas have no room: see raysound.synthesis.formula.
    seconds: Number = Field(1.0, ge=0.05)
    """Length of a clip."""
    sample_rate: Integer = Field(16000, ge=8000)
    """Hz."""
    seed: Seed = 0
    """Of all draws."""


class LadderSettings(Section):
    """Ever worse corpora made of real test clips, a folder each below `output`.

    `mel-N` went through N mel bands and back by Griffin-Lim; `noise-NdB` has white noise added,
    N dB below the clip.
    """

    output: PathOrUri
    """Folder of the corpora."""
    n_mels: tuple[PositiveInt, ...] = (128, 64, 32, 16, 8)
    """Mel bands of the Griffin-Lim round trips."""
    snr_db: tuple[Decibels, ...] = (40, 30, 20, 10, 0)
    """Signal-to-noise ratios of the noisy corpora, dB."""
    iterations: PositiveInt = 32
    """Of Griffin-Lim."""

    @model_validator(mode="after")
    def _has_different_rungs(self) -> LadderSettings:
        for name in ("n_mels", "snr_db"):
            rungs = getattr(self, name)
            if len(set(rungs)) < len(rungs):
                raise ValueError(f"{name} {list(rungs)} names a value twice")
        if not self.n_mels and not self.snr_db:
            raise ValueError("n_mels [] and snr_db [] leave no corpus to make")
        return self


class GriffinLimSettings(Section):
    """A generated corpus made of real test clips, by log-mel and back."""

    output: PathOrUri
    """Folder of the corpus."""
    iterations: PositiveInt = 32
    """Of Griffin-Lim."""


class SynthesisSettings(Section):
    """Corpora that raysound makes itself."""

    formula: FormulaSettings | None = None
    griffin_lim: GriffinLimSettings | None = None
    ladder: LadderSettings | None = None


class Config(Section):
    """One experiment: everything that a job reads."""

    name: CorpusName
    """Of the experiment."""
    output: PathOrUri
    """Folder of all results; a path or URI."""
    corpora: CorporaSettings
    features: FeatureSettings = FeatureSettings()
    model: ModelSettings = ModelSettings()
    training: TrainingSettings = TrainingSettings()
    search: SearchSettings = SearchSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    compute: ComputeSettings = ComputeSettings()
    synthesis: SynthesisSettings = SynthesisSettings()

    @model_validator(mode="after")
    def _batches_split_evenly(self) -> Config:
        # A range may hold numbers that don't divide it: then the last clips of a batch wait.
        for workers in self.compute.workers_range:
            if self.training.batch_size % workers:
                raise ValueError(
                    f"training.batch_size {self.training.batch_size} can't be split evenly over "
                    f"compute.workers {workers}"
                )
        return self

    @model_validator(mode="after")
    def _real_clips_or_a_reference(self) -> Config:
        if self.evaluation.reference is None:
            if self.corpora.real is None:
                raise ValueError(
                    "'corpora.real' is missing: name the real recordings, or name a file of "
                    "jobs/reference.py as evaluation.reference"
                )
            return self
        if self.corpora.real is not None:
            raise ValueError(
                "evaluation.reference stands for the real recordings: leave out corpora.real, or it"
            )
        if self.evaluation.checkpoint is None:
            raise ValueError(
                "evaluation.reference wants evaluation.checkpoint, the folder of its classifier"
            )
        if not self.corpora.generated:
            raise ValueError("evaluation.reference wants corpora.generated, which it evaluates")
        if self.evaluation.copies is not None:
            raise ValueError(
                "evaluation.copies compares with the real recordings, which evaluation.reference "
                "does not hold: leave one of them out"
            )
        return self

    @model_validator(mode="after")
    def _sections_fit_together(self) -> Config:
        training = self.training
        share = training.batch_size // self.compute.workers_range[1]
        if training.gradient_accumulation_steps > share:
            raise ValueError(
                "training.gradient_accumulation_steps "
                f"{training.gradient_accumulation_steps} is more than the {share} clips that each "
                "worker has of a training.batch_size"
            )
        crop, clip = training.crop_length, self.features.clip_length
        if crop is not None and crop > clip:
            raise ValueError(
                f"training.crop_length {crop:g} s is longer than features.clip_length {clip:g} s"
            )
        scheduler = self.search.scheduler
        workers = self.compute.workers_range[1]
        if workers > 1 and isinstance(scheduler, HyperBandScheduler | PopulationBasedTraining):
            raise ValueError(
                f"search.scheduler {scheduler.name} pauses trials and copies their weights, which "
                "Ray Tune can't do with trials of several workers: use ASHAScheduler, or "
                "compute.workers 1"
            )
        return self

    def to_yaml(self) -> str:
        """The whole config, defaults filled in, as YAML that `load` takes."""
        hidden = set() if self.search.space else {"search"}
        tree = self.model_dump(mode="json", exclude=hidden)
        tree["features"].setdefault("loudness", "none")
        return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)
