"""Reads corpora in few large files: tar (WebDataset), and Parquet with embedded sound files."""

from __future__ import annotations

import json
import posixpath
import re
import tarfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound.corpora.vocabulary import HIDDEN, ROLES, quoted, split_word, utf8
from raysound.errors import UserError

# Columns of Parquet files for the sound; the name of Hugging Face comes first.
AUDIO_COLUMNS = ("audio", "wav", "flac", "mp3", "ogg", "bytes")
# Metadata files of a sound in a tar file; a later suffix takes precedence over an earlier one.
NOTE_SUFFIXES = (".txt", ".json", ".cls")
# Maximum number of zeros after the last member of a tar file; more mean a partial download.
LARGEST_PADDING = 1 << 20
# Rows of a Parquet file that are read at a time.
ROWS_TOGETHER = 16

Row = dict[str, Any]


def tar_clips(
    file: BinaryIO, suffixes: frozenset[str], other: Callable[[str], object] = lambda name: None
) -> Iterator[Row]:
    """Lists the sounds of a tar file. Members with the same name up to the first dot are a sample.

    The label is the content of `name.cls`, or `label` in `name.json` (which may also contain
    `fold`, `split` and `group`), or the content of `name.txt`, in this order of precedence. If
    none of them exists, the label is the folder of the sound; if each folder has one split folder
    above or below it, this is the split. If a sample has several sounds, such as `name.left.wav`,
    each sound may have its own `name.left.cls`.

    Args:
        file: an uncompressed tar file, open for reading.
        suffixes: suffixes of sound files, in lower case.
        other: called with the name of each file that is neither a sound nor its metadata.

    Yields:
        name, label (None if there is none), fold, split, group, offset and size (bytes).

    Raises:
        UserError: the file is not a tar file, or is compressed, damaged or truncated, or a sound
            is not contiguous in the file.
    """
    sounds: list[Row] = []
    notes: dict[str, Row] = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                name = utf8(member.name.removeprefix("./"))
                stem, suffix = posixpath.splitext(name)
                suffix = suffix.lower()
                if re.search(HIDDEN, name) or member.isdir():
                    continue
                if suffix in suffixes:
                    if not member.isreg() or member.issparse():
                        raise UserError(
                            f"{quoted(name)} is a link or has holes: pack it again, with tar's "
                            "options --dereference and --hard-dereference, without --sparse"
                        )
                    sounds.append({"name": name, "offset": member.offset_data, "size": member.size})
                elif suffix in NOTE_SUFFIXES and (content := tar.extractfile(member)):
                    notes[stem + suffix] = _note(suffix, content.read())
                else:
                    other(name)
            _refuse_cut(file, tar.offset)
    except (tarfile.TarError, EOFError, KeyError, ValueError) as error:
        raise UserError(
            f"not a readable tar file ({error}); compressed tar files are not supported"
        ) from error
    for sound in sounds:
        stem = posixpath.splitext(sound["name"])[0]
        folder, _, base = stem.rpartition("/")
        sample = stem[: len(stem) - len(base)] + base.partition(".")[0]
        sound["folder"] = folder
        for known in (sample, stem):
            for suffix in NOTE_SUFFIXES:
                sound |= notes.get(known + suffix, {})
    of_folder = _folders(sound["folder"] for sound in sounds if "label" not in sound)
    for sound in sounds:
        label, split = of_folder.get(sound.pop("folder"), (None, None))
        yield {"label": label, "fold": None, "split": split, "group": None, **sound}


def _folders(folders: Iterable[str]) -> dict[str, tuple[str | None, str | None]]:
    """Folder → the label and the split in its path."""
    parts = {folder: folder.split("/") for folder in folders}
    splits = {folder: [part for part in path if split_word(part)] for folder, path in parts.items()}
    if all(len(found) == 1 < len(parts[folder]) for folder, found in splits.items()):
        return {
            folder: ([part for part in path if part not in splits[folder]][-1], splits[folder][0])
            for folder, path in parts.items()
        }
    return {folder: (path[-1] or None, None) for folder, path in parts.items()}


def _refuse_cut(file: BinaryIO, end: int) -> None:
    """Raises UserError unless only zeros follow; `tarfile` ends silently at a bad header."""
    file.seek(end)
    rest = file.read(LARGEST_PADDING + 1)
    if not tarfile.BLOCKSIZE <= len(rest) <= LARGEST_PADDING or rest.strip(b"\0"):
        raise UserError(f"truncated, damaged or concatenated: can't be read after byte {end}")


def _note(suffix: str, content: bytes) -> Row:
    """The non-empty fields in a metadata file of a sound."""
    text = content.decode("utf-8-sig", "replace").strip()
    values: Any = {"label": text}
    if suffix == ".json":
        try:
            values = json.loads(text)
        except ValueError:
            return {}
    if not isinstance(values, dict):
        return {}
    known = {key: values.get(key) for key in ("label", "fold", "split", "group")}
    return {
        # In JSON's spelling: `true`, not Python's True.
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in known.items()
        if isinstance(value, str | int | float) and value != ""
    }


def is_audio_parquet(schema: pa.Schema) -> bool:
    """True if a Parquet file contains sounds, not only their paths."""
    return _audio_column(schema) is not None


def _audio_column(schema: pa.Schema) -> str | None:
    """The path of the column with the bytes, such as `audio.bytes`, or None."""
    for name in AUDIO_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if _is_bytes(kind):
            return name
        if pa.types.is_struct(kind) and any(
            field.name == "bytes" and _is_bytes(field.type) for field in kind
        ):
            return f"{name}.bytes"
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)


def _sound_column(schema: pa.Schema) -> str:
    column = _audio_column(schema)
    if column is None:
        raise UserError(f"no column with the bytes of sounds ({', '.join(AUDIO_COLUMNS)})")
    return column


def parquet_clips(file: BinaryIO) -> pa.Table:
    """Lists the rows of a Parquet file with sounds, without the bytes.

    Returns:
        name (of the sound, or null), label (null without a label column), fold,
        split and group as text, offset (the row).

    Raises:
        UserError: the file contains no sounds.
    """
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    audio = _sound_column(schema).partition(".")[0]
    label = next((name for name in ROLES["label"] if _holds_one_name(schema, name)), None)
    has_path = pa.types.is_struct(schema.field(audio).type) and any(
        field.name == "path" for field in schema.field(audio).type
    )
    extra = [name for name in ("fold", "split", "group") if name in schema.names]
    wanted = [*filter(None, [label]), *extra, *([f"{audio}.path"] if has_path else [])]
    table = parquet.read(columns=wanted)
    count = len(table)
    nothing = pa.nulls(count, pa.string())
    names = table[audio].combine_chunks().field("path") if has_path and count else nothing
    return pa.table(
        {
            "name": names.cast(pa.string()),
            "label": _class_names(table[label], schema, label) if label else nothing,
            **{
                name: table[name].cast(pa.string()) if name in extra else nothing
                for name in ("fold", "split", "group")
            },
            "offset": pa.array(range(count), pa.int64()),
        }
    )


def _holds_one_name(schema: pa.Schema, column: str) -> bool:
    """True if a column exists and its values are no lists or structs."""
    return column in schema.names and not pa.types.is_nested(schema.field(column).type)


def _class_names(column: pa.ChunkedArray, schema: pa.Schema, label: str) -> pa.ChunkedArray:
    """Maps class numbers to the names that Hugging Face stores in the metadata."""
    names: list[str] = []
    if pa.types.is_integer(column.type):
        with suppress(KeyError, TypeError, ValueError):
            note = json.loads((schema.metadata or {})[b"huggingface"])
            names = note["info"]["features"][label]["names"]
    if not names:
        return column.cast(pa.string())
    is_known = pc.and_(pc.greater_equal(column, 0), pc.less(column, len(names)))
    return pa.array(names, pa.string()).take(pc.if_else(is_known, column, None))


def parquet_sounds(file: BinaryIO, rows: Sequence[int]) -> Iterator[bytes | None]:
    """Yields the bytes of some rows of a Parquet file with sounds.

    Ends early if the file has fewer rows.

    Args:
        file: open for reading.
        rows: row numbers, ascending.

    Raises:
        UserError: the file contains no sounds.
    """
    parquet = pq.ParquetFile(file)
    column = _sound_column(parquet.schema_arrow)
    wanted, first = list(rows), 0
    for group in range(parquet.num_row_groups):
        last = first + parquet.metadata.row_group(group).num_rows
        if wanted and wanted[0] < last:
            for batch in parquet.iter_batches(ROWS_TOGETHER, [group], columns=[column]):
                sounds = batch.column(0)
                if "." in column:
                    sounds = sounds.field("bytes")
                while wanted and wanted[0] < first + len(batch):
                    yield sounds[wanted.pop(0) - first].as_py()
                first += len(batch)
                if not wanted:
                    return
        first = last
