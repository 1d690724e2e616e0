"""Folders → classes, splits and folds; folders that are none of these are refused."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from raysound.config import UserError
from raysound.layouts import (
    FOUND,
    SPLIT_WORDS,
    UNCERTAIN_WORDS,
    Tell,
    listed,
    shown,
    split_word,
    word_in,
)

# Numbered folders of these names are pieces of a corpus, or its speakers, not its classes.
_PIECE = re.compile(
    r"(?:(fold)|(part|split|chunk|shard|batch|set|subset|session|disc|disk|cd|dvd|vol|volume|archive"
    r"|section|segment|dir|folder)|(actor|speaker|spk|subject|participant|singer|person))s?"
    r"[-_ .]*([0-9]+)",
    re.IGNORECASE,
)
# Recordings that come with Speech Commands to be mixed with its words.
NO_CLASSES = ("_background_noise_",)


def read_folders(names: pa.ChunkedArray, path: str, tell: Tell) -> pa.Table:
    """The clips of a corpus that has a folder a class, as a table of FOUND.

    Above or below the classes the folders may be splits; above them also folds.

    Args:
        names: of the sound files, relative to the corpus.
        path: of the corpus.
        tell: takes a line about what was left out, or is doubtful.

    Raises:
        UserError: a sound in no class folder, or folders that are no classes.
    """
    first = pc.replace_substring_regex(names, r"(?s)/.*", "")
    folders = [name for name in pc.unique(first).to_pylist() if name]
    for name in {*NO_CLASSES} & {*folders}:
        is_left = pc.equal(first, name)
        tell(f"{path}: {pc.sum(is_left).as_py()} sound files in '{name}' are left out: no class")
        names, first = names.filter(pc.invert(is_left)), first.filter(pc.invert(is_left))
        folders.remove(name)
    nested = pc.match_substring(names, "/")
    is_nested = pc.all(nested).as_py()
    words = {folder: split_word(name) for folder, name in _without_common_start(folders).items()}
    fold = split = pa.nulls(len(names), pa.string())
    below, above = names, None
    if is_nested and folders and all(words.values()):
        split, above = _mapped(first, words), "splits"
    elif is_nested and folders and (folds := _folds_above(folders, names)):
        fold, above = _mapped(first, folds), "folds"
    if above:
        below = pc.replace_substring_regex(names, "^[^/]*/", "")
    in_class = pc.match_substring(below, "/")
    if not pc.all(in_class).as_py():
        bare = names.filter(pc.invert(in_class))
        raise UserError(
            f"{path}: {len(bare)} sound files stand in no class folder, {shown(bare[0].as_py())} "
            "among them; put each into a folder named after its class, or list them in a "
            "metadata.csv with the columns file_name and label"
        )
    label = pc.replace_substring_regex(below, r"(?s)/.*", "")
    if not above:
        refuse_pieces(folders, path, tell)
        split = _splits_below(names)
        if len(folders) == 1:
            _tell_wrapper(names, folders[0], path, tell)
    return pa.table([names, label, fold, split, pa.nulls(len(names), pa.string())], schema=FOUND)


def _mapped(column: pa.ChunkedArray, values: dict[str, str | None]) -> pa.ChunkedArray:
    keys = pa.array(list(values), pa.string())
    return pa.array(list(values.values()), pa.string()).take(pc.index_in(column, keys))


def _without_common_start(folders: list[str]) -> dict[str, str]:
    """Names without the words that all begin with, such as `nsynth-` of nsynth-train."""
    names = sorted(name.lower() for name in folders)
    if len(names) < 2:
        return dict(zip(folders, folders, strict=True))
    low, high = names[0], names[-1]
    same = 0
    while same < min(map(len, (low, high))) and low[same] == high[same]:
        same += 1
    cut = max(low.rfind(mark, 0, same) + 1 for mark in "-_. ")
    return {name: name[cut:] for name in folders}


def _folds_above(folders: list[str], names: pa.ChunkedArray) -> dict[str, str | None] | None:
    """Folder → number of its fold, where all folders are folds that hold class folders."""
    found = {name: _PIECE.fullmatch(name) for name in folders}
    if len(folders) > 1 and all(match and match[1] for match in found.values()):
        is_deep = pc.match_substring_regex(names, "^[^/]*/[^/]*/")
        if pc.all(is_deep).as_py():
            return {name: str(int(match[4])) for name, match in found.items() if match}
    return None


def _splits_below(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """The splits of `dog/train/x.wav`, where every class folder holds such folders alone."""
    second = pc.replace_substring_regex(names, r"(?s)^[^/]*/([^/]*)/.*$", r"\1")
    # A name without a second folder stays whole, and is no word.
    found = {name: split_word(name) for name in pc.unique(second.slice(0, 1000)).to_pylist()}
    if all(found.values()):
        found = {name: split_word(name) for name in pc.unique(second).to_pylist()}
        if all(found.values()) and len({*found.values()}) > 1:
            return _mapped(second, found)
    return pa.nulls(len(names), pa.string())


def refuse_pieces(folders: list[str], path: str, tell: Tell) -> None:
    """Raises UserError for folders that are folds, parts or splits and no classes."""
    remedy = (
        "say in a metadata.csv with the columns file_name, label, split and fold what each clip is"
    )
    matches = [match for name in folders if (match := _PIECE.fullmatch(name))]
    if len(folders) > 1 and len(matches) == len(folders):
        some = listed(sorted(folders), 3)
        if any(match[3] for match in matches):
            tell(
                f"{path}: the {len(folders)} classes are called {some}; if they are none, {remedy}"
            )
        else:
            raise UserError(
                f"{path}: the folders {some} are pieces of the corpus, no classes: {remedy}"
            )
    splits = {name: word for name in folders if (word := split_word(name))}
    in_names = {name: word for name in folders if (word := word_in(name))}
    kinds = {SPLIT_WORDS.get(word) or UNCERTAIN_WORDS[word] for word in splits.values()}
    if "train" in kinds and len(kinds) > 1:
        others = listed((shown(name) for name in sorted({*folders} - {*splits})), 3)
        raise UserError(
            f"{path}: beside the splits {', '.join(sorted(splits))} stands {others}: take it out, "
            f"or {remedy}"
        )
    if len(in_names) == len(folders) > 1 and len({*in_names.values()}) > 1:
        raise UserError(
            f"{path}: the folders {listed(sorted(folders), 4)} look like splits, no classes: "
            f"{remedy}, or put the classes below train, validation and test"
        )


def _tell_wrapper(names: pa.ChunkedArray, folder: str, path: str, tell: Tell) -> None:
    inner = pc.replace_substring_regex(names, r"(?s)^[^/]*/([^/]*)/.*$", r"\1")
    below = sorted(name for name in pc.unique(inner).to_pylist() if "/" not in name)
    if len(below) > 1:
        tell(
            f"{path}: all sound files stand below {shown(folder)}, which is taken for their class; "
            f"if the classes are {listed(below, 3)}, give {path.rstrip('/')}/{folder} as the path"
        )
