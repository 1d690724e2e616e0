"""The section `synthesis`: corpora that raysound synthesizes."""

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
    """Synthetic corpora: one real and three generated ones, with one folder each in `output`."""

    output: PathOrUri
    """Folder of the corpora."""
    clips_per_class: PositiveInt = 40
    """Real clips per class."""
    generated_clips_per_class: PositiveInt = 20
    """Clips per class and generated corpus."""
    # The formulas of raysound.synthesis.formula need this length and sample rate.
    seconds: Number = Field(1.0, ge=0.05)
    """Length of a clip in seconds."""
    sample_rate: Integer = Field(16000, ge=8000)
    """Sample rate of the clips, Hz."""
    seed: Seed = 0
    """Seed of all random numbers."""


class LadderSettings(Section):
    """Corpora of decreasing quality, made of real test clips, one folder each in `output`.

    `mel-N` are Griffin-Lim reconstructions from N mel bands. `noise-NdB` are clips with white
    noise N dB below the clip.
    """

    output: PathOrUri
    """Folder of the corpora."""
    n_mels: tuple[PositiveInt, ...] = (128, 64, 32, 16, 8)
    """Mel bands of the Griffin-Lim round trips."""
    snr_db: tuple[Decibels, ...] = (40, 30, 20, 10, 0)
    """Signal-to-noise ratios of the noisy corpora, dB."""
    iterations: PositiveInt = 32
    """Iterations of Griffin-Lim."""

    @model_validator(mode="after")
    def _values_differ(self) -> LadderSettings:
        for name in ("n_mels", "snr_db"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} {list(values)} has a value twice")
        if not self.n_mels and not self.snr_db:
            raise ValueError("n_mels [] and snr_db [] give no corpus")
        return self


class GriffinLimSettings(Section):
    """A generated corpus of real test clips, reconstructed from their log-mels."""

    output: PathOrUri
    """Folder of the corpus."""
    iterations: PositiveInt = 32
    """Iterations of Griffin-Lim."""


class SynthesisSettings(Section):
    """Corpora that raysound synthesizes."""

    formula: FormulaSettings | None = None
    griffin_lim: GriffinLimSettings | None = None
    ladder: LadderSettings | None = None
