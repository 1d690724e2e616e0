"""Which files of a corpus are tables of its clips, and what a table holds."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.cells import TABLE_SUFFIXES, Read, each, read_cells
from raysound.corpora.file_names import match_files, plain_path, stem
from raysound.corpora.layouts import (
    ANY_SOUND,
    FOUND,
    HIDDEN,
    Warn,
    has_ending,
    quoted,
    split_word,
    word_in,
)
from raysound.errors import UserError

# Columns of the data sets that people download, by what they hold; the first that is there counts.
ROLES: dict[str, tuple[str, ...]] = {
    "name": (
        "file_name", "filename", "slice_file_name", "fname", "file", "path", "filepath",
        "file_path", "audio_file", "audio_filename", "audio_path", "audio_filepath", "audio", "wav",
        "wav_file", "wav_path", "wav_filename", "sound_file", "sound", "clip_path", "clip_name",
        "clip", "recording", "track", "note_str", "name", "clip_id", "id", "itemid", "ytid",
    ),
    "label": (
        "label", "label_name", "class_name", "class_label", "category", "class", "primary_label",
        "scene_label", "event_label", "genre", "genre_top", "species", "ebird_code", "word",
        "command", "keyword", "emotion", "instrument_family_str", "instrument", "sound_class",
        "scene", "event", "labels", "positive_labels", "categories", "classes", "tags", "target",
        "classid", "class_id", "label_id",
    ),
    "fold": ("fold", "folds", "cv_fold", "kfold"),
    "split": ("split", "subset", "partition", "set"),
    "group": ("group", "src_file", "fsid", "freesound_id"),
}  # fmt: skip
# Label columns of which a cell may hold several.
SEVERAL = ("labels", "positive_labels", "categories", "classes", "tags")
# Tables that go before all others, and whose faults are never passed over.
OWN = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES if suffix != ".txt")
# Tables that are opened, and the bytes of the largest.
MOST_TABLES, LARGEST_TABLE = 40, 1 << 29
# Folders above a table.
DEEPEST_TABLE = 2


class Table(NamedTuple):
    """One table of a corpus.

    Attributes:
        file: its name, relative to the corpus.
        header: names of its columns.
        roles: which of them holds what.
        rows: its clips as a table of FOUND.
        matched: how many of them are files of the corpus.
    """

    file: str
    header: list[str]
    roles: dict[str, str]
    rows: pa.Table
    matched: int

    @property
    def split(self) -> str | None:
        """The word for a split in its file's name, or in its folder's."""
        folder, _, file = self.file.rpartition("/")
        return word_in(posixpath.splitext(file)[0]) or word_in(folder.rpartition("/")[2])

    @property
    def is_split_list(self) -> bool:
        """True for a list of file names alone that says their split: `testing_list.txt`."""
        return len(self.header) == 1 and self.split is not None


def read_tables(files: list[str], names: pa.ChunkedArray, path: str, warn: Warn) -> list[Table]:
    """Every table beside the sounds of a corpus that names some of its files.

    Args:
        files: see `tables_to_open`.
        names: of every file of the corpus.
        path: of the corpus.
        warn: called with a line about what can't be read.

    Raises:
        UserError: `metadata.csv` can't be used.
    """
    tables = []
    for file in files:
        try:
            table = _read(file, names, path, warn)
        except UserError as error:
            if file in OWN:
                raise
            warn(f"{error}: not used")
            continue
        if table is not None:
            tables.append(table)
    return tables


def is_candidate(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """True for files of a corpus that may be its tables: not deep, and no sound has their name.

    Args:
        names: of the corpus's files, with all files of a folder that differ only in the ending.
    """
    found = pc.and_not(has_ending(names, TABLE_SUFFIXES), pc.match_substring_regex(names, HIDDEN))
    found = pc.and_(
        found, pc.match_substring_regex(names, rf"^([^/]*/){{0,{DEEPEST_TABLE}}}[^/]*$")
    )
    if pc.any(found).as_py():
        stems = stem(names.filter(has_ending(names, ANY_SOUND)))
        found = pc.and_not(found, pc.is_in(stem(names), stems.combine_chunks()))
    return found


def tables_to_open(candidates: Iterable[tuple[str, int]], path: str, warn: Warn) -> list[str]:
    """The tables of a corpus that are opened, the most likely first.

    Args:
        candidates: names and sizes of files, see `is_candidate`.
        path: of the corpus.
        warn: called with a line about those that are not opened.
    """
    ordered = sorted(candidates, key=lambda file: (file[0] not in OWN, file[0].count("/"), file[0]))
    if more := ordered[MOST_TABLES:]:
        warn(f"{path}: {len(more)} tables are not opened, {quoted(more[0][0])} among them")
    for file, size in ordered[:MOST_TABLES]:
        if size > LARGEST_TABLE:
            warn(f"{path}: {quoted(file)} is too large for a table and is not opened")
    return [file for file, size in ordered[:MOST_TABLES] if size <= LARGEST_TABLE]


def name_clips(files: list[str], path: str, warn: Warn) -> bool:
    """True if one of some tables may name clips of a corpus.

    Args:
        files: see `tables_to_open`.
        path: of the corpus.
        warn: called with a line about what can't be read.

    Raises:
        UserError: `metadata.csv` can't be used.
    """
    return any(_cells(file, path, warn) is not None for file in files)


def _cells(file: str, path: str, warn: Warn) -> Read | None:
    """The header of a table and those columns that count; None if it has no names of files."""
    uri = storage.join(path, file)
    wanted = {column for columns in ROLES.values() for column in columns}
    try:
        read = read_cells(uri, wanted, ROLES["name"], ANY_SOUND, warn)
    except UserError as error:
        if file in OWN:
            raise
        warn(f"{error}: not used")
        return None
    if file in OWN and read is None:
        raise UserError(f"{uri} lists no clips: it has no column file_name")
    if file in OWN and read is not None and not len(read[1]):
        raise UserError(f"{uri} lists no clips")
    return read if read is not None and len(read[1]) else None


def _read(file: str, names: pa.ChunkedArray, path: str, warn: Warn) -> Table | None:
    """A table, or None if it names no file of the corpus."""
    read = _cells(file, path, warn)
    if read is None:
        return None
    uri = storage.join(path, file)
    header, cells = read
    filled = [name for name in cells.column_names if cells[name].null_count < len(cells)]
    column = next((name for name in ROLES["name"] if name in filled), None)
    if column is None:
        empty = next(name for name in ROLES["name"] if name in cells.column_names)
        _refuse_empty(cells, empty, uri)
        return None
    matches = match_files(cells[column], names, posixpath.dirname(file))
    for other in ROLES["name"]:
        if matches.null_count == len(matches) and other in filled:
            column = other
            matches = match_files(cells[column], names, posixpath.dirname(file))
    matched = len(matches) - matches.null_count
    if not matched:
        _report_strangers(cells[column], uri, file in OWN, path, warn)
        return None
    roles = {"name": column, **dict(_other_roles(cells, filled, uri, warn))}
    if file in OWN and "label" not in roles:
        for empty in (name for name in ROLES["label"] if name in cells.column_names):
            _refuse_empty(cells, empty, uri)
    for role in ("name", "label"):
        if role in roles:
            _refuse_empty(cells, roles[role], uri)
    nothing = pa.nulls(len(cells), pa.string())
    found = {role: cells[roles[role]] if role in roles else nothing for role in FOUND.names}
    found["name"] = pc.coalesce(matches, each(cells[column], plain_path, pa.string()))
    found["fold"] = _whole(found["fold"]) if "fold" in roles else nothing
    rows = pa.table([found[name] for name in FOUND.names], schema=FOUND)
    if file not in OWN and pc.count_distinct(rows["name"]).as_py() < len(rows):
        raise UserError(f"{uri} names a clip in several rows")
    return Table(file, header, roles, rows, matched)


def _other_roles(
    cells: pa.Table, filled: list[str], uri: str, warn: Warn
) -> Iterator[tuple[str, str]]:
    """Which column holds the label, fold, split and group, where there is one."""
    for role in ("label", "fold", "split", "group"):
        for name in (name for name in ROLES[role] if name in filled):
            if role == "split" and name != "split":
                unknown = [
                    value
                    for value in pc.unique(cells[name].drop_null()).to_pylist()
                    if split_word(value) is None
                ]
                if unknown:
                    warn(f"{uri}: {quoted(unknown[0])} in column {name} is no split: not used")
                    continue
            if name in SEVERAL:
                several = cells[name].filter(pc.match_substring_regex(cells[name], "[,;|]"))
                if len(several):
                    raise UserError(
                        f"{uri} gives a clip several labels, {quoted(several[0].as_py())} for one: "
                        "say in a metadata.csv with the columns file_name and label which counts"
                    )
            yield role, name
            break


def _report_strangers(values: pa.ChunkedArray, uri: str, own: bool, path: str, warn: Warn) -> None:
    """Says that a table names none of the files of the corpus, if it names files."""
    first = values.drop_null()[0].as_py()
    message = f"{uri} names {len(values)} files, {quoted(first)} among them, and none is there"
    if own:
        raise UserError(f"{message}: are its paths relative to {path}?")
    if pc.any(has_ending(values, ANY_SOUND)).as_py():
        warn(f"{message}: not used")


def _refuse_empty(cells: pa.Table, column: str, uri: str) -> None:
    if cells[column].null_count:
        row = cells.filter(pc.is_null(cells[column])).slice(0, 1).to_pylist()[0]
        filled = {name: value for name, value in row.items() if value is not None}
        raise UserError(f"{uri}: a row has no '{column}': {filled}")


def _whole(folds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Folds `1.0`, as pandas writes whole numbers beside an empty cell, are `1`."""
    is_whole = pc.match_substring_regex(folds, r"^[0-9]+\.0$")
    all_whole = pc.all(is_whole).as_py()
    return pc.replace_substring(folds, ".0", "") if all_whole else folds
