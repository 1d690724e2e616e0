"""The section `features`: everything that a log-mel depends on."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import (
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from raysound.settings.fields import (
    Integer,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    Section,
    digest,
    strict_number,
)

# Raise it when the same settings would give other log-mels: older folders are then left alone.
FEATURE_VERSION = 1
# The most values of one clip, as samples or as a log-mel: 1 GiB of float32.
LARGEST_CLIP = 2**28
# Hz. The K-weighting of BS.1770 has a shelf at 1682 Hz, which must lie below half the rate.
LEAST_LUFS_RATE = 4000
# dBFS or LUFS, the absolute threshold of BS.1770: a clip below it counts as silence.
LOUDNESS_FLOOR = -70.0
LOUDNESS_FORMS = "none, {rms: -23} or {lufs: -23}"
# dBFS or LUFS.
Level = Annotated[float, Field(ge=LOUDNESS_FLOOR, le=0), BeforeValidator(strict_number)]


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
