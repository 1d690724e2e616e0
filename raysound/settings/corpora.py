"""The section `corpora`: the real and the generated corpora, and the split of the real one."""

from __future__ import annotations

from typing import Any

from pydantic import Field, model_validator

from raysound.settings.fields import CorpusName, Fold, Number, PathOrUri, Section, Seed

# Names of the rows that every evaluation adds to a config's own corpora.
RESERVED_NAMES = (
    "real", "noise", "silence", "shuffled_labels", "one_clip_per_class", "training_copy",
    "real_halves",
)  # fmt: skip


class SplitSettings(Section):
    """How real clips are divided into training, validation and test clips."""

    test_folds: tuple[Fold, ...] = ()
    """Folds of the test clips."""
    validation_folds: tuple[Fold, ...] = ()
    """Folds of the validation clips, which select the epoch."""
    test_fraction: Number = Field(0.15, ge=0, lt=1)
    """Test clips as a share of each class; not used with test_folds."""
    validation_fraction: Number = Field(0.15, ge=0, lt=1)
    """Validation clips as a share of each class; not used with validation_folds."""
    seed: Seed = 0
    """Seed of the random split."""

    @model_validator(mode="after")
    def _folds_differ(self) -> SplitSettings:
        both = sorted({*self.test_folds} & {*self.validation_folds})
        if both:
            raise ValueError(f"fold {', '.join(both)} can't be both test and validation")
        # Folds replace a share.
        share = 0.0 if self.test_folds else self.test_fraction
        share += 0.0 if self.validation_folds else self.validation_fraction
        if share >= 1:
            raise ValueError(
                f"test_fraction {self.test_fraction:g} and validation_fraction "
                f"{self.validation_fraction:g} must add up to less than 1: the rest is for training"
            )
        return self


class RealCorpus(Section):
    """The labelled recordings that the classifier is trained on."""

    path: PathOrUri
    """Folder, table or file of the real recordings; a path or URI."""
    split: SplitSettings = SplitSettings()

    @model_validator(mode="before")
    @classmethod
    def _accept_a_path(cls, value: Any) -> Any:
        return {"path": value} if isinstance(value, str) else value


class CorporaSettings(Section):
    """One real corpus, and any number of generated corpora by name.

    `real` is left out if `evaluation.reference` replaces it.
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
        """The names of all corpora, `real` first if there is one."""
        return (*(("real",) if self.real else ()), *self.generated)
