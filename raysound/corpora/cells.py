"""Reads the cells of table files as text: CSV of any dialect, JSON, JSON lines, Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raysound import storage
from raysound.corpora.containers import is_audio_parquet
from raysound.corpora.vocabulary import Warn
from raysound.errors import UserError

TABLE_SUFFIXES = (".csv", ".tsv", ".txt", ".json", ".jsonl", ".ndjson", ".parquet")
DELIMITERS = (",", ";", "\t", "|")
# Rows converted to Python objects at a time; all others are stored in Arrow columns.
ROWS_AT_ONCE = 1 << 16

Read = tuple[list[str], pa.Table]


def to_columns(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Converts rows to columns in batches, so that few rows are Python objects at a time."""
    rows = iter(rows)
    batches = []
    while some := list(islice(rows, ROWS_AT_ONCE)):
        arrays = [
            pa.array(values, field.type)
            for values, field in zip(zip(*some, strict=True), schema, strict=True)
        ]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def each(column: pa.ChunkedArray, function: Callable[[Any], Any], kind: pa.DataType) -> Any:
    """Applies a function to every value of a column, in batches."""
    chunks = [
        pa.array([function(value) for value in chunk.slice(start, ROWS_AT_ONCE).to_pylist()], kind)
        for chunk in column.chunks
        for start in range(0, len(chunk), ROWS_AT_ONCE)
    ]
    return pa.chunked_array(chunks, kind)


def read_cells(
    uri: str, wanted: Collection[str], files: Sequence[str], sounds: Collection[str], warn: Warn
) -> Read | None:
    """Reads some columns of a table file.

    Args:
        uri: URI of the file; its suffix determines the format.
        wanted: names of columns, in lower case with `_` between words.
        files: the wanted columns that contain file names. If a cell of the first row is the name
            of a sound file, the table has no header; its columns are file_name and label.
        sounds: suffixes of sound files.
        warn: called with one line if the text is not UTF-8.

    Returns:
        The original names of all columns, and the wanted columns as text, with null for empty
        cells; None if no column contains file names.

    Raises:
        UserError: the file can't be read.
    """
    suffix = posixpath.splitext(uri)[1].lower()
    try:
        if suffix == ".parquet":
            return _parquet(uri, wanted, files)
        text = _decoded(storage.read_bytes(uri), uri, warn)
        if suffix in (".json", ".jsonl", ".ndjson"):
            return _json(text, suffix, wanted, files)
        return _csv(text, suffix, wanted, files, sounds)
    except (OSError, csv.Error, ValueError, RecursionError, pa.ArrowException) as error:
        raise UserError(f"{uri} can't be read: {error}") from error


def _decoded(data: bytes, uri: str, warn: Warn) -> str:
    if data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return data.decode("utf-16")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = data.decode("cp1252")
    warn(f"{uri} is not UTF-8 text: read as cp1252, as Windows writes it")
    return text


def _plain(column: object) -> str:
    """A column's name in lower case, with `_` between words."""
    return re.sub(r"[^a-z0-9]+", "_", str(column).strip().lower()).strip("_")


def _table(
    header: Sequence[str], rows: Iterable[Sequence[Any]], wanted: Collection[str]
) -> pa.Table:
    """The wanted columns of rows, which may be short; of columns with equal names, the first."""
    plain = [_plain(name) for name in header]
    places = [place for place, name in enumerate(plain) if name in wanted]
    places = [place for place in places if plain.index(plain[place]) == place]
    schema = pa.schema([(plain[place], pa.string()) for place in places])
    return to_columns((tuple(_text(row, place) for place in places) for row in rows), schema)


def _text(row: Sequence[Any], place: int) -> str | None:
    """One cell as text, or None if it is empty."""
    value = row[place] if place < len(row) else None
    if isinstance(value, list):
        value = ",".join(map(str, value))
    if isinstance(value, bool):
        value = str(value).lower()
    return None if value is None or isinstance(value, dict) else str(value).strip() or None


def _csv(
    text: str, suffix: str, wanted: Collection[str], files: Sequence[str], sounds: Collection[str]
) -> Read | None:
    declared = re.match(r'"?sep=(.)"?\r?\n', text)
    text = text[declared.end() :] if declared else text.lstrip("\r\n")
    # The header of an AudioSet table is its last comment line.
    comments = re.match(r"(?:#[^\n]*\n)*#([^\n]*\n)", text)
    if comments:
        header = (
            comments[1] if any(_plain(name) in files for name in comments[1].split(",")) else ""
        )
        text = header.lstrip() + text[comments.end() :]
    delimiters = [declared[1]] if declared else ["\t"] if suffix == ".tsv" else DELIMITERS
    firsts = {one: next(_records(text, one), []) for one in delimiters}
    delimiter = max(firsts, key=lambda one: len(firsts[one]))
    first, rows = firsts[delimiter], _records(text, delimiter)
    if any(_plain(name) in files for name in first):
        return first, _table(next(rows), rows, wanted)
    is_sound = re.compile(rf"(?i)\.(?:{'|'.join(ending[1:] for ending in sounds)})$")
    if len(first) == 1 and (parts := first[0].split()) and is_sound.search(parts[0]):
        # The format of Kaldi: `a.wav dog`.
        rows = (row[0].split(None, 1) for row in rows)
        first = parts[:2]
    place = next((place for place, cell in enumerate(first) if is_sound.search(cell.strip())), None)
    if place is None:
        return None
    label = next(
        (
            other
            for other, cell in enumerate(first)
            if other != place and re.search(r"[^\W\d]", cell) and not is_sound.search(cell.strip())
        ),
        None,
    )
    header = ["" for _ in first]
    header[place] = "file_name"
    if label is not None:
        header[label] = "label"
    named = [name for name in header if name]
    return named, _table(header, rows, wanted)


def _records(text: str, delimiter: str) -> Iterator[list[str]]:
    """The non-empty rows of a CSV file."""
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=delimiter != "\t", strict=True)
    try:
        yield from (row for row in reader if any(cell.strip() for cell in row))
    except csv.Error as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error


def _json(text: str, suffix: str, wanted: Collection[str], files: Sequence[str]) -> Read | None:
    """Reads a list of objects, or an object that maps file names to objects or to labels."""
    if suffix == ".json":
        content = json.loads(text)
    else:
        content = [json.loads(line) for line in text.splitlines() if line.strip()]
    if (
        isinstance(content, dict)
        and len(lists := [v for v in content.values() if _is_objects(v)]) == 1
    ):
        (content,) = lists
    if isinstance(content, dict) and content:
        values = list(content.values())
        if all(isinstance(value, dict) for value in values):
            content = [{"file_name": name, **value} for name, value in content.items()]
        elif all(isinstance(value, str | int) for value in values):
            content = [{"file_name": name, "label": value} for name, value in content.items()]
    if not _is_objects(content):
        return None
    header = list(dict.fromkeys(chain.from_iterable(content)))
    if not any(_plain(name) in files for name in header):
        return None
    rows = ([record.get(name) for name in header] for record in content)
    return header, _table(header, rows, wanted)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) for one in value)


def _parquet(uri: str, wanted: Collection[str], files: Sequence[str]) -> Read | None:
    with storage.open_file(uri) as file:
        parquet = pq.ParquetFile(file)
        header = parquet.schema_arrow.names
        if is_audio_parquet(parquet.schema_arrow) or not {*map(_plain, header)} & {*files}:
            return None
        table = parquet.read([name for name in header if _plain(name) in wanted])
    return header, pa.table(
        {_plain(name): as_text(table[name], name, uri) for name in table.column_names}
    )


def as_text(column: pa.ChunkedArray, name: str, source: str) -> pa.ChunkedArray:
    """Converts a column of names to text.

    Raises:
        UserError: a value of the column's type is not a single name.
    """
    try:
        return column.cast(pa.string())
    except pa.ArrowException as error:
        raise UserError(
            f"{source}: the column '{name}' holds {column.type}, not one name per clip"
        ) from error
