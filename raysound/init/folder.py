"""Finds the real corpus and the generated corpora of a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from raysound import storage
from raysound.corpora.checks import check_class_count, check_classes, check_unlabelled
from raysound.corpora.table_files import OWN
from raysound.corpora.vocabulary import quoted
from raysound.errors import UserError
from raysound.init.survey import Corpus, folder_has_sounds, survey
from raysound.settings.corpora import RESERVED_NAMES

REAL = "real"


@dataclass(frozen=True)
class FoundCorpora:
    """The corpora of a folder.

    Attributes:
        real: the labelled recordings.
        generated: by name.
        left_out: folders with sounds that can't be a generated corpus, with the reasons.
    """

    real: Corpus
    generated: dict[str, Corpus]
    left_out: dict[str, str]


def find_corpora(path: str) -> FoundCorpora:
    """Finds the corpora of a folder.

    A folder with `real` and other folders of sounds has a real corpus and generated ones. Any other
    folder is a real corpus itself.

    Args:
        path: of the folder, absolute, or a URI.

    Raises:
        UserError: the folder does not exist, or has no sounds, no labels or a single class; or as
            `read_corpus`.
    """
    others = _generated_folders(path)
    real = survey(storage.join(path, REAL) if others else path)
    if others and not real.classes and _are_classes(others):
        others, real = [], survey(path)
    if not real.classes:
        try:
            check_unlabelled(REAL, real.path)
        except UserError as error:
            raise UserError(
                f"{error}. If the clips are generated, name the folder below corpora.generated in "
                "the config of the real recordings"
            ) from error
    check_class_count(real.clips)
    generated: dict[str, Corpus] = {}
    left_out: dict[str, str] = {}
    for folder in others:
        for corpus_path, corpus in _generated_in(folder, real):
            if isinstance(corpus, UserError):
                left_out[corpus_path] = str(corpus)
            else:
                generated[free_name(corpus_path, generated)] = corpus
    return FoundCorpora(real, generated, left_out)


def _generated_folders(path: str) -> list[str]:
    """The folders of sounds next to a folder `real`; none if the path is one corpus."""
    if not storage.is_folder(path):
        return []
    folders = sorted(name for name in storage.subfolders(path) if not name.startswith("."))
    has_table = any(storage.exists(storage.join(path, name)) for name in OWN)
    if REAL not in folders or has_table:
        return []
    paths = [storage.join(path, name) for name in folders]
    with_sounds = [one for one in paths if folder_has_sounds(one)]
    real = storage.join(path, REAL)
    others = [one for one in with_sounds if one != real]
    if not others or real not in with_sounds:
        return []
    return others


def _are_classes(others: list[str]) -> bool:
    """Whether flat folders next to `real`, such as `fake`, are classes of one corpus."""
    is_generated = any(os.path.basename(one).startswith("generated") for one in others)
    return not is_generated and not any(storage.subfolders(one) for one in others)


def _generated_in(folder: str, real: Corpus) -> Iterator[tuple[str, Corpus | UserError]]:
    """Yields the corpus of a folder or those of its subfolders (`generated/gan`), or the errors."""
    try:
        yield folder, _generated(folder, real)
        return
    except UserError as error:
        first_error = error
    inner: dict[str, Corpus | UserError] = {}
    for name in sorted(storage.subfolders(folder)):
        subfolder = storage.join(folder, name)
        if not folder_has_sounds(subfolder):
            continue
        try:
            inner[subfolder] = _generated(subfolder, real)
        except UserError as error:
            inner[subfolder] = error
    # Without labels, the subfolders may be classes that are not in the real corpus.
    if any(isinstance(corpus, Corpus) and corpus.classes for corpus in inner.values()):
        yield from inner.items()
    else:
        yield folder, first_error


def _generated(path: str, real: Corpus) -> Corpus:
    """Surveys a generated corpus. Raises UserError for one that can't be evaluated."""
    corpus = survey(path)
    if corpus.classes:
        check_classes({REAL: [*real.classes], quoted(os.path.basename(path)): [*corpus.classes]})
    return corpus


def free_name(path: str, taken: dict[str, Corpus]) -> str:
    """A corpus name from the name of a folder, which is neither taken nor reserved."""
    plain = corpus_name(os.path.basename(path))
    name, number = plain, 2
    while name in taken or name in RESERVED_NAMES:
        name, number = f"{plain}-{number}", number + 1
    return name


def corpus_name(name: str) -> str:
    """A name of a corpus or experiment: letters, digits, `_`, `.` and `-`."""
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._") or "sounds"
