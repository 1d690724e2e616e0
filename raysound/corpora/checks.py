"""Checks of a corpus by its manifest, before any clip is decoded."""

from __future__ import annotations

import logging
import re

import pyarrow as pa
import pyarrow.compute as pc

from raysound.corpora.split import assign_split
from raysound.corpora.vocabulary import listed, plain_name, quoted
from raysound.errors import UserError
from raysound.settings.corpora import SplitSettings
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config

logger = logging.getLogger(__name__)


def check_classes(labels: dict[str, list[str]]) -> None:
    """Checks that each generated corpus has only classes of the real corpus.

    Args:
        labels: the labels of each corpus by its name, including `real`.

    Raises:
        UserError: a generated corpus has a class that the real corpus lacks.
    """
    real = {_key(label): label for label in labels["real"]}
    for name in labels:
        unknown = sorted({*labels[name]} - {*labels["real"]})
        if unknown:
            alike = [(label, real[_key(label)]) for label in unknown if _key(label) in real]
            hint = listed((f"{_spelled(one)} is {_spelled(other)}" for one, other in alike), 3)
            raise UserError(
                f"{name} has classes that the real corpus lacks: {listed(unknown)}; it has "
                f"{listed(sorted(labels['real']), 20)}: rename them, leave them out, or add real "
                f"recordings of them{f'; perhaps {hint} there' if hint else ''}"
            )


def check_unlabelled(name: str, path: str) -> None:
    """Logs that a generated corpus has no labels. Raises UserError for the real corpus."""
    if name == "real":
        raise UserError(
            f"{path}: the real clips have no labels: put each into a folder named after its class, "
            "or list them in a metadata.csv with the columns file_name and label; only generated "
            "corpora may have none"
        )
    logger.info("%s: the clips have no labels, so no metric that needs them is given", name)


def _key(label: str) -> str:
    return re.sub(r"[\s_-]+", "", plain_name(label))


def _spelled(label: str) -> str:
    """A name in quotes; non-ASCII letters, which may look like others, are escaped."""
    return quoted(label) if label.isascii() else ascii(label)


def check_clips(config: Config, clips: pa.Table, corpus: str = "real") -> None:
    """Raises UserError if no classifier can be trained on the clips of a corpus."""
    labels = check_class_count(clips, corpus)
    trained = set(clips.filter(pc.equal(clips["split"], "train"))["label"].to_pylist())
    if set(labels) - trained:
        missing = listed(sorted(set(labels) - trained))
        raise UserError(f"no usable training clip of {missing} in {corpus}")
    if config.training.needs_validation and not _count(clips, "validation"):
        raise UserError(
            "no validation clip to select the best epoch, to detect a plateau or to stop early: "
            "raise corpora.real.split.validation_fraction, or set training.checkpoint_policy: last"
        )


def check_class_count(clips: pa.Table, corpus: str = "real") -> list[str]:
    """The classes of a corpus, sorted.

    Raises:
        UserError: the corpus has only one class.
    """
    labels: list[str] = sorted(pc.unique(clips["label"]).to_pylist())
    if len(labels) < 2:
        raise UserError(
            f"the corpus {corpus} has a single class, {quoted(labels[0])}: a classifier needs two "
            "or more; is its path one folder too high or too low?"
        )
    return labels


def check_real(clips: pa.Table, config: Config) -> str | None:
    """Checks the manifest of the real corpus for training and evaluation.

    Returns:
        A one-line message if no clip is left for validation or for test; otherwise None.

    Raises:
        UserError: in any of the configured splits, there is a single class, a fold that the corpus
            lacks, a group on both sides of the split, or a class without a training clip.
    """
    check_class_count(clips)
    for settings in configured_splits(clips, config):
        divided = assign_split(clips, settings)
        if config.training.needs_validation and not _count(divided, "validation"):
            return (
                f"no validation clip among the {len(clips)} real clips, and training needs one: "
                "add clips, raise corpora.real.split.validation_fraction, or set "
                "training.checkpoint_policy: last"
            )
        if not _count(divided, "test") and settings.test_fraction > 0:
            return (
                f"no test clip among the {len(clips)} real clips, and evaluation needs one: add "
                "clips, or raise corpora.real.split.test_fraction"
            )
    return None


def configured_splits(clips: pa.Table, config: Config) -> list[SplitSettings]:
    """The configured splits: a single one, or one per fold with `training.folds: all`.

    Raises:
        UserError: `training.folds` is `all`, and the corpus has fewer than two folds.
    """
    split = real_corpus(config).split
    if config.training.folds != "all":
        return [split]
    changed = {"validation_folds": ()}
    return [split.model_copy(update={"test_folds": (fold,), **changed}) for fold in folds_of(clips)]


def folds_of(clips: pa.Table) -> list[str]:
    """The folds of a corpus; with `training.folds: all` one classifier is trained per fold.

    Raises:
        UserError: the corpus has fewer than two folds.
    """
    folds: list[str] = pc.unique(clips["fold"].combine_chunks().drop_null()).to_pylist()
    if len(folds) < 2:
        raise UserError(
            "training.folds: all needs a real corpus with a column fold of two or more folds; it "
            f"has {len(folds)}"
        )
    return folds


def _count(clips: pa.Table, split: str) -> int:
    return int(pc.sum(pc.equal(clips["split"], split)).as_py() or 0)
