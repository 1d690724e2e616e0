"""The manifest of a feature folder: the shard of each clip, in parts that fit in memory."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.corpora.vocabulary import SCHEMA

# The manifest of older versions is a single file.
OLD = "manifest.parquet"


@dataclass(frozen=True)
class Index:
    """Summary of a manifest.

    Attributes:
        clips: number of clips.
        digest: see `digest_of`.
        parts: file name of each part, relative to the feature folder, and the runs of its shards
            as (first, last) numbers.
    """

    clips: int
    digest: str
    parts: tuple[tuple[str, tuple[tuple[int, int], ...]], ...]

    @property
    def shards(self) -> list[int]:
        """The numbers of all shards, sorted."""
        runs = {run for _, runs in self.parts for run in runs}
        return sorted({index for first, last in runs for index in range(first, last + 1)})


def index_uri(folder: str) -> str:
    """URI of the index of a feature folder's manifest; written last, it makes the parts valid."""
    return storage.join(folder, "manifest", "_index.json")


def read_index(folder: str) -> Index | None:
    """Reads the index of a feature folder's manifest; None if there is no manifest."""
    try:
        found = json.loads(storage.read_bytes(index_uri(folder)))
    except FileNotFoundError:
        return old_index(folder)
    parts = tuple(
        (name, tuple((first, last) for first, last in runs)) for name, runs in found["parts"]
    )
    return Index(found["clips"], found["digest"], parts)


def old_index(folder: str) -> Index | None:
    """Computes the index of an older version's manifest, one row group at a time."""
    uri = storage.join(folder, OLD)
    if not storage.exists(uri):
        return None
    total, clips, shards = 0, 0, set[int]()
    for rows in _row_groups(uri, None):
        if {*rows.column_names} != {*SCHEMA.names, "shard"}:
            return None
        total += digest_of(rows)
        clips += len(rows)
        shards.update(pc.unique(rows["shard"]).to_pylist())
    return Index(clips, digest_text(total), ((OLD, runs_of(shards)),))


def write_index(folder: str, index: Index) -> None:
    """Writes the index, which makes its parts the manifest of a feature folder."""
    storage.write_bytes(index_uri(folder), json.dumps(vars(index)).encode())


def runs_of(numbers: Iterable[int]) -> tuple[tuple[int, int], ...]:
    """The runs of consecutive numbers, as (first, last)."""
    runs: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if runs and number == runs[-1][1] + 1:
            runs[-1] = runs[-1][0], number
        else:
            runs.append((number, number))
    return tuple(runs)


def digest_of(clips: pa.Table) -> int:
    """Digest of clips in any order: the sum of the SHA-256 of their rows, mod 2^256."""
    columns = [pc.cast(clips[name], pa.string()) for name in SCHEMA.names]
    lines = pc.binary_join_element_wise(
        *columns, "\n", null_handling="replace", null_replacement="\0"
    )
    total = 0
    for chunk in pa.chunked_array(lines).chunks:
        for line in chunk.to_pylist():
            total += int.from_bytes(hashlib.sha256(line.encode()).digest(), "big")
    return total % (1 << 256)


def digest_text(total: int) -> str:
    """A sum of `digest_of` values as text."""
    return f"{total % (1 << 256):064x}"


def read_manifest(folder: str, columns: list[str] | None = None) -> pa.Table:
    """Reads the complete manifest of a feature folder, with its column `shard`.

    Raises:
        FileNotFoundError: there is no manifest.
    """
    return pa.concat_tables(manifest_rows(folder, columns))


def manifest_rows(folder: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """Reads a manifest by row group. Raises FileNotFoundError if there is none."""
    for name in part_names(folder):
        yield from _row_groups(storage.join(folder, *name.split("/")), columns)


def part_names(folder: str) -> list[str]:
    """The files of a manifest, relative to the feature folder."""
    try:
        return [name for name, _ in json.loads(storage.read_bytes(index_uri(folder)))["parts"]]
    except FileNotFoundError:
        return [OLD]


def _row_groups(uri: str, columns: list[str] | None) -> Iterator[pa.Table]:
    with storage.open_file(uri) as opened:
        file = pq.ParquetFile(opened)
        for number in range(file.num_row_groups):
            yield file.read_row_group(number, columns=columns)


@lru_cache(maxsize=1)
def shard_clips(folder: str, run: str, index: int) -> pa.Table:
    """Reads the manifest rows of one shard, without the column `shard`.

    Cached, because a task that reads and writes a shard needs them twice.

    Args:
        folder: feature folder.
        run: id of the extraction run; a process reads an index once per run.
        index: number of the shard.
    """
    found = []
    for name, runs in _parts(folder, run):
        if runs is None or any(first <= index <= last for first, last in runs):
            found += _rows_of_shard(storage.join(folder, *name.split("/")), run, index)
    rows = pa.concat_tables(found)
    return rows.drop_columns("shard").combine_chunks()


def _rows_of_shard(uri: str, run: str, index: int) -> list[pa.Table]:
    metadata = _metadata(uri, run)
    column = metadata.schema.names.index("shard")
    groups = []
    for number in range(metadata.num_row_groups):
        statistics = metadata.row_group(number).column(column).statistics
        if statistics.min <= index <= statistics.max:
            groups.append(number)
    with storage.open_file(uri) as file:
        rows = pq.ParquetFile(file, metadata=metadata).read_row_groups(groups)
    return [rows.filter(pc.equal(rows["shard"], index))]


@lru_cache(maxsize=1)
def _parts(folder: str, run: str) -> list[tuple[str, Any]]:
    """Names of parts and runs of their shards; None as runs for an older version's manifest."""
    try:
        parts: list[tuple[str, Any]] = json.loads(storage.read_bytes(index_uri(folder)))["parts"]
    except FileNotFoundError:
        return [(OLD, None)]
    return parts


@lru_cache(maxsize=4)
def _metadata(uri: str, run: str) -> pq.FileMetaData:
    """Reads the metadata once per process and run, because its size grows with the corpus."""
    with storage.open_file(uri) as file:
        return pq.read_metadata(file)
