"""Finds and reads the tables of a corpus."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.cells import TABLE_SUFFIXES, Read, each, read_cells
from raysound.corpora.file_names import match_files, plain_path, stem
from raysound.corpora.vocabulary import (
    ANY_SOUND,
    FOUND,
    HIDDEN,
    ROLES,
    Warn,
    has_ending,
    quoted,
    split_word,
    word_in,
)
from raysound.errors import UserError

# Label columns whose cells may contain several labels.
SEVERAL = ("labels", "positive_labels", "categories", "classes", "tags")
# Tables that take precedence over all others, and whose errors are always raised.
OWN = tuple(f"metadata{suffix}" for suffix in TABLE_SUFFIXES if suffix != ".txt")
# Maximum number of tables that are opened, and maximum size of a table in bytes.
MOST_TABLES, LARGEST_TABLE = 40, 1 << 29
# Maximum number of folders above a table.
DEEPEST_TABLE = 2


class Table(NamedTuple):
    """One table of a corpus.

    Attributes:
        file: name of the file, relative to the corpus.
        header: names of its columns.
        roles: role, such as `label` → column.
        rows: its clips as a table of FOUND.
        matched: number of rows that name a file of the corpus.
    """

    file: str
    header: list[str]
    roles: dict[str, str]
    rows: pa.Table
    matched: int

    @property
    def split(self) -> str | None:
        """The split word in the name of the file or of its folder; or None."""
        folder, _, file = self.file.rpartition("/")
        return word_in(posixpath.splitext(file)[0]) or word_in(folder.rpartition("/")[2])

    @property
    def is_split_list(self) -> bool:
        """True for a list of the files of one split, such as `testing_list.txt`."""
        return len(self.header) == 1 and self.split is not None


def read_tables(files: list[str], names: pa.ChunkedArray, path: str, warn: Warn) -> list[Table]:
    """Reads every table of a corpus that names some of its files.

    Args:
        files: see `tables_to_open`.
        names: names of all files of the corpus.
        path: of the corpus.
        warn: called with one line about each table that can't be read.

    Raises:
        UserError: a table of OWN, such as `metadata.csv`, can't be used.
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
    """True for files that may be tables: not too deep, and not the name of a sound file.

    Args:
        names: names of files of the corpus; for each, all names that differ only in the suffix.
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
    """Selects the tables of a corpus to open, the most likely first.

    Args:
        candidates: names and sizes (bytes) of files, see `is_candidate`.
        path: of the corpus.
        warn: called with one line about those that are not opened.
    """
    ordered = sorted(candidates, key=lambda file: (file[0] not in OWN, file[0].count("/"), file[0]))
    if more := ordered[MOST_TABLES:]:
        warn(f"{path}: {len(more)} tables are not opened, for example {quoted(more[0][0])}")
    for file, size in ordered[:MOST_TABLES]:
        if size > LARGEST_TABLE:
            warn(f"{path}: {quoted(file)} is too large for a table and is not opened")
    return [file for file, size in ordered[:MOST_TABLES] if size <= LARGEST_TABLE]


def name_clips(files: list[str], path: str, warn: Warn) -> bool:
    """True if any of the tables has a column of file names.

    Args:
        files: see `tables_to_open`.
        path: of the corpus.
        warn: called with one line about each table that can't be read.

    Raises:
        UserError: a table of OWN, such as `metadata.csv`, can't be used.
    """
    return any(_cells(file, path, warn) is not None for file in files)


def _cells(file: str, path: str, warn: Warn) -> Read | None:
    """The header and the columns of ROLES of a table; None if it has no file names."""
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
    """Reads a table; None if it names no file of the corpus."""
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
        _report_unmatched(cells[column], uri, file in OWN, path, warn)
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
    found["fold"] = _integers(found["fold"]) if "fold" in roles else nothing
    rows = pa.table([found[name] for name in FOUND.names], schema=FOUND)
    if file not in OWN and pc.count_distinct(rows["name"]).as_py() < len(rows):
        raise UserError(f"{uri} names a clip in several rows")
    return Table(file, header, roles, rows, matched)


def _other_roles(
    cells: pa.Table, filled: list[str], uri: str, warn: Warn
) -> Iterator[tuple[str, str]]:
    """Yields role and column for label, fold, split and group, if the table has them."""
    for role in ("label", "fold", "split", "group"):
        for name in (name for name in ROLES[role] if name in filled):
            if role == "split" and name != "split":
                unknown = [
                    value
                    for value in pc.unique(cells[name].drop_null()).to_pylist()
                    if split_word(value) is None
                ]
                if unknown:
                    warn(f"{uri}: {quoted(unknown[0])} in column {name} is not a split: not used")
                    continue
            if name in SEVERAL:
                several = cells[name].filter(pc.match_substring_regex(cells[name], "[,;|]"))
                if len(several):
                    raise UserError(
                        f"{uri} gives a clip several labels, for example "
                        f"{quoted(several[0].as_py())}: give one in a metadata.csv with the "
                        "columns file_name and label"
                    )
            yield role, name
            break


def _report_unmatched(values: pa.ChunkedArray, uri: str, own: bool, path: str, warn: Warn) -> None:
    """Warns, or raises UserError, if none of the named files is in the corpus."""
    first = values.drop_null()[0].as_py()
    message = f"{uri} names {len(values)} files, for example {quoted(first)}, and none exists"
    if own:
        raise UserError(f"{message}: are its paths relative to {path}?")
    if pc.any(has_ending(values, ANY_SOUND)).as_py():
        warn(f"{message}: not used")


def _refuse_empty(cells: pa.Table, column: str, uri: str) -> None:
    if cells[column].null_count:
        row = cells.filter(pc.is_null(cells[column])).slice(0, 1).to_pylist()[0]
        filled = {name: value for name, value in row.items() if value is not None}
        raise UserError(f"{uri}: a row has no '{column}': {filled}")


def _integers(folds: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replaces `1.0`, which pandas writes for integers in a column with empty cells, by `1`."""
    is_integer = pc.match_substring_regex(folds, r"^[0-9]+\.0$")
    are_integers = pc.all(is_integer).as_py()
    return pc.replace_substring(folds, ".0", "") if are_integers else folds
