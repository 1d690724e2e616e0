"""Builds, checks and sorts the rows of a manifest."""

from __future__ import annotations

import hashlib
import os
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.cells import ROWS_AT_ONCE, as_text, each, to_columns
from raysound.corpora.folders import meanings
from raysound.corpora.vocabulary import SCHEMA, quoted
from raysound.errors import UserError

STATS = pa.schema([("name", pa.string()), ("size", pa.int64()), ("modified", pa.int64())])


def rows_of_manifest(table: pa.Table, path: str) -> pa.Table:
    """The clips of a corpus that is a manifest. Raises UserError for wrong columns."""
    if "path" not in table.column_names:
        raise UserError(f"{path} lacks the column path")
    if not len(table):
        raise UserError(f"{path} lists no clips")
    nothing = pa.chunked_array([pa.nulls(len(table), pa.string())])
    text = {
        name: as_text(table[name], name, path) if name in table.column_names else nothing
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
    paths = each(text["path"], absolute, pa.string())
    files = pc.unique(paths)
    stats = to_columns(
        (
            (uri, *stat)
            for start in range(0, len(files), ROWS_AT_ONCE)
            for some in [files.slice(start, ROWS_AT_ONCE).to_pylist()]
            for uri, stat in zip(some, storage.stat_files(some), strict=True)
        ),
        STATS,
    )
    place = pc.index_in(paths, stats["name"].combine_chunks())
    size, offset = stats["size"].take(place), nothing.cast(pa.int64())
    if {"offset", "size"} <= set(table.column_names):
        try:
            offset, sizes = (table[name].cast(pa.int64()) for name in ("offset", "size"))
        except pa.ArrowException as error:
            raise UserError(f"{path}: offset and size must be whole numbers: {error}") from error
        size = pc.if_else(pc.is_valid(offset), sizes, size)
    columns = {
        **text,
        "label": pc.if_else(pc.equal(text["label"], ""), None, text["label"]),
        "clip_id": clip_id,
        "path": paths,
        "group": pc.coalesce(text["group"], clip_id),
        "size": size,
        "modified": stats["modified"].take(place),
        "offset": offset,
    }
    return checked(pa.table([columns[name] for name in SCHEMA.names], schema=SCHEMA), path)


def finished_rows(rows: pa.Table, listing: pa.Table, root: str) -> pa.Table:
    """Adds paths, sizes and times to rows of FOUND, and checks them."""
    place = pc.index_in(rows["name"], listing["name"].combine_chunks())
    found = {
        **dict(zip(rows.column_names, rows.columns, strict=True)),
        "clip_id": rows["name"],
        "path": each(rows["name"], lambda name: storage.join(root, name), pa.string()),
        "group": pc.coalesce(rows["group"], rows["name"]),
        "size": pc.fill_null(listing["size"].take(place), -1),
        "modified": pc.fill_null(listing["modified"].take(place), 0),
        "offset": pa.nulls(len(rows), pa.int64()),
    }
    return checked(pa.table([found[name] for name in SCHEMA.names], schema=SCHEMA), root)


def checked(table: pa.Table, source: str) -> pa.Table:
    """Checks clips, and replaces their split words by splits.

    Args:
        table: of SCHEMA.
        source: source of the clips, for error messages.

    Raises:
        UserError: a clip is listed twice, only some clips have labels, or a word is not a split.
    """
    refuse_clips(table, source)
    words = pc.unique(table["split"].drop_null()).to_pylist()
    return with_meaning(table, meanings(words, source)) if words else table


def refuse_clips(table: pa.Table, source: str) -> None:
    """Raises UserError if a clip is listed twice, or only some clips have labels."""
    if pc.count_distinct(table["clip_id"]).as_py() < len(table):
        counts = pc.value_counts(table["clip_id"])
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))
        raise UserError(f"{source}: {quoted(twice[0].as_py())} is listed twice")
    unlabelled = table.filter(pc.is_null(table["label"]))
    if 0 < len(unlabelled) < len(table):
        refuse_unlabelled(unlabelled["clip_id"][0].as_py(), source)


def refuse_unlabelled(clip_id: str, source: str) -> NoReturn:
    """Raises UserError for a clip without a label when others have one."""
    raise UserError(f"{source}: {quoted(clip_id)} has no label, and other clips have one")


def with_meaning(table: pa.Table, meaning: dict[str, str]) -> pa.Table:
    """Replaces split words by splits, given their meaning."""
    words = pa.array(list(meaning), pa.string())
    split = pa.array(list(meaning.values()), pa.string()).take(pc.index_in(table["split"], words))
    place = table.schema.get_field_index("split")
    return table.set_column(place, SCHEMA.field("split"), split)


def in_order(table: pa.Table) -> pa.Table:
    """Sorts clips into an order that does not depend on how they were listed."""
    packed = table.filter(pc.is_valid(table["offset"]))
    loose = table.filter(pc.is_null(table["offset"]))
    # Sorted by a hash of the name, every shard is a random sample of all classes. Clips in
    # containers keep their order, for sequential reads.
    order = np.argsort(hashes(loose["clip_id"]), kind="stable")
    packed = packed.sort_by([("path", "ascending"), ("offset", "ascending")])
    return pa.concat_tables([loose.take(order), packed]).combine_chunks()


def hashes(clip_ids: pa.ChunkedArray) -> np.ndarray:
    """The first 64 bits of SHA-256 of each clip id, uint64 `(n,)`."""
    found: np.ndarray = each(clip_ids, _hash, pa.uint64()).to_numpy()
    return found


def _hash(clip_id: str) -> int:
    return int.from_bytes(hashlib.sha256(clip_id.encode()).digest()[:8], "big")
