"""The section `features`: all settings that log-mels depend on."""

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

# Incremented when log-mels of the same settings change; older folders are then not used.
FEATURE_VERSION = 1
# Maximum number of samples of a clip, and of values of a log-mel: 1 GiB of float32.
MAX_CLIP_VALUES = 2**28
# Hz. The shelf of the K-weighting of BS.1770, at 1682 Hz, must be below half the rate.
MIN_LUFS_RATE = 4000
# dBFS or LUFS. The absolute threshold of BS.1770, below which a clip counts as silent.
LOUDNESS_FLOOR = -70.0
LOUDNESS_FORMS = "none, {rms: -23} or {lufs: -23}"
# dBFS or LUFS.
Level = Annotated[float, Field(ge=LOUDNESS_FLOOR, le=0), BeforeValidator(strict_number)]


class Loudness(Section):
    """The loudness to which every clip is normalised before its log-mel, as `rms` or `lufs`.

    `rms` is the root mean square of the mono clip in dBFS, 20 log10 of its value; that of a
    full-scale sine is -3.01. `lufs` is the integrated loudness by ITU-R BS.1770-4: K-weighted,
    without pauses.
    """

    rms: Level | None = None
    """Root mean square of every clip, dBFS."""
    lufs: Level | None = None
    """Integrated loudness of every clip by ITU-R BS.1770-4, LUFS."""

    @model_validator(mode="after")
    def _has_one_form(self) -> Loudness:
        if (self.rms is None) == (self.lufs is None):
            given = "neither rms nor lufs" if self.rms is None else "rms and lufs"
            raise ValueError(f"write {LOUDNESS_FORMS} (got {given})")
        return self

    @property
    def level(self) -> float:
        """The loudness in dBFS or LUFS."""
        level = self.rms if self.lufs is None else self.lufs
        assert level is not None
        return level

    @model_serializer(mode="wrap")
    def _omit_unset(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialize(self).items() if value is not None}


class FeatureSettings(Section):
    """Settings of log-mels. Lengths are in seconds or samples, frequencies in Hz.

    If `f_max` is left out or null, it is half the sample rate. With `loudness` every clip is
    multiplied by one gain before it is cut into windows. Clips below -70 dBFS or LUFS keep their
    level, and samples above full scale are not clipped.
    """

    clip_length: PositiveFloat = 5.0
    """Length of a window in seconds; shorter clips are padded with zeros."""
    sample_rate: PositiveInt = 44100
    """Sample rate to which every clip is resampled, Hz."""
    hop_length: PositiveInt = 441
    """Samples between frames."""
    n_fft: Integer = Field(1024, ge=2)
    """Size of the Fourier transform in samples."""
    n_mels: PositiveInt = 64
    """Number of mel bands."""
    f_min: NonNegativeFloat = 0.0
    """Lowest frequency of the mel bands, Hz."""
    # Without a valid sample rate, only the error of the sample rate is reported.
    f_max: PositiveFloat = Field(default_factory=lambda known: known.get("sample_rate", 2) / 2)
    """Highest frequency of the mel bands, Hz; half the sample rate by default."""
    long_clips: Literal["split", "center", "start"] = "split"
    """Windows of longer clips: all, the one in the center, or the first."""
    dtype: Literal["float32", "float16"] = "float32"
    """Type of the stored log-mels."""
    loudness: Loudness | None = None

    @field_validator("loudness", mode="before")
    @classmethod
    def _parse_none(cls, value: Any) -> Any:
        if value == "none":
            return None
        if not isinstance(value, dict | Loudness | None):
            raise ValueError(f"write {LOUDNESS_FORMS}")
        return value

    @model_serializer(mode="wrap")
    def _omit_default_loudness(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Omits `loudness` if it is none, so that features without this setting keep their ids."""
        tree: dict[str, Any] = serialize(self)
        if self.loudness is None:
            tree.pop("loudness", None)
        return tree

    @model_validator(mode="before")
    @classmethod
    def _null_is_the_default(cls, value: Any) -> Any:
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
        if self.clip_samples > MAX_CLIP_VALUES:
            raise ValueError(
                f"clip_length {self.clip_length:g} s is {self.clip_samples} samples at "
                f"{self.sample_rate} Hz: a clip may have at most {MAX_CLIP_VALUES}"
            )
        if self.hop_length > self.n_fft:
            raise ValueError(
                f"hop_length {self.hop_length} exceeds n_fft {self.n_fft}: samples between two "
                "frames would not be used"
            )
        # A Fourier bin is in at most two mel bands.
        if self.n_mels > 2 * self.bins_inside:
            raise ValueError(
                f"n_mels {self.n_mels} is too many for the {self.bins_inside} Fourier bins between "
                f"f_min {self.f_min:.10g} Hz and f_max {self.f_max:.10g} Hz at n_fft {self.n_fft}, "
                f"each of which is in at most two bands: lower n_mels or raise n_fft"
            )
        if self.n_mels * self.n_frames > MAX_CLIP_VALUES:
            raise ValueError(
                f"n_mels {self.n_mels} × {self.n_frames} frames exceed the maximum of "
                f"{MAX_CLIP_VALUES} values of a log-mel: shorten clip_length or raise hop_length"
            )
        lufs = self.loudness is not None and self.loudness.lufs is not None
        if lufs and self.sample_rate < MIN_LUFS_RATE:
            raise ValueError(
                f"loudness.lufs requires a sample_rate of {MIN_LUFS_RATE} Hz or more (got "
                f"{self.sample_rate}), because of its K-weighting; use loudness.rms"
            )
        return self

    @property
    def bins_inside(self) -> int:
        """Number of Fourier bins above `f_min` and below `f_max`."""
        width = self.sample_rate / self.n_fft
        return max(0, math.ceil(self.f_max / width) - 1 - math.floor(self.f_min / width))

    @property
    def clip_samples(self) -> int:
        """Samples of a window of `clip_length` seconds."""
        return round(self.clip_length * self.sample_rate)

    @property
    def n_frames(self) -> int:
        """Frames of a log-mel; they are centred, so there is one more than full hops."""
        return 1 + (self.clip_samples - self.n_fft % 2) // self.hop_length

    def frames_of(self, seconds: float) -> int:
        """The number of frames of a duration in seconds, at least one."""
        return max(1, round(seconds * self.sample_rate / self.hop_length))

    @property
    def id(self) -> str:
        """A digest of these settings and FEATURE_VERSION, eight hex digits."""
        return digest({"version": FEATURE_VERSION, **self.model_dump()})
