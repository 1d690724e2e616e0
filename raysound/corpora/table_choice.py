"""Labels and splits from the tables of a corpus: CSV, TSV, JSON and Parquet."""

from __future__ import annotations

import re

import pyarrow as pa
import pyarrow.compute as pc

from raysound.corpora.table_files import OWN, Table
from raysound.corpora.vocabulary import FOUND, Warn, listed, split_word

# Tables that are used without a warning.
KNOWN = re.compile(r"(?:.*/)?(?:metadata\.\w+|esc50\.csv|UrbanSound8K\.csv)", re.DOTALL)
# Minimum share of sounds that tables other than `metadata.csv` must label to be used.
LEAST_COVERAGE = 0.5


def labelled_rows(tables: list[Table], sounds: int, path: str, warn: Warn) -> pa.Table | None:
    """The clips that tables label, as a table of FOUND; None to use folders as labels.

    If `metadata.csv` has no label column, its clips have no labels.

    Args:
        tables: of the corpus.
        sounds: number of sound files of the corpus.
        path: of the corpus.
        warn: called with one line about each table that is used or omitted.
    """
    labelled = [table for table in tables if "label" in table.roles]
    for table in tables:
        if "label" not in table.roles and not table.is_split_list:
            warn(
                f"{path}: {table.file} names {table.matched} files of the corpus, but has no known "
                f"label column ({listed(table.header, 5)}): "
                + ("its clips have no labels" if table.file in OWN else "not used")
                + "; if a column has them, name it label"
            )
    unlabelled = [one for one in tables if one.file in OWN and "label" not in one.roles]
    if unlabelled:
        return unlabelled[0].rows
    if not labelled:
        return None
    used = tables_of_labels(tables)
    own = used[0].file in OWN
    left = [table.file for table in labelled if table not in used]
    matched = sum(table.matched for table in used)
    if not own and matched < LEAST_COVERAGE * sounds:
        warn(
            f"{path}: {used[0].file} labels only {matched} of {sounds} sound files: not used; to "
            "use it alone, save it as metadata.csv"
        )
        return None
    if not all(KNOWN.fullmatch(table.file) for table in used):
        warn(
            f"{path}: the labels are those of {listed((table.file for table in used), 3)}, column "
            f"{used[0].roles['label']}"
        )
    if left:
        warn(
            f"{path}: {listed(left, 3)} not used: {used[0].file} labels the same clips; to use "
            "their splits or folds, add a column split or fold there"
        )
    are_splits = len({table.split for table in used}) > 1
    rows = pa.concat_tables([_named_split(table) if are_splits else table.rows for table in used])
    folders = pc.unique(pc.replace_substring_regex(rows["name"], r"(?s)/.*", "")).to_pylist()
    if rows["split"].null_count == len(rows) and 1 < len(folders) == sum(map(_is_split, folders)):
        warn(
            f"{path}: {used[0].file} has no column split, and the folders {listed(folders, 3)} are "
            "not used as splits"
        )
    return rows if own else _with_names(rows)


def tables_of_labels(tables: list[Table]) -> list[Table]:
    """The tables to use: `metadata.csv`, or the largest and those that list other files."""
    labelled = [table for table in tables if "label" in table.roles]
    own = [table for table in labelled if table.file in OWN]
    return own[:1] or _disjoint(labelled)


def _is_split(folder: str) -> bool:
    return split_word(folder) is not None


def _with_names(rows: pa.Table) -> pa.Table:
    """Replaces labels by folder names if the labels are only numbers of the folders."""
    folder = pc.replace_substring_regex(rows["name"], r"(?s)^(?:.*/)?([^/]*)/[^/]*$", r"\1")
    labels, folders = pc.unique(rows["label"]), pc.unique(folder)
    pairs = pc.unique(pc.binary_join_element_wise(rows["label"], folder, "/"))
    are_numbers = pc.all(pc.match_substring_regex(labels, "^[0-9]+$")).as_py()
    if are_numbers and 1 < len(labels) == len(folders) == len(pairs):
        return _with(rows, "label", folder)
    return rows


def with_split_lists(rows: pa.Table, tables: list[Table], path: str, warn: Warn) -> pa.Table:
    """Adds the splits from lists such as `testing_list.txt` to rows of FOUND.

    Args:
        rows: of the corpus.
        tables: of the corpus, including the lists.
        path: of the corpus.
        warn: called with one line if the lists are not used, because they are of several folds or
            disagree.
    """
    lists = [table for table in tables if table.is_split_list]
    splits = rows["split"]
    taken = pa.chunked_array([pa.nulls(len(rows), pa.string())])
    folds = {fold[1] for table in lists if (fold := re.search(r"fold\D?(\d+)", table.file.lower()))}
    agree = len(folds) < 2
    for table in lists:
        named = pc.is_in(rows["name"], table.rows["name"].combine_chunks())
        agree &= not pc.any(pc.and_(named, pc.not_equal(taken, table.split))).as_py()
        taken = pc.if_else(named, pa.scalar(table.split, pa.string()), taken)
    if not agree:
        warn(
            f"{path}: the lists {listed((table.file for table in lists), 3)} are of several folds, "
            "or disagree: not used; give the folds in a metadata.csv with a column fold"
        )
        return rows
    return _with(rows, "split", pc.coalesce(splits, taken)) if lists else rows


def _with(rows: pa.Table, name: str, column: pa.ChunkedArray) -> pa.Table:
    return rows.set_column(FOUND.get_field_index(name), FOUND.field(name), column)


def _named_split(table: Table) -> pa.Table:
    """The rows of a table; without a split column, the split is that of its file name, if any."""
    if table.split is None or table.rows["split"].null_count < len(table.rows):
        return table.rows
    return _with(table.rows, "split", pa.array([table.split] * len(table.rows), pa.string()))


def _disjoint(tables: list[Table]) -> list[Table]:
    """The largest table, and each further table that names no file of a table before it."""
    used: list[Table] = []
    for table in sorted(tables, key=lambda table: (-table.matched, table.file.count("/"))):
        taken = [pc.is_in(table.rows["name"], one.rows["name"].combine_chunks()) for one in used]
        if not any(pc.any(is_taken).as_py() for is_taken in taken):
            used.append(table)
    return used
