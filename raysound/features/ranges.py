"""Divides the clips of a corpus into ranges, whose shards are planned in parallel.

Clips are divided by the hash of their id; clips in tar or Parquet files are divided by file. Each
range becomes one part of the manifest, and a new shard has clips of one range only.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.corpora.manifest_parts import digest_of
from raysound.corpora.manifest_rows import hashes, in_order
from raysound.features.shards import ShardCounts, count_shards, number_shards, with_known_shards

# Approximate number of clips per range; a process handles one range at a time.
CLIPS_TOGETHER = 1 << 17
# Row group size of a part, because a task reads complete row groups to find its clips.
ROW_GROUP = 4096


@dataclass(frozen=True)
class Facts:
    """Summary of all clips of a corpus, needed to plan shards.

    Attributes:
        clips: number of clips.
        digest: see `digest_of`.
        labels: labels of the clips; includes None if a clip has none.
        loose: number of clips that are separate files.
        packed: number of clips in each tar or Parquet file.
    """

    clips: int
    digest: int
    labels: frozenset[str | None]
    loose: int
    packed: Counter[str]

    @classmethod
    def of(cls, clips: pa.Table) -> Facts:
        """The facts of some clips, a table of SCHEMA."""
        packed = clips.filter(pc.is_valid(clips["offset"]))
        counts = pc.value_counts(packed["path"])
        paths, numbers = (counts.field(place).to_pylist() for place in range(2))
        return cls(
            clips=len(clips),
            digest=digest_of(clips),
            labels=frozenset(pc.unique(clips["label"]).to_pylist()),
            loose=len(clips) - len(packed),
            packed=Counter(dict(zip(paths, numbers, strict=True))),
        )

    @classmethod
    def all(cls, facts: Iterable[Facts]) -> Facts:
        """The facts of all clips, from the facts of each block."""
        facts = list(facts)
        packed: Counter[str] = Counter()
        for one in facts:
            packed.update(one.packed)
        return cls(
            clips=sum(one.clips for one in facts),
            digest=sum(one.digest for one in facts) % (1 << 256),
            labels=frozenset().union(*(one.labels for one in facts)),
            loose=sum(one.loose for one in facts),
            packed=packed,
        )


@dataclass(frozen=True)
class Ranges:
    """The division of clips into ranges.

    Attributes:
        bits: number of leading bits of the hash that define the range of a separate file; None if
            there are no separate files.
        firsts: first container of each range of clips in containers, sorted.
    """

    bits: int | None
    firsts: tuple[str, ...]

    @classmethod
    def of(cls, facts: Facts) -> Ranges:
        """Ranges of about CLIPS_TOGETHER clips."""
        bits = max(0, (facts.loose - 1).bit_length() - (CLIPS_TOGETHER - 1).bit_length())
        firsts: list[str] = []
        together = CLIPS_TOGETHER
        for path in sorted(facts.packed):
            if together + facts.packed[path] > CLIPS_TOGETHER:
                firsts.append(path)
                together = 0
            together += facts.packed[path]
        return cls(bits if facts.loose else None, tuple(firsts))

    @property
    def count(self) -> int:
        """Number of ranges."""
        return self.loose + len(self.firsts)

    @property
    def loose(self) -> int:
        """Number of ranges of separate files; they come first."""
        return 0 if self.bits is None else 1 << self.bits

    def places(self, clips: pa.Table) -> np.ndarray:
        """The range of each clip, int64 `(n,)`; -1 for a clip in no range."""
        places = np.full(len(clips), -1, np.int64)
        is_loose = pc.is_null(clips["offset"]).to_numpy()
        if self.bits is not None:
            first = hashes(clips["clip_id"].filter(pc.is_null(clips["offset"])))
            # NumPy does not shift a number by all of its bits.
            places[is_loose] = first >> np.uint64(64 - self.bits) if self.bits else 0
        if self.firsts:
            paths = clips["path"].filter(pc.is_valid(clips["offset"])).to_pylist()
            places[~is_loose] = [
                self.loose + place - 1 if (place := bisect_right(self.firsts, path)) else -1
                for path in paths
            ]
        return places


BLOCKS = pa.schema(
    [("uri", pa.string()), ("has_shards", pa.bool_()), ("ranges", pa.list_(pa.int32()))]
)


def group(clips: pa.Table, ranges: Ranges, uri: str) -> dict[str, Any]:
    """Writes some clips to a temporary file, with one row group per range.

    Args:
        clips: table of SCHEMA; clips of the previous manifest also have the column `shard`.
        ranges: ranges of the corpus.
        uri: URI of the temporary file.

    Returns:
        A row of BLOCKS: the file, and the range of each of its row groups.
    """
    places = ranges.places(clips)
    order = np.argsort(places, kind="stable")
    order = order[np.searchsorted(places[order], 0) :]
    clips, places = clips.take(order), places[order]
    numbers, starts = np.unique(places, return_index=True)
    sizes = np.diff(starts, append=len(places))
    with storage.atomic_file(uri) as file, pq.ParquetWriter(file, clips.schema) as writer:
        for start, size in zip(starts.tolist(), sizes.tolist(), strict=True):
            writer.write_table(clips.slice(start, size), row_group_size=size)
    return {"uri": uri, "has_shards": "shard" in clips.column_names, "ranges": numbers.tolist()}


def sort_range(number: int, blocks: str, per_shard: int, uri: str) -> ShardCounts:
    """Sorts the clips of a range, and counts their shards.

    Args:
        number: number of the range.
        blocks: URI of a file with all rows of BLOCKS.
        per_shard: maximum number of clips per shard.
        uri: URI of the temporary output file, with the sorted clips and their previous shards.
    """
    pieces = [
        (row["uri"], row["ranges"].index(number), row["has_shards"])
        for row in storage.read_table(blocks).to_pylist()
        if number in row["ranges"]
    ]
    # Concurrent, because each request to an object store takes some 10 ms.
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS if "://" in uri else 1) as pool:
        tables = list(pool.map(_read, pieces))
    pairs = [(rows, has_shards) for rows, (*_, has_shards) in zip(tables, pieces, strict=True)]
    clips = in_order(pa.concat_tables(rows for rows, has_shards in pairs if not has_shards))
    before = [rows for rows, has_shards in pairs if has_shards]
    known = with_known_shards(clips, pa.concat_tables(before) if before else None)
    storage.write_table(uri, known)
    return count_shards(known, per_shard)


def write_range(uri: str, sorted_uri: str, first: int, renumber: bool, per_shard: int) -> list[int]:
    """Writes the clips of a range with the numbers of their shards.

    Args:
        uri: URI of the part.
        sorted_uri: URI of the file that `sort_range` wrote.
        first: number of the first new shard.
        renumber: True to number all shards of the range again.
        per_shard: maximum number of clips per shard.

    Returns:
        The numbers of the shards.
    """
    clips = number_shards(storage.read_table(sorted_uri), first, renumber, per_shard)
    storage.write_table(uri, clips, row_group_size=ROW_GROUP)
    shards: list[int] = pc.unique(clips["shard"]).to_pylist()
    return shards


def _read(piece: tuple[str, int, bool]) -> pa.Table:
    uri, row_group, _ = piece
    with storage.open_file(uri) as file:
        return pq.ParquetFile(file).read_row_group(row_group)
