"""The section `synthesis`: corpora that raysound makes itself."""

from __future__ import annotations

from pydantic import Field, model_validator

from raysound.settings.fields import (
    Decibels,
    Integer,
    Number,
    PathOrUri,
    PositiveInt,
    Section,
    Seed,
)


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
