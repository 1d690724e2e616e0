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
