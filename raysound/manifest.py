"""A corpus on disk → one table of clips, its own folds, groups and split kept."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import os
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.config import UserError
from raysound.containers import HIDDEN, is_audio_parquet, parquet_clips, tar_clips

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
        ("offset", pa.int64()),
    ]
)
# What a reader of a corpus finds; `name` is relative to the corpus.
FOUND = pa.schema(
    [("name", pa.string()), *((name, pa.string()) for name in ("label", "fold", "split", "group"))]
)
LISTING = pa.schema([("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64())])
AUDIO_SUFFIXES = frozenset({".wav", ".flac", ".ogg", ".mp3", ".aif", ".aiff"})
SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {"val": "validation", "valid": "validation", "dev": "validation"} | {
    split: split for split in SPLITS
}
# Rows that are Python objects at a time; all the others stand in Arrow's columns.
ROWS_AT_ONCE = 1 << 16
# Container files whose contents are listed at a time.
LISTED_AT_ONCE = 8
# Bytes of a tar file in an object store that are fetched at a time to find its sounds.
TAR_BUFFER = 4 << 20

Row = dict[str, Any]
# Name, path or URI, size in bytes, modification time in ns.
Container = tuple[str, str, int, int]
Tell = Callable[[str], object]


def read_corpus(path: str, tell: Tell = logger.warning) -> pa.Table:
    """Lists the clips of a corpus as a table of SCHEMA, in an order that mixes the classes.

    A corpus is a manifest of ours (`.parquet`), a folder with `metadata.csv`, `esc50.csv` or
    `UrbanSound8K.csv`, a folder a class, below `train`, `validation` and `test` or not, or a
    folder of tar files (WebDataset) or of Parquet files with the sounds inside (Hugging Face).
    `split` is the corpus's own or null. `size` is in bytes, -1 where the file is missing (of a
    row in Parquet: its share of the file); `modified` in ns. `offset` is null for a file of its
    own, else where the clip begins: a byte of a tar file, a row of a Parquet file. Clips in such
    containers stay in the containers' order.

    Args:
        path: folder or manifest, local or a URI.
        tell: takes a line about what was left out.

    Raises:
        UserError: no such folder, no sound in it, no label, or a file listed twice.
    """
    kind = {".parquet": "manifest", ".tar": "tar file"}.get(posixpath.splitext(path)[1], "folder")
    try:
        is_file = kind != "folder" and storage.stat_files([path])[0][0] >= 0
        is_folder = not is_file and storage.is_folder(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} can't be reached: {error}") from error
    if is_file:
        return _one_file(path)
    if not is_folder:
        raise UserError(f"{path}: no such {kind}")
    listing = _columns(
        ((_utf8(name), size, modified) for name, size, modified in storage.scan(path)), LISTING
    )
    for table_name, reader in READERS.items():
        if pc.any(pc.equal(listing["name"], table_name)).as_py():
            uri = storage.join(path, table_name)
            rows = _columns(map(tuple, map(dict.values, reader(_read_csv(uri), uri))), FOUND)
            return _finish(rows, listing, path, tell)
    sounds = listing.filter(_is_audio(listing["name"]))
    if not len(sounds):
        return _packed(path, _containers(listing, path, tell))
    return _finish(_folder_per_class(sounds["name"], path), listing, path, tell)


def _columns(rows: Iterable[tuple[Any, ...]], schema: pa.Schema) -> pa.Table:
    """Rows → columns, some at a time: a million rows never are a million Python objects."""
    rows = iter(rows)
    batches = []
    while some := list(islice(rows, ROWS_AT_ONCE)):
        arrays = [
            pa.array(values, field.type)
            for values, field in zip(zip(*some, strict=True), schema, strict=True)
        ]
        batches.append(pa.record_batch(arrays, schema=schema))
    return pa.Table.from_batches(batches, schema)


def _each(column: pa.ChunkedArray, function: Callable[[Any], Any], kind: pa.DataType) -> Any:
    """A function of every value, as a column; again some at a time."""
    chunks = [
        pa.array([function(value) for value in chunk.slice(start, ROWS_AT_ONCE).to_pylist()], kind)
        for chunk in column.chunks
        for start in range(0, len(chunk), ROWS_AT_ONCE)
    ]
    return pa.chunked_array(chunks, kind)


def _read_csv(uri: str) -> Iterator[dict[str, str]]:
    try:
        text = storage.read_bytes(uri).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 text: {error}") from error
    return csv.DictReader(io.StringIO(text, newline=""), skipinitialspace=True)


def _audio_folder(records: Iterable[dict[str, str]], source: str) -> Iterator[Row]:
    """Hugging Face's AudioFolder: `file_name`, `label`; `fold`, `split`, `group` if there."""
    return (
        _row(
            _field(record, "file_name", source),
            label=_field(record, "label", source),
            fold=record.get("fold"),
            split=record.get("split"),
            group=record.get("group"),
        )
        for record in records
    )


def _esc50(records: Iterable[dict[str, str]], source: str) -> Iterator[Row]:
    """ESC-50's table; all clips of one Freesound recording (`src_file`) are one group."""
    return (
        _row(
            f"audio/{_field(record, 'filename', source)}",
            label=_field(record, "category", source),
            fold=_field(record, "fold", source),
            group=record.get("src_file"),
        )
        for record in records
    )


def _urbansound8k(records: Iterable[dict[str, str]], source: str) -> Iterator[Row]:
    """UrbanSound8K's table; all slices of one Freesound recording (`fsID`) are one group."""
    return (
        _row(
            f"audio/fold{_field(record, 'fold', source)}"
            f"/{_field(record, 'slice_file_name', source)}",
            label=_field(record, "class", source),
            fold=_field(record, "fold", source),
            group=record.get("fsID"),
        )
        for record in records
    )


READERS: Mapping[str, Callable[[Iterable[dict[str, str]], str], Iterator[Row]]] = {
    "metadata.csv": _audio_folder,
    "meta/esc50.csv": _esc50,
    "metadata/UrbanSound8K.csv": _urbansound8k,
}


def _folder_per_class(names: pa.ChunkedArray, path: str) -> pa.Table:
    first = pc.utf8_lower(pc.replace_substring_regex(names, "/.*", ""))
    has_splits = pc.all(
        pc.and_(pc.is_in(first, pa.array([*SPLIT_NAMES])), pc.match_substring(names, "/"))
    ).as_py()
    below = pc.replace_substring_regex(names, "^[^/]*/", "") if has_splits else names
    in_class = pc.match_substring(below, "/")
    if not pc.all(in_class).as_py():
        bare = names.filter(pc.invert(in_class))
        raise UserError(
            f"{path}: {len(bare)} sound files stand in no class folder, '{bare[0]}' among them; "
            "put each into a folder named after its class, or list them in a metadata.csv with "
            "the columns file_name and label"
        )
    nothing = pa.nulls(len(names), pa.string())
    label = pc.replace_substring_regex(below, "/.*", "")
    split = first if has_splits else nothing
    return pa.table([names, label, nothing, split, nothing], schema=FOUND)


def _is_audio(names: pa.ChunkedArray) -> pa.ChunkedArray:
    hidden = pc.match_substring_regex(names, HIDDEN)
    endings = "|".join(suffix[1:] for suffix in sorted(AUDIO_SUFFIXES))
    sounds = pc.match_substring_regex(names, rf"(?i)\.({endings})$")
    return pc.and_not(sounds, hidden)


def _row(
    path: str,
    label: str | None,
    fold: str | None = None,
    split: str | None = None,
    group: str | None = None,
) -> Row:
    optional = {"fold": fold or None, "split": split or None, "group": group or None}
    return {"name": posixpath.normpath(path), "label": label, **optional}


def _field(record: Mapping[str, str], name: str, source: str) -> str:
    value = (record.get(name) or "").strip()
    if not value:
        raise UserError(f"{source}: a row has no '{name}': {dict(record)}")
    return value


def _containers(listing: pa.Table, path: str, tell: Tell) -> list[Container]:
    """Tar files, or Parquet files with sounds inside."""
    visible = [
        (name, storage.join(path, name), size, modified)
        for name, size, modified in sorted(zip(*listing.to_pydict().values(), strict=True))
        if name.endswith((".tar", ".parquet")) and not re.search(HIDDEN, name)
    ]
    tars = [container for container in visible if container[0].endswith(".tar")]
    parquets = [container for container in visible if container[0].endswith(".parquet")]
    holds_sounds = any(is_audio_parquet(_schema(uri)) for _, uri, *_ in parquets)
    if tars and holds_sounds:
        tell(
            f"{path}: {len(parquets)} Parquet files stand beside the tar files and are left out, "
            f"'{parquets[0][0]}' among them"
        )
    if tars or holds_sounds:
        return tars or parquets
    raise UserError(
        f"{path} holds no sound files ({', '.join(sorted(AUDIO_SUFFIXES))}), no tar files with "
        "sounds and no Parquet files with sounds"
    )


def _schema(uri: str) -> pa.Schema:
    try:
        with storage.open_file(uri) as file:
            return pq.read_schema(file)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{uri} is no Parquet file: {error}") from error


def _packed(path: str, containers: list[Container]) -> pa.Table:
    """The clips of a corpus that is packed into tar or Parquet files."""
    with ThreadPoolExecutor(LISTED_AT_ONCE) as pool:
        tables = list(pool.map(_packed_file, containers))
    rows = pa.concat_tables(tables)
    if not len(rows):
        raise UserError(f"{path} holds no sounds in its {len(containers)} tar or Parquet files")
    return _checked(rows, path)


def _packed_file(container: Container) -> pa.Table:
    name, uri, size, modified = container
    try:
        with storage.open_file(uri) as file:
            if name.endswith(".tar"):
                # An object store would be asked for every header alone.
                tar = io.BufferedReader(cast(Any, file), TAR_BUFFER) if "://" in uri else file
                found = pa.Table.from_pylist(
                    list(tar_clips(tar, AUDIO_SUFFIXES)),
                    schema=pa.schema([*FOUND, ("offset", pa.int64()), ("size", pa.int64())]),
                )
            else:
                found = parquet_clips(file)
                share = size // max(len(found), 1)
                found = found.append_column("size", pa.array([share] * len(found), pa.int64()))
    except (UserError, OSError, pa.ArrowException) as error:
        raise UserError(f"{uri}: {error}") from error
    names = found["name"]
    if not name.endswith(".tar"):
        # Names inside may be missing or the same: the row's number tells them apart.
        rows = found["offset"].cast(pa.string())
        names = pc.binary_join_element_wise(
            rows, names, "-", null_handling="skip", null_replacement=""
        )
    split = found["split"]
    named = re.match(r"(?:.*/)?(train|validation|valid|val|dev|test)[-./]", name)
    if named and not name.endswith(".tar"):
        split = pc.fill_null(split, named[1])
    count = len(found)
    clip_id = pc.binary_join_element_wise(pa.scalar(name), names, "/")
    columns = {
        "clip_id": clip_id,
        "path": pa.array([uri] * count, pa.string()),
        "label": found["label"],
        "fold": found["fold"],
        "split": split,
        "group": pc.coalesce(found["group"], clip_id),
        "size": found["size"],
        "modified": pa.array([modified] * count, pa.int64()),
        "offset": found["offset"],
    }
    return pa.table(columns, schema=SCHEMA)


def _one_file(path: str) -> pa.Table:
    """A tar file, one Parquet file with sounds, or a manifest of ours."""
    if path.endswith(".parquet") and not is_audio_parquet(_schema(path)):
        return _own_manifest(storage.read_table(path), path)
    name = storage.locate(path)[1].rpartition("/")[2]
    return _packed(path, [(name, path, *storage.stat_files([path])[0])])


def _own_manifest(table: pa.Table, path: str) -> pa.Table:
    missing = {"path", "label"} - set(table.column_names)
    if missing:
        raise UserError(f"{path} lacks the columns {', '.join(sorted(missing))}")
    if not len(table):
        raise UserError(f"{path} lists no clips")
    nothing = pa.chunked_array([pa.nulls(len(table), pa.string())])
    text = {
        name: table[name].cast(pa.string()) if name in table.column_names else nothing
        for name in ("clip_id", "path", "label", "fold", "split", "group")
    }
    empty = pc.fill_null(pc.equal(text["path"], ""), True)
    if pc.any(empty).as_py():
        row = table.filter(empty).slice(0, 1).to_pylist()[0]
        raise UserError(f"{path}: a row has no 'path': {row}")
    folder = path.rpartition("/")[0] or ("/" if path.startswith("/") else os.getcwd())

    def absolute(name: str) -> str:
        return name if "://" in name or name.startswith("/") else storage.join(folder, name)

    clip_id = pc.coalesce(
        pc.if_else(pc.equal(text["clip_id"], ""), None, text["clip_id"]), text["path"]
    )
    paths = _each(text["path"], absolute, pa.string())
    files = pc.unique(paths)
    stats = _columns(
        (
            (uri, *stat)
            for start in range(0, len(files), ROWS_AT_ONCE)
            for some in [files.slice(start, ROWS_AT_ONCE).to_pylist()]
            for uri, stat in zip(some, storage.stat_files(some), strict=True)
        ),
        LISTING,
    )
    place = pc.index_in(paths, stats["name"].combine_chunks())
    size, offset = stats["size"].take(place), nothing.cast(pa.int64())
    if {"offset", "size"} <= set(table.column_names):
        offset = table["offset"].cast(pa.int64())
        size = pc.if_else(pc.is_valid(offset), table["size"].cast(pa.int64()), size)
    columns = {
        **text,
        "clip_id": clip_id,
        "path": paths,
        "group": pc.coalesce(text["group"], clip_id),
        "size": size,
        "modified": stats["modified"].take(place),
        "offset": offset,
    }
    return _checked(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), path)


def _finish(rows: pa.Table, listing: pa.Table, root: str, tell: Tell) -> pa.Table:
    """What a reader found, with paths, sizes and times, checked and in order."""
    if not len(rows):
        raise UserError(f"{root} lists no clips")
    left = listing["name"].filter(_is_audio(listing["name"]))
    left = left.filter(pc.invert(pc.is_in(left, rows["name"].combine_chunks())))
    if len(left):
        tell(
            f"{root}: {len(left)} sound files are in no table row and are left out, "
            f"'{pc.min(left)}' among them"
        )
    tars = listing["name"].filter(pc.ends_with(listing["name"], ".tar"))
    tars = tars.filter(pc.invert(pc.match_substring_regex(tars, HIDDEN)))
    if len(tars):
        tell(
            f"{root}: {len(tars)} tar files stand beside the sound files and are left out, "
            f"'{pc.min(tars)}' among them"
        )
    place = pc.index_in(rows["name"], listing["name"].combine_chunks())
    columns = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        "clip_id": rows["name"],
        "path": _each(rows["name"], lambda name: storage.join(root, name), pa.string()),
        "group": pc.coalesce(rows["group"], rows["name"]),
        "size": pc.fill_null(listing["size"].take(place), -1),
        "modified": pc.fill_null(listing["modified"].take(place), 0),
        "offset": pa.nulls(len(rows), pa.int64()),
    }
    return _checked(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), root)


def _checked(table: pa.Table, source: str) -> pa.Table:
    """Refuses what can't be judged, and brings the clips into their order."""
    if pc.count_distinct(table["clip_id"]).as_py() < len(table):
        counts = pc.value_counts(table["clip_id"])
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise UserError(f"{source}: '{twice[0]}' is listed twice")
    unlabelled = table.filter(pc.fill_null(pc.equal(table["label"], ""), True))
    if len(unlabelled):
        raise UserError(f"{source}: '{unlabelled['clip_id'][0]}' has no label")
    for split in pc.unique(table["split"]).to_pylist():
        if split is not None and split not in SPLIT_NAMES:
            raise UserError(f"{source}: '{split}' is no split: use {', '.join(SPLITS)}")
    split = _each(table["split"], SPLIT_NAMES.get, pa.string())
    table = table.set_column(table.schema.get_field_index("split"), SCHEMA.field("split"), split)
    packed = table.filter(pc.is_valid(table["offset"]))
    loose = table.filter(pc.is_null(table["offset"]))
    # By a hash of the name: every shard is then a fair sample of all classes. What is packed is
    # read in the order in which it lies.
    order = np.argsort(_each(loose["clip_id"], _hash, pa.uint64()).to_numpy(), kind="stable")
    packed = packed.sort_by([("path", "ascending"), ("offset", "ascending")])
    return pa.concat_tables([loose.take(order), packed]).combine_chunks()


def _hash(clip_id: str) -> int:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big")


def _utf8(text: str) -> str:
    """Spells out the bytes of a file name that are no UTF-8; such a file ends as a reject."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
