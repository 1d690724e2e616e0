"""A corpus on disk → one table of clips, its own folds, groups and split kept."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import posixpath
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import PurePosixPath

import pyarrow as pa

from raysound import storage
from raysound.config import UserError

logger = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("clip_id", pa.string()),
        ("path", pa.string()),
        ("label", pa.string()),
        ("fold", pa.string()),
        ("split", pa.string()),
        ("group", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.int64()),
    ]
)
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"})
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"} | {
    split: split for split in SPLITS
}

Row = dict[str, str | None]
Listing = Mapping[str, tuple[int, int]]


def read_corpus(path: str) -> pa.Table:
    """Lists the clips of a corpus as a table of SCHEMA, in an order that mixes the classes.

    A corpus is a manifest of ours (`.parquet`), a folder with `metadata.csv`, `esc50.csv` or
    `UrbanSound8K.csv`, or a folder a class, below `train`, `validation` and `test` or not.
    `split` is the corpus's own or null. `size` is in bytes, -1 where the file is missing;
    `modified` in ns.

    Raises:
        UserError: no such folder, no sound in it, no label, or a file listed twice.
    """
    if path.endswith(".parquet"):
        if not storage.exists(path):
            raise UserError(f"{path}: no such manifest")
        return _own_manifest(path)
    if not storage.is_folder(path):
        raise UserError(f"{path}: no such folder")
    listing = {name: (size, modified) for name, size, modified in storage.list_files(path)}
    for table_name, reader in READERS.items():
        if table_name in listing:
            uri = storage.join(path, table_name)
            rows = reader(_read_csv(uri), uri)
            break
    else:
        rows = _folder_per_class(listing, path)
    _tell_what_is_left_out(rows, listing, path)
    return _to_table(rows, listing, path)


def _own_manifest(path: str) -> pa.Table:
    try:
        table = storage.read_table(path)
    except pa.ArrowInvalid as error:
        raise UserError(f"{path} is no Parquet file") from error
    missing = {"path", "label"} - set(table.column_names)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    rows = [
        {
            key: None if row.get(key) is None else str(row[key])
            for key in ("clip_id", "path", "label", "fold", "split", "group")
        }
        for row in table.to_pylist()
    ]
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else os.getcwd())
    for row in rows:
        if not row["path"]:
            raise UserError(f"{path}: a row has no 'path': {row}")
        row["clip_id"] = row["clip_id"] or row["path"]
        if not ("://" in row["path"] or row["path"].startswith("/")):
            row["path"] = storage.join(folder, row["path"])
    listing = storage.stat_files([str(row["path"]) for row in rows])
    return _to_table(rows, listing, "")


def _read_csv(uri: str) -> list[dict[str, str]]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 text: {error}") from error
    return list(csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True))


def _audio_folder(records: Iterable[dict[str, str]], source: str) -> list[Row]:
    """Hugging Face's AudioFolder: `file_name`, `label`; `fold`, `split`, `group` if there."""
    return [
        _row(
            _field(record, "file_name", source),
            label=_field(record, "label", source),
            fold=record.get("fold"),
            split=record.get("split"),
            group=record.get("group"),
        )
        for record in records
    ]


def _esc50(records: Iterable[dict[str, str]], source: str) -> list[Row]:
    """ESC-50's table; all clips of one Freesound recording (`src_file`) are one group."""
    return [
        _row(
            f"audio/{_field(record, 'filename', source)}",
            label=_field(record, "category", source),
            fold=_field(record, "fold", source),
            group=record.get("src_file"),
        )
        for record in records
    ]


def _urbansound8k(records: Iterable[dict[str, str]], source: str) -> list[Row]:
    """UrbanSound8K's table; all slices of one Freesound recording (`fsID`) are one group."""
    return [
        _row(
            f"audio/fold{_field(record, 'fold', source)}"
            f"/{_field(record, 'slice_file_name', source)}",
            label=_field(record, "class", source),
            fold=_field(record, "fold", source),
            group=record.get("fsID"),
        )
        for record in records
    ]


READERS: Mapping[str, Callable[[Iterable[dict[str, str]], str], list[Row]]] = {
    "metadata.csv": _audio_folder,
    "meta/esc50.csv": _esc50,
    "metadata/UrbanSound8K.csv": _urbansound8k,
}


def _folder_per_class(listing: Listing, path: str) -> list[Row]:
    names = [name for name in listing if _is_audio(name)]
    if not names:
        raise UserError(f"{path} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))})")
    parts = {name: PurePosixPath(name).parts for name in names}
    has_splits = {part[0].lower() for part in parts.values()} <= SPLIT_NAMES.keys()
    depth = 1 if has_splits else 0
    bare = [name for name in names if len(parts[name]) < depth + 2]
    if bare:
        raise UserError(
            f"{path}: {len(bare)} sound files stand in no class folder, '{bare[0]}' among them; "
            "put each into a folder named after its class, or list them in a metadata.csv with "
            "the columns file_name and label"
        )
    return [
        _row(name, label=parts[name][depth], split=parts[name][0].lower() if has_splits else None)
        for name in names
    ]


def _is_audio(name: str) -> bool:
    path = PurePosixPath(name)
    # Names that open with a dot are other programs' notes; macOS leaves `._x.wav` beside `x.wav`.
    hidden = any(part.startswith(".") for part in path.parts)
    return path.suffix.lower() in AUDIO_SUFFIXES and not hidden


def _row(
    path: str,
    label: str | None,
    fold: str | None = None,
    split: str | None = None,
    group: str | None = None,
) -> Row:
    path = posixpath.normpath(path)
    optional = {"fold": fold or None, "split": split or None, "group": group or None}
    return {"clip_id": path, "path": path, "label": label, **optional}


def _field(record: Mapping[str, str], name: str, source: str) -> str:
    value = (record.get(name) or "").strip()
    if not value:
        raise UserError(f"{source}: a row has no '{name}': {dict(record)}")
    return value


def _tell_what_is_left_out(rows: list[Row], listing: Listing, path: str) -> None:
    taken = {row["path"] for row in rows}
    left = [name for name in listing if name not in taken and _is_audio(name)]
    if left:
        logger.warning(
            "%s: %d sound files are in no table row and are left out, '%s' among them",
            path, len(left), left[0],
        )  # fmt: skip


def _to_table(rows: list[Row], listing: Listing, root: str) -> pa.Table:
    if not rows:
        raise UserError(f"{root or 'the manifest'} lists no clips")
    ids = [str(row["clip_id"]) for row in rows]
    twice = [clip_id for clip_id, count in Counter(ids).items() if count > 1]
    if twice:
        raise UserError(f"{root or 'the manifest'}: '{twice[0]}' is listed twice")
    for row in rows:
        if not row["label"]:
            raise UserError(f"{root or 'the manifest'}: '{row['clip_id']}' has no label")
        if row["split"] is not None and row["split"] not in SPLIT_NAMES:
            raise UserError(
                f"{root or 'the manifest'}: '{row['split']}' is no split: use {', '.join(SPLITS)}"
            )
    # By a hash of the name: every shard is then a fair sample of all classes, whatever is added.
    rows = sorted(rows, key=lambda row: hashlib.sha256(_utf8(row["clip_id"]).encode()).digest())
    columns: dict[str, list[object]] = {name: [] for name in SCHEMA.names}
    for row in rows:
        size, modified = listing.get(str(row["path"]), (-1, 0))
        columns["clip_id"].append(_utf8(row["clip_id"]))
        columns["path"].append(_utf8(storage.join(root, str(row["path"])) if root else row["path"]))
        columns["label"].append(_utf8(row["label"]))
        columns["fold"].append(row["fold"])
        columns["split"].append(SPLIT_NAMES[row["split"]] if row["split"] else None)
        columns["group"].append(row["group"] or _utf8(row["clip_id"]))
        columns["size"].append(size)
        columns["modified"].append(modified)
    return pa.table(columns, schema=SCHEMA)


def _utf8(text: str | None) -> str:
    """Spells out the bytes of a file name that are no UTF-8; such a file ends as a reject."""
    return str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
