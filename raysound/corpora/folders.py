"""Maps folders to classes, splits and folds; other folders raise an error."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from raysound.corpora.vocabulary import (
    FOUND,
    SPLIT_WORDS,
    UNCERTAIN_WORDS,
    Names,
    Warn,
    listed,
    meaning_of_splits,
    quoted,
    split_word,
    word_in,
)
from raysound.errors import UserError

# Numbered folders with these names are parts of a corpus or speakers, not classes.
_PIECE = re.compile(
    r"(?:(fold)|(part|split|chunk|shard|batch|set|subset|session|disc|disk|cd|dvd|vol|volume|archive"
    r"|section|segment|dir|folder)|(actor|speaker|spk|subject|participant|singer|person))s?"
    r"[-_ .]*([0-9]+)",
    re.IGNORECASE,
)
# Background recordings of Speech Commands.
NO_CLASSES = ("_background_noise_",)
# Folders of the second level that are stored: one more than messages show.
SOME = 4


@dataclass(frozen=True)
class Folders:
    """The folders in the names of sound files; can be merged in any order.

    Attributes:
        left: number of files per folder of NO_CLASSES.
        first: the other folders of the first level.
        bare: files in no folder: their number and the smallest name.
        flat: files directly in a folder of the first level: their number and the smallest name.
        second: the first SOME folders of the second level by name.
        words: folders of the second level that mean splits.
        only_words: True if all folders of the second level mean splits.
    """

    left: dict[str, int]
    first: frozenset[str]
    bare: Names
    flat: Names
    second: tuple[str, ...]
    words: frozenset[str]
    only_words: bool

    @classmethod
    def of(cls, names: pa.ChunkedArray) -> Folders:
        """The folders of some names, which are relative to the corpus."""
        nested = pc.match_substring(names, "/")
        bare = Names.of(names.filter(pc.invert(nested)))
        names = names.filter(nested)
        counts = pc.value_counts(_first(names))
        found = dict(zip(counts.field(0).to_pylist(), counts.field(1).to_pylist(), strict=True))
        left = {name: found.pop(name) for name in NO_CLASSES if name in found}
        names = _in_classes(names)
        deep = pc.match_substring_regex(names, "^[^/]*/[^/]*/")
        flat = Names.of(names.filter(pc.invert(deep)))
        folders = pc.replace_substring_regex(names.filter(deep), r"(?s)^[^/]*/([^/]*)/.*$", r"\1")
        second = pc.unique(folders).to_pylist()
        words = frozenset(name for name in second if split_word(name))
        return cls(
            left=left,
            first=frozenset(found),
            bare=bare,
            flat=flat,
            second=tuple(sorted(second)[:SOME]),
            words=words,
            only_words=len(words) == len(second),
        )

    def merge(self, other: Folders) -> Folders:
        """The folders of both."""
        return Folders(
            left=dict(Counter(self.left) + Counter(other.left)),
            first=self.first | other.first,
            bare=self.bare.merge(other.bare),
            flat=self.flat.merge(other.flat),
            second=tuple(sorted({*self.second, *other.second})[:SOME]),
            words=self.words | other.words,
            only_words=self.only_words and other.only_words,
        )


@dataclass(frozen=True)
class Layout:
    """Which folders of a corpus are its classes.

    Attributes:
        above: folder above the classes → its split or fold; None if the classes are the first
            level.
        above_kind: the meaning of the folders above: `split` or `fold`.
        below: folder below the classes → its split; empty if these folders belong to the classes.
        is_flat: True if the sounds are in no folder and have no class.
    """

    above: dict[str, str] | None
    above_kind: str
    below: dict[str, str]
    is_flat: bool = False


def layout_of(folders: Folders, path: str, warn: Warn) -> Layout:
    """Determines which folders of a corpus are its classes.

    Folders above or below the classes may be splits; folders above them may also be folds. In a
    corpus without folders the sounds have no class.

    Args:
        folders: of all sound files of the corpus.
        path: of the corpus.
        warn: called with one line about each omission or ambiguity.

    Raises:
        UserError: only some sounds are in class folders, or the folders are not classes.
    """
    for name, count in folders.left.items():
        warn(f"{path}: {count} sound files in '{name}' are left out: not a class")
    if not folders.first and not folders.bare.total:
        raise UserError(f"{path} lists no clips")
    first = sorted(filter(None, folders.first))
    if not first:
        return Layout(None, "split", {}, is_flat=True)
    words = {folder: split_word(name) for folder, name in _without_common_start(first).items()}
    splits = {folder: word for folder, word in words.items() if word}
    above: dict[str, str] | None = None
    above_kind, unclassed = "split", folders.bare
    if not folders.bare.total and first and len(splits) == len(first):
        above = splits
    elif not folders.bare.total and not folders.flat.total and (folds := _folds_above(first)):
        above, above_kind = folds, "fold"
    if above:
        unclassed = folders.flat
    if unclassed.total:
        raise UserError(
            f"{path}: {unclassed.total} sound files are in no class folder, for "
            f"example {quoted(unclassed.least)}; put each into a folder named after its class, "
            "or list them in a metadata.csv with the columns file_name and label"
        )
    if above:
        return Layout(_splits(above, path) if above_kind == "split" else above, above_kind, {})
    refuse_pieces(first, path, warn)
    below: dict[str, str] = {}
    if not folders.flat.total and folders.only_words:
        found = {name: word for name in folders.words if (word := split_word(name))}
        if len({*found.values()}) > 1:
            below = _splits(found, path)
    if len(first) == 1 and len(folders.second) > 1:
        inner = ", ".join(folders.second[: SOME - 1]) + (", …" * (len(folders.second) == SOME))
        warn(
            f"{path}: all sound files are below {quoted(first[0])}, which is used as their "
            f"class; if the classes are {inner}, give {path.rstrip('/')}/{first[0]} as the path"
        )
    return Layout(None, above_kind, below)


def folder_rows(names: pa.ChunkedArray, layout: Layout) -> pa.Table:
    """The clips of a corpus with one folder per class, as a table of FOUND.

    Args:
        names: of some of its sound files, relative to the corpus.
        layout: of the corpus.
    """
    names = _in_classes(names)
    nothing = pa.nulls(len(names), pa.string())
    columns = {"name": names, "fold": nothing, "split": nothing, "group": nothing}
    below = names
    if layout.above:
        columns[layout.above_kind] = _mapped(_first(names), layout.above)
        below = pc.replace_substring_regex(names, "^[^/]*/", "")
    elif layout.below:
        second = pc.replace_substring_regex(names, r"(?s)^[^/]*/([^/]*)/.*$", r"\1")
        columns["split"] = _mapped(second, layout.below)
    columns["label"] = nothing if layout.is_flat else _first(below)
    return pa.table([columns[name] for name in FOUND.names], schema=FOUND)


def _in_classes(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names without those in folders of NO_CLASSES."""
    no_classes = pa.array(NO_CLASSES)
    return names.filter(pc.invert(pc.is_in(_first(names), value_set=no_classes)))


def _first(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The first folder of each name."""
    return pc.replace_substring_regex(names, r"(?s)/.*", "")


def _mapped(column: pa.ChunkedArray, values: dict[str, str]) -> pa.ChunkedArray:
    keys = pa.array(list(values), pa.string())
    return pa.array(list(values.values()), pa.string()).take(pc.index_in(column, keys))


def meanings(words: Iterable[str], path: str) -> dict[str, str]:
    """Split word → split. Raises UserError for a word with no clear meaning in this corpus."""
    try:
        return meaning_of_splits(words)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error


def _splits(words: dict[str, str], path: str) -> dict[str, str]:
    """Folder → split, from folder → split word."""
    meaning = meanings(words.values(), path)
    return {folder: meaning[word] for folder, word in words.items()}


def _without_common_start(folders: list[str]) -> dict[str, str]:
    """Names without their common first words, such as `nsynth-` in nsynth-train."""
    names = sorted(name.lower() for name in folders)
    if len(names) < 2:
        return dict(zip(folders, folders, strict=True))
    low, high = names[0], names[-1]
    same = 0
    while same < min(map(len, (low, high))) and low[same] == high[same]:
        same += 1
    cut = max(low.rfind(mark, 0, same) + 1 for mark in "-_. ")
    return {name: name[cut:] for name in folders}


def _folds_above(folders: list[str]) -> dict[str, str] | None:
    """Folder → fold number if all folders are folds; otherwise None."""
    found = {name: _PIECE.fullmatch(name) for name in folders}
    if len(folders) > 1 and all(match and match[1] for match in found.values()):
        return {name: str(int(match[4])) for name, match in found.items() if match}
    return None


def refuse_pieces(folders: list[str], path: str, warn: Warn) -> None:
    """Raises UserError for folders that are folds, parts or splits, not classes."""
    remedy = "list the clips in a metadata.csv with the columns file_name, label, split and fold"
    matches = [match for name in folders if (match := _PIECE.fullmatch(name))]
    if len(folders) > 1 and len(matches) == len(folders):
        some = listed(sorted(folders), 3)
        if any(match[3] for match in matches):
            warn(
                f"{path}: the {len(folders)} classes are named {some}; if they are not classes, "
                f"{remedy}"
            )
        else:
            raise UserError(
                f"{path}: the folders {some} are parts of the corpus, not classes: {remedy}"
            )
    splits = {name: word for name in folders if (word := split_word(name))}
    in_names = {name: word for name in folders if (word := word_in(name))}
    kinds = {SPLIT_WORDS.get(word) or UNCERTAIN_WORDS[word] for word in splits.values()}
    if "train" in kinds and len(kinds) > 1:
        others = listed((quoted(name) for name in sorted({*folders} - {*splits})), 3)
        raise UserError(
            f"{path}: the folders {others} are not splits, but {', '.join(sorted(splits))} are: "
            f"remove them, or {remedy}"
        )
    if len(in_names) == len(folders) > 1 and len({*in_names.values()}) > 1:
        raise UserError(
            f"{path}: the folders {listed(sorted(folders), 4)} look like splits, not classes: "
            f"{remedy}, or put the classes below train, validation and test"
        )
