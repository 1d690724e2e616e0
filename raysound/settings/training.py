"""The sections `model` and `training`: the classifier and its training recipe."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, StrictBool, field_validator, model_validator

from raysound.settings.fields import (
    Integer,
    NonNegativeInt,
    Number,
    PathOrUri,
    PositiveFloat,
    PositiveInt,
    Section,
    Seed,
)
from raysound.settings.optimizers import (
    Adam,
    OneCycleLR,
    Optimizer,
    ReduceLROnPlateau,
    Scheduler,
    adam_if_unnamed,
)
from raysound.wording import counted


class ModelSettings(Section):
    """The architecture of the classifier and its initial weights.

    `weights` is a safetensors file or a PyTorch state dict; tensors that match by name and shape
    are loaded.
    """

    name: Literal[
        "cnn", "cnn6", "cnn10", "alexnet", "vggish", "resnetish18", "resnetish34", "resnetish50"
    ] = "resnetish18"
    """Architecture of the classifier."""
    weights: PathOrUri | None = None
    """Weights to start from: a safetensors file or a PyTorch state dict."""


class AugmentSettings(Section):
    """Random changes of training clips, sampled for each clip and epoch; none by default.

    The order is crop (with `padding` and `time_stretch`), `roll`, `between_class`, `gain_db`,
    normalisation, `mixup`, and the masks of SpecAugment.
    """

    roll: StrictBool = False
    """Rolls clips in time by a random amount."""
    # Log-mels span about 100 dB.
    gain_db: Number = Field(0.0, ge=0, le=100)
    """Largest random change of level, dB."""
    time_stretch: Number = Field(0.0, ge=0, le=1)
    """Largest random change of duration, as a share; 0.25 is from 1 / 1.25 to 1.25."""
    padding: Number = Field(0.0, ge=0, le=1)
    """Silence on both sides of a clip before cropping, as a share of the width of the crop."""
    mixup: Number = Field(0.0, ge=0, le=100)
    """Alpha of mixup's Beta distribution; 0 is off."""
    between_class: StrictBool = False
    """Mixes the power of clips of different classes at equal loudness, instead of mixup."""
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
    """Epochs after all others, at a fixed learning rate and without mixing of clips."""

    epochs: NonNegativeInt = 0
    """Epochs after all others, without mixing of clips."""
    lr: PositiveFloat = 1e-4
    """Their learning rate."""


class TrainingSettings(Section):
    """Settings of the training.

    `batch_size` is the global batch size, over all workers. `warmup_epochs` come before the
    schedule. `early_stopping` ends the epochs before fine-tuning after this number of epochs
    without improvement. `checkpoint_policy` selects the epoch whose weights are kept: that of the
    best validation accuracy, or the last. `ema_decay` replaces the weights by their exponential
    moving average. `folds: all` trains a classifier per fold; `seeds` is the number of classifiers
    of each.
    """

    epochs: PositiveInt = 50
    """Passes over the training clips."""
    batch_size: PositiveInt = 32
    """Clips of one optimizer step, over all workers."""
    gradient_accumulation_steps: PositiveInt = 1
    """Gradient accumulation steps of a batch."""
    optimizer: Annotated[Optimizer, BeforeValidator(adam_if_unnamed)] = Adam()
    """{name: Adam, lr: 0.001, …}, AdamW or SGD."""
    scheduler: Scheduler | None = None
    """torch learning-rate scheduler by name, with its options; stepped once an epoch."""
    warmup_epochs: NonNegativeInt = 0
    """Epochs in which the learning rate rises, before the scheduler."""
    finetune: FinetuneSettings = FinetuneSettings()
    early_stopping: PositiveInt | None = None
    """Epochs without improvement after which training ends."""
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
    test_crops: PositiveInt | None = None
    """Crops of crop_length over which a prediction is averaged; null for the full clip."""
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
        if self.test_crops is not None and self.crop_length is None:
            raise ValueError(f"test_crops {self.test_crops} requires crop_length")
        if self.augment.between_class and self.augment.mixup:
            raise ValueError("augment.between_class replaces augment.mixup: set mixup to 0")
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
        eta_min = getattr(scheduler, "eta_min", 0.0)
        if eta_min >= self.optimizer.lr:
            raise ValueError(
                f"scheduler.eta_min {eta_min:g} must be less than optimizer.lr "
                f"{self.optimizer.lr:g}"
            )

    @property
    def unreached_step(self) -> str | None:
        """A note on a step of the learning rate for which the epochs are too few, or None.

        It is no error: a trial run of a few epochs may keep the schedule of the long one.
        """
        name, last = "", 0
        for option in ("step_size", "milestones", "T_0"):
            value = getattr(self.scheduler, option, None)
            if value is not None:
                name, last = option, value[-1] if isinstance(value, tuple) else value
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
