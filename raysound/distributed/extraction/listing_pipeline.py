"""Lists a large corpus as a Ray dataset; no process holds all of its clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray.data

from raysound import storage
from raysound.corpora.folders import layout_of, meanings
from raysound.corpora.inventory import BLOCK_ROWS, LISTING, Inventory, list_blocks
from raysound.corpora.manifest import (
    clips_in_folders,
    is_file,
    look_over,
    loose_clips,
    no_sounds,
    read_corpus,
)
from raysound.corpora.manifest_rows import refuse_clips, refuse_unlabelled, with_meaning
from raysound.corpora.packed import Container, check_containers, read_container
from raysound.corpora.table_files import name_clips, tables_to_open
from raysound.corpora.vocabulary import SCHEMA, Tally, Warn, merge_tallies, utf8
from raysound.distributed.cluster.session import run_remote
from raysound.distributed.extraction.map_blocks import map_blocks, map_dataset, rows_dataset
from raysound.errors import UserError

# With fewer folders at the top level, their subfolders are listed in parallel.
MIN_PARALLEL_FOLDERS = 32
# A row is a clip, or a tally entry: the suffix of a container's files that are no clips.
PACKED = SCHEMA.append(pa.field("is_clip", pa.bool_()))


def list_clips(path: str, temp_folder: str, warn: Warn) -> ray.data.Dataset:
    """Lists the clips of a corpus in parallel, as tables of SCHEMA in any order.

    A manifest, or a corpus labelled by a table, is read by one process.

    Args:
        path: see `raysound.corpora.manifest.read_corpus`.
        temp_folder: a folder for temporary files, which all nodes see.
        warn: takes each warning.

    Raises:
        UserError: see `raysound.corpora.manifest.read_corpus`.
    """
    sources = run_remote(parallel_folders, path)
    if sources is None:
        return _in_one_process(_write_corpus, temp_folder, warn, path)
    folders, irregular = sources
    # A name on a local disk may not be UTF-8.
    rows = [{"folder": os.fsencode(name), "recursive": recursive} for name, recursive in folders]
    listing = map_dataset(rows_dataset(rows), _list_folders, path=path).materialize()
    found = Inventory.all([Inventory.of(irregular), *map_blocks(listing, Inventory.of)])
    inspection = run_remote(_inspect, found, path)
    for line in inspection.warnings:
        warn(line)
    if inspection.error:
        raise UserError(inspection.error)
    if inspection.containers:
        return _packed_clips(path, inspection.containers, warn)
    if inspection.tables:
        arguments = (path, found, inspection.tables, *listing.to_arrow_refs())
        return _in_one_process(_write_loose, temp_folder, warn, *arguments)
    if not found.sounds:
        raise UserError(no_sounds(path, found.endings))
    layout = layout_of(found.folders, path, warn)
    return map_dataset(listing, clips_in_folders, layout=layout, path=path)


def parallel_folders(path: str) -> tuple[list[tuple[str, bool]], pa.Table] | None:
    """Runs in a Ray task: the folders of a corpus that are listed in parallel.

    Returns:
        Each folder with True if it is listed recursively, and rows of LISTING for irregular
        names found on the way; None if the path is a file.

    Raises:
        UserError: see `raysound.corpora.manifest.read_corpus`.
    """
    if is_file(path):
        return None
    irregular: list[dict[str, Any]] = []

    def add_irregular(kind: str, name: str) -> None:
        irregular.append({"name": utf8(name), "size": None, "modified": None, "irregular": kind})

    try:
        flat, nested = [""], storage.subfolders(path, "", add_irregular)
        # An object store lists the files of a folder together with its subfolders.
        if len(nested) < (2 if "://" in path else MIN_PARALLEL_FOLDERS):
            flat += nested
            nested = [
                name
                for folder in nested
                for name in storage.subfolders(path, folder, add_irregular)
            ]
    except OSError as error:
        raise UserError(f"{path} can't be listed: {error}") from error
    folders = [*((name, False) for name in flat), *((name, True) for name in nested)]
    return folders, pa.Table.from_pylist(irregular, schema=LISTING)


def _list_folders(folders: pa.Table, path: str) -> Iterator[pa.Table]:
    """Runs in a Ray task: the files of some folders of a corpus."""
    for row in folders.to_pylist():
        yield from list_blocks(path, os.fsdecode(row["folder"]), row["recursive"])


@dataclass(frozen=True)
class Inspection:
    """The result of `_inspect`.

    Attributes:
        warnings: for the user.
        error: why the corpus can't be used, or "".
        containers: see `look_over`.
        tables: files that may label the clips.
    """

    warnings: list[str]
    error: str = ""
    containers: list[Container] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def _inspect(found: Inventory, path: str) -> Inspection:
    """Runs in a Ray task: finds the containers and label tables of a corpus."""
    warnings: list[str] = []
    try:
        containers = look_over(found, path, warnings.append)
        if containers:
            return Inspection(warnings, containers=containers)
        tables = tables_to_open(found.tables, path, warnings.append)
        table_warnings: list[str] = []
        if name_clips(tables, path, table_warnings.append):
            # `_write_loose` opens the tables again, and repeats their warnings.
            return Inspection(warnings, tables=tables)
        return Inspection(warnings + table_warnings)
    except UserError as error:
        return Inspection(warnings, str(error))


def _in_one_process(
    function: Callable[..., tuple[list[str], str]], temp_folder: str, warn: Warn, *arguments: Any
) -> ray.data.Dataset:
    """Runs a function that writes clips to a temporary file, and returns them as a dataset."""
    uri = storage.join(temp_folder, "clips.parquet")
    warnings, error = run_remote(function, uri, *arguments)
    for line in warnings:
        warn(line)
    if error:
        raise UserError(error)
    with storage.open_file(uri) as file:
        groups = pq.ParquetFile(file).num_row_groups
    rows = [{"uri": uri, "row_group": number} for number in range(groups)]
    return map_dataset(rows_dataset(rows), _row_groups)


def _write_corpus(uri: str, path: str) -> tuple[list[str], str]:
    """Runs in a Ray task: writes the clips of a corpus. Returns warnings and an error, or ""."""
    warnings: list[str] = []
    return warnings, _write_or_error(uri, lambda: read_corpus(path, warnings.append))


def _write_loose(
    uri: str, path: str, found: Inventory, tables: list[str], *blocks: pa.Table
) -> tuple[list[str], str]:
    """Runs in a Ray task: like `_write_corpus`, for files that are listed and label tables."""
    warnings: list[str] = []
    listing = pa.concat_tables(blocks)
    error = _write_or_error(uri, lambda: loose_clips(listing, found, tables, path, warnings.append))
    return warnings, error


def _write_or_error(uri: str, read: Callable[[], pa.Table]) -> str:
    """Writes a table to a file; returns the text of a UserError, or ""."""
    try:
        storage.write_table(uri, read(), row_group_size=BLOCK_ROWS)
    except UserError as error:
        return str(error)
    return ""


def _row_groups(rows: pa.Table) -> Iterator[pa.Table]:
    """Runs in a Ray task: reads row groups of temporary files."""
    for row in rows.to_pylist():
        with storage.open_file(row["uri"]) as file:
            yield pq.ParquetFile(file).read_row_group(row["row_group"])


def _packed_clips(path: str, containers: list[Container], warn: Warn) -> ray.data.Dataset:
    """The clips of a corpus that is packed into tar or Parquet files."""
    rows = [
        {"name": name, "uri": uri, "size": size, "modified": modified}
        for name, uri, size, modified in containers
    ]
    packed = map_dataset(rows_dataset(rows), _read_containers, path=path).materialize()
    facts = map_blocks(packed, _packed_facts)
    labels = {label for one in facts for label in one.labels}
    unlabelled = [one.unlabelled for one in facts if one.unlabelled is not None]
    if unlabelled and labels:
        refuse_unlabelled(unlabelled[0], path)
    left = merge_tallies(one.left for one in facts)
    check_containers(containers, sum(one.clips for one in facts), [*labels], left, path, warn)
    meaning = meanings({word for one in facts for word in one.words}, path)
    return map_dataset(packed, _clips, meaning=meaning)


def _read_containers(rows: pa.Table, path: str) -> Iterator[pa.Table]:
    """Runs in a Ray task: tables of PACKED of some containers."""
    for row in rows.to_pylist():
        clips, left = read_container((row["name"], row["uri"], row["size"], row["modified"]))
        refuse_clips(clips, path)
        for start in range(0, len(clips), BLOCK_ROWS):
            block = clips.slice(start, BLOCK_ROWS)
            yield block.append_column("is_clip", pa.array([True] * len(block)))
        others = [
            {"path": suffix, "size": count, "clip_id": first, "is_clip": False}
            for suffix, (count, first) in left.items()
        ]
        yield pa.Table.from_pylist(others, schema=PACKED)


@dataclass(frozen=True)
class PackedFacts:
    """Facts about some rows of PACKED.

    Attributes:
        clips: number of clips.
        labels: their labels.
        unlabelled: the first clip without a label, if any.
        words: their names of splits.
        left: the suffixes of other files in the containers.
    """

    clips: int
    labels: set[str]
    unlabelled: str | None
    words: set[str]
    left: Tally


def _packed_facts(rows: pa.Table) -> PackedFacts:
    clips, others = rows.filter(rows["is_clip"]), rows.filter(pc.invert(rows["is_clip"]))
    unlabelled = clips["clip_id"].filter(pc.is_null(clips["label"])).slice(0, 1)
    return PackedFacts(
        clips=len(clips),
        labels=set(pc.unique(clips["label"].drop_null()).to_pylist()),
        unlabelled=next(iter(unlabelled.to_pylist()), None),
        words=set(pc.unique(clips["split"].drop_null()).to_pylist()),
        left=merge_tallies(
            {row["path"]: (row["size"], row["clip_id"])} for row in others.to_pylist()
        ),
    )


def _clips(rows: pa.Table, meaning: dict[str, str]) -> pa.Table:
    """Runs in a Ray task: the clips of tables of PACKED."""
    return with_meaning(rows.filter(rows["is_clip"]).drop_columns("is_clip"), meaning)
