"""The clips of a large corpus as a Ray dataset: no process holds all of them."""

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
from raysound.corpora.layouts import SCHEMA, Tally, Warn, merge_tallies, utf8
from raysound.corpora.manifest import (
    clips_in_folders,
    is_file,
    look_over,
    loose_clips,
    no_sounds,
    read_corpus,
)
from raysound.corpora.manifest_rows import (
    refuse_clips,
    refuse_unlabelled,
    with_meaning,
)
from raysound.corpora.packed import Container, check_containers, read_container
from raysound.corpora.table_files import (
    name_clips,
    tables_to_open,
)
from raysound.distributed.cluster.session import run_remote
from raysound.distributed.extraction.map_blocks import _dataset, _map, map_blocks
from raysound.errors import UserError

# Folders that are listed apart from each other, if there are as many.
FOLDERS_ENOUGH = 32
# A row is a clip, or the ending of files in a container that are none: an entry of its tally.
PACKED = SCHEMA.append(pa.field("is_clip", pa.bool_()))


def clips_of(path: str, temporary: str, tell: Warn) -> ray.data.Dataset:
    """Lists the clips of a corpus in parallel, as tables of SCHEMA in any order.

    A corpus that is labelled by a table, and a manifest, is read by one process.

    Args:
        path: see `raysound.corpora.manifest.read_corpus`.
        temporary: a folder for temporary files, which all nodes see.
        tell: takes a line about what is left out, or is doubtful.

    Raises:
        UserError: see `raysound.corpora.manifest.read_corpus`.
    """
    sources = run_remote(sources_of, path)
    if sources is None:
        return _in_one_process(_write_corpus, temporary, tell, path)
    folders, odd = sources
    # A name on a local disk may be no UTF-8.
    rows = [{"below": os.fsencode(below), "deep": deep} for below, deep in folders]
    listing = _map(_dataset(rows), _listed, path=path).materialize()
    found = Inventory.all([Inventory.of(odd), *map_blocks(listing, Inventory.of)])
    seen = run_remote(_look_over, found, path)
    for note in seen.notes:
        tell(note)
    if seen.fault:
        raise UserError(seen.fault)
    if seen.containers:
        return _packed_clips(path, seen.containers, tell)
    if seen.tables:
        blocks = listing.to_arrow_refs()
        return _in_one_process(_write_loose, temporary, tell, path, found, seen.tables, *blocks)
    if not found.sounds:
        raise UserError(no_sounds(path, found.endings))
    layout = layout_of(found.folders, path, tell)
    return _map(listing, clips_in_folders, layout=layout, path=path)


def sources_of(path: str) -> tuple[list[tuple[str, bool]], pa.Table] | None:
    """Runs in a Ray task: the folders of a corpus that are listed apart from each other.

    Returns:
        Each folder, with False for its own files alone, and rows of a listing for the odd names
        met on the way; None for a file.

    Raises:
        UserError: see `raysound.corpora.manifest.read_corpus`.
    """
    if is_file(path):
        return None
    odd: list[dict[str, Any]] = []

    def note(kind: str, name: str) -> None:
        odd.append({"name": utf8(name), "size": None, "modified": None, "odd": kind})

    try:
        own, whole = [""], storage.subfolders(path, "", note)
        # An object store lists the files of a folder, too, when it is asked for its folders.
        if len(whole) < (2 if "://" in path else FOLDERS_ENOUGH):
            own += whole
            whole = [name for one in whole for name in storage.subfolders(path, one, note)]
    except OSError as error:
        raise UserError(f"{path} can't be listed: {error}") from error
    folders = [*((name, False) for name in own), *((name, True) for name in whole)]
    return folders, pa.Table.from_pylist(odd, schema=LISTING)


def _listed(sources: pa.Table, path: str) -> Iterator[pa.Table]:
    """Runs in a Ray task: the files of some folders of a corpus."""
    for source in sources.to_pylist():
        yield from list_blocks(path, os.fsdecode(source["below"]), source["deep"])


@dataclass(frozen=True)
class Seen:
    """What `_look_over` found.

    Attributes:
        notes: lines for the user.
        fault: why the corpus can't be used, or "".
        containers: see `look_over`.
        tables: files that may label the clips.
    """

    notes: list[str]
    fault: str = ""
    containers: list[Container] = field(default_factory=list)
    tables: list[str] = field(default_factory=list)


def _look_over(found: Inventory, path: str) -> Seen:
    """Runs in a Ray task: decides where the clips of a corpus and their labels stand."""
    notes: list[str] = []
    try:
        containers = look_over(found, path, notes.append)
        if containers:
            return Seen(notes, containers=containers)
        tables = tables_to_open(found.tables, path, notes.append)
        passed: list[str] = []
        if name_clips(tables, path, passed.append):
            # They are opened once more, and what is said of them is said then.
            return Seen(notes, tables=tables)
        return Seen(notes + passed)
    except UserError as error:
        return Seen(notes, str(error))


def _in_one_process(
    function: Callable[..., tuple[list[str], str]], temporary: str, tell: Warn, *arguments: Any
) -> ray.data.Dataset:
    """The clips that a function writes to a temporary file."""
    uri = storage.join(temporary, "clips.parquet")
    notes, fault = run_remote(function, uri, *arguments)
    for note in notes:
        tell(note)
    if fault:
        raise UserError(fault)
    with storage.open_file(uri) as file:
        groups = pq.ParquetFile(file).num_row_groups
    rows = [{"uri": uri, "row_group": number} for number in range(groups)]
    return _map(_dataset(rows), _row_groups)


def _write_corpus(uri: str, path: str) -> tuple[list[str], str]:
    """Runs in a Ray task: writes the clips of a corpus to a file. Returns notes and a fault."""
    notes: list[str] = []
    return notes, _written(uri, lambda: read_corpus(path, notes.append))


def _write_loose(
    uri: str, path: str, found: Inventory, tables: list[str], *blocks: pa.Table
) -> tuple[list[str], str]:
    """Runs in a Ray task: the same for one whose files are listed."""
    notes: list[str] = []
    listing = pa.concat_tables(blocks)
    return notes, _written(uri, lambda: loose_clips(listing, found, tables, path, notes.append))


def _written(uri: str, read: Callable[[], pa.Table]) -> str:
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


def _packed_clips(path: str, containers: list[Container], tell: Warn) -> ray.data.Dataset:
    """The clips of a corpus that is packed into tar or Parquet files."""
    rows = [
        {"name": name, "uri": uri, "size": size, "modified": modified}
        for name, uri, size, modified in containers
    ]
    packed = _map(_dataset(rows), _read_containers, path=path).materialize()
    facts = map_blocks(packed, _packed_facts)
    labels = {label for one in facts for label in one.labels}
    unlabelled = [one.unlabelled for one in facts if one.unlabelled is not None]
    if unlabelled and labels:
        refuse_unlabelled(unlabelled[0], path)
    left = merge_tallies(one.left for one in facts)
    check_containers(containers, sum(one.clips for one in facts), [*labels], left, path, tell)
    meaning = meanings({word for one in facts for word in one.words}, path)
    return _map(packed, _clips, meaning=meaning)


def _read_containers(rows: pa.Table, path: str) -> Iterator[pa.Table]:
    """Runs in a Ray task: tables of PACKED of some containers."""
    for row in rows.to_pylist():
        clips, left = read_container((row["name"], row["uri"], row["size"], row["modified"]))
        refuse_clips(clips, path)
        for start in range(0, len(clips), BLOCK_ROWS):
            some = clips.slice(start, BLOCK_ROWS)
            yield some.append_column("is_clip", pa.array([True] * len(some)))
        others = [
            {"path": suffix, "size": count, "clip_id": first, "is_clip": False}
            for suffix, (count, first) in left.items()
        ]
        yield pa.Table.from_pylist(others, schema=PACKED)


@dataclass(frozen=True)
class PackedFacts:
    """What is known of some rows of PACKED.

    Attributes:
        clips: how many there are.
        labels: of these.
        unlabelled: the first of them that has no label, if there is one.
        words: for their splits.
        left: the endings of what else the containers hold.
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
