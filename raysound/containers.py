"""Corpora packed into few large files: tar (WebDataset), and Parquet that holds the bytes."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from raysound.config import UserError

# Where Parquet files keep the sound, and where the label; Hugging Face's names first.
AUDIO_COLUMNS = ("audio", "wav", "flac", "mp3", "ogg", "bytes")
LABEL_COLUMNS = ("label", "labels", "category", "class", "class_label")
# Rows of a Parquet file whose sounds are decoded from it at a time.
ROWS_TOGETHER = 16

Row = dict[str, Any]


def tar_clips(file: BinaryIO, suffixes: frozenset[str]) -> Iterator[Row]:
    """The sounds of a tar file: members of one name, but for the endings, are one sample.

    The label stands in `name.cls`, `name.txt` or, as `label`, in `name.json` (`fold`, `split` and
    `group` too); without any, the folder that the sound stands in is its label.

    Args:
        file: an uncompressed tar file, open for reading.
        suffixes: endings of sounds, in small letters.

    Yields:
        name, label (None if there is none), fold, split, group, offset and size (bytes).

    Raises:
        UserError: no tar file, one that is compressed, or one that ends too early.
    """
    sample: Row = {}
    try:
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                folder, _, base = member.name.removeprefix("./").rpartition("/")
                if not member.isfile() or base.startswith("."):
                    continue
                stem, _, suffix = base.partition(".")
                suffix = f".{suffix.lower()}"
                if (folder, stem) != sample.get("key"):
                    yield from _finished(sample)
                    sample = {"key": (folder, stem), "sounds": [], "label": None}
                if suffix in suffixes:
                    name = member.name.removeprefix("./")
                    place = {"offset": member.offset_data, "size": member.size}
                    sample["sounds"].append({"name": name, **place})
                elif suffix in {".cls", ".txt", ".json"}:
                    content = tar.extractfile(member)
                    sample.update(_labels(suffix, content.read() if content else b""))
    except (tarfile.TarError, EOFError) as error:
        raise UserError(
            f"no tar file that can be read ({error}); compressed ones can't be"
        ) from error
    yield from _finished(sample)


def _labels(suffix: str, content: bytes) -> Row:
    text = content.decode("utf-8", "replace").strip()
    if suffix != ".json":
        return {"label": text}
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        key: str(values[key])
        for key in ("label", "fold", "split", "group")
        if values.get(key) is not None
    }


def _finished(sample: Row) -> Iterator[Row]:
    for sound in sample.get("sounds", []):
        folder = sample["key"][0].rpartition("/")[2]
        yield {
            **{key: sample.get(key) for key in ("fold", "split", "group")},
            "label": sample["label"] or folder or None,
            **sound,
        }


def is_audio_parquet(schema: pa.Schema) -> bool:
    """True where a Parquet file holds sounds, not only their paths."""
    return _audio_column(schema) is not None


def _audio_column(schema: pa.Schema) -> str | None:
    """The path of the column with the bytes, such as `audio.bytes`."""
    for name in AUDIO_COLUMNS:
        if name not in schema.names:
            continue
        kind = schema.field(name).type
        if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
            return f"{name}.bytes"
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return name
    return None


def parquet_clips(file: BinaryIO) -> pa.Table:
    """The rows of a Parquet file with sounds, the bytes left out.

    Returns:
        name (of the sound, or null), label, fold, split and group as text, offset (the row).

    Raises:
        UserError: no label.
    """
    parquet = pq.ParquetFile(file)
    schema = parquet.schema_arrow
    label = next((name for name in LABEL_COLUMNS if name in schema.names), None)
    if label is None:
        raise UserError(f"no label column ({', '.join(LABEL_COLUMNS)}) beside the sounds")
    audio = str(_audio_column(schema)).partition(".")[0]
    has_path = pa.types.is_struct(schema.field(audio).type) and any(
        field.name == "path" for field in schema.field(audio).type
    )
    extra = [name for name in ("fold", "split", "group") if name in schema.names]
    wanted = [label, *extra, *([f"{audio}.path"] if has_path else [])]
    table = parquet.read(columns=wanted)
    count = len(table)
    nothing = pa.nulls(count, pa.string())
    names = table[audio].combine_chunks().field("path") if has_path and count else nothing
    return pa.table(
        {
            "name": names,
            "label": _class_names(table[label], schema, label),
            **{
                name: table[name].cast(pa.string()) if name in extra else nothing
                for name in ("fold", "split", "group")
            },
            "offset": pa.array(range(count), pa.int64()),
        }
    )


def _class_names(column: pa.ChunkedArray, schema: pa.Schema, label: str) -> pa.ChunkedArray:
    """Hugging Face keeps classes as numbers, and their names in the metadata."""
    note = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
    names = note.get("info", {}).get("features", {}).get(label, {}).get("names")
    if not names or not pa.types.is_integer(column.type):
        return column.cast(pa.string())
    known = [index if 0 <= index < len(names) else None for index in column.to_pylist()]
    return pa.chunked_array([pa.array(names, pa.string()).take(pa.array(known, pa.int64()))])


def parquet_sounds(file: BinaryIO, rows: Sequence[int]) -> Iterator[bytes | None]:
    """The bytes of some rows, which ascend, of a Parquet file with sounds."""
    parquet = pq.ParquetFile(file)
    column = str(_audio_column(parquet.schema_arrow))
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
