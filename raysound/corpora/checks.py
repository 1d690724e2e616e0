"""What is wrong with a corpus, found in its manifest before anything is decoded."""

from __future__ import annotations

import logging
import re

import pyarrow as pa
import pyarrow.compute as pc

from raysound.corpora.layouts import listed, plain_name, quoted
from raysound.corpora.split import assign_split
from raysound.errors import UserError
from raysound.settings.corpora import SplitSettings
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config

logger = logging.getLogger(__name__)


def check_classes(labels: dict[str, list[str]]) -> None:
    """Raises UserError for a generated corpus with a class that the real one lacks.

    Args:
        labels: of each corpus by its name, `real` among them.
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
    """Tells that a generated corpus has no labels. Raises UserError for the real one."""
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
    """A name in quotes, with letters escaped that look like others."""
    return quoted(label) if label.isascii() else ascii(label)


def check_clips(config: Config, clips: pa.Table, corpus: str = "real") -> None:
    """Raises UserError for clips of a corpus with which no classifier can be trained."""
    labels = check_class_count(clips, corpus)
    trained = set(clips.filter(pc.equal(clips["split"], "train"))["label"].to_pylist())
    if set(labels) - trained:
        missing = listed(sorted(set(labels) - trained))
        raise UserError(f"no usable training clip of {missing} in {corpus}")
    if config.training.needs_validation and not _count(clips, "validation"):
        raise UserError(
            "no validation clip to choose the best epoch, a plateau or the end by: raise "
            "corpora.real.split.validation_fraction, or set training.checkpoint_policy: last"
        )


def check_class_count(clips: pa.Table, corpus: str = "real") -> list[str]:
    """The classes of a corpus, sorted.

    Raises:
        UserError: there is just one.
    """
    labels: list[str] = sorted(pc.unique(clips["label"]).to_pylist())
    if len(labels) < 2:
        raise UserError(
            f"the corpus {corpus} has a single class, {quoted(labels[0])}: a classifier needs two "
            "or more; is its path one folder too high or too low?"
        )
    return labels


def check_real(clips: pa.Table, config: Config) -> str | None:
    """Looks at the manifest of the real corpus as training and evaluation will.

    Returns:
        A line, where too few clips leave none to validate or to test; else None.

    Raises:
        UserError: a single class, folds that the corpus lacks, a group on both sides of a split, or
            a class without a training clip, in any of the splits that the config asks for.
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
    """The splits that a config asks for: its own, or one a fold.

    Raises:
        UserError: one a fold, and the corpus has no two.
    """
    split = real_corpus(config).split
    if config.training.folds != "all":
        return [split]
    changed = {"validation_folds": ()}
    return [split.model_copy(update={"test_folds": (fold,), **changed}) for fold in folds_of(clips)]


def folds_of(clips: pa.Table) -> list[str]:
    """The folds of a corpus, of which training.folds: all makes a classifier each.

    Raises:
        UserError: it has none, or just one.
    """
    folds: list[str] = pc.unique(clips["fold"].combine_chunks().drop_null()).to_pylist()
    if len(folds) < 2:
        raise UserError(
            "training.folds: all wants a real corpus with a column fold that names two or "
            f"more; it has {len(folds)}"
        )
    return folds


def _count(clips: pa.Table, split: str) -> int:
    return int(pc.sum(pc.equal(clips["split"], split)).as_py() or 0)
