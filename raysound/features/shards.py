"""Assigns clips to shards of a suitable size; clips keep their shard if possible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound.features.parquet import windows_together
from raysound.settings.features import FeatureSettings

# Maximum number of source bytes per shard, because a task holds the log-mels of a shard. For long
# files compressed to 128 kbit/s they are about twice as large.
LARGEST_SHARD = 128 << 20
# With `shard_clips: auto`: minimum clips per shard, for efficient writing; maximum; and the number
# of shards of a small corpus, for parallel work.
FEWEST_CLIPS, MOST_CLIPS, SHARDS_ENOUGH = 64, 16384, 64


def clips_per_shard(clips: int, wanted: int | str, settings: FeatureSettings) -> int:
    """The number of clips per shard; for `auto`, about one row group of log-mels."""
    if isinstance(wanted, int):
        return wanted
    shared = max(-(-clips // SHARDS_ENOUGH), FEWEST_CLIPS)
    return min(windows_together(settings), shared, MOST_CLIPS)


def assign_shards(clips: pa.Table, before: pa.Table | None, per_shard: int) -> pa.Table:
    """Assigns a shard number to every clip.

    Clips that already have a shard keep it, and new clips get new shards, so that existing shards
    remain valid when clips are added. If this needs more than twice the minimum number of shards,
    because many clips were removed or few were added at a time, all clips get new shards.

    Args:
        clips: rows of a manifest, in shard order.
        before: previous manifest, with its column `shard`; None if there is none.
        per_shard: maximum number of clips per new shard; fewer if they exceed LARGEST_SHARD bytes.

    Returns:
        The clips with a column `shard`, int32, sorted by it; within a shard the order is kept.
    """
    known = with_known_shards(clips, before)
    counts = count_shards(known, per_shard)
    last = -1 if before is None or not len(before) else pc.max(before["shard"]).as_py()
    (first,), renumber = first_shards([counts], last)
    return number_shards(known, first, renumber, per_shard)


@dataclass(frozen=True)
class ShardCounts:
    """The shards of some clips.

    Attributes:
        kept: numbers of their previous shards.
        new: number of shards of the clips without a previous shard.
        total: number of shards if all clips get new shards.
    """

    kept: frozenset[int]
    new: int
    total: int


def with_known_shards(clips: pa.Table, before: pa.Table | None) -> pa.Table:
    """Adds the column `shard` from another table; null for clips that it lacks."""
    if before is None:
        return clips.append_column("shard", pa.nulls(len(clips), pa.int32()))
    place = pc.index_in(clips["clip_id"], before["clip_id"].combine_chunks())
    return clips.append_column("shard", before["shard"].take(place))


def count_shards(known: pa.Table, per_shard: int) -> ShardCounts:
    """Counts the shards of the clips of `with_known_shards`."""
    kept = pc.unique(known["shard"].drop_null()).to_pylist()
    new = known.filter(pc.is_null(known["shard"]))
    return ShardCounts(
        frozenset(kept), _shard_count(new, per_shard), _shard_count(known, per_shard)
    )


def first_shards(counts: Sequence[ShardCounts], last: int) -> tuple[list[int], bool]:
    """Numbers the shards of the ranges of a corpus.

    Args:
        counts: shard counts of each range.
        last: number of the last previous shard; -1 if there is none.

    Returns:
        The number of the first new shard of each range, and True if all clips get new shards.
    """
    kept = {shard for one in counts for shard in one.kept}
    new, needed = sum(one.new for one in counts), sum(one.total for one in counts)
    renumber = len(kept) + new > 2 * needed
    sizes = [one.total if renumber else one.new for one in counts]
    start = 0 if renumber else last + 1
    return [start + before for before in accumulate(sizes[:-1], initial=0)], renumber


def number_shards(known: pa.Table, first: int, renumber: bool, per_shard: int) -> pa.Table:
    """Assigns a shard number to every clip of `with_known_shards`.

    Args:
        known: clips of `with_known_shards`.
        first: number of the first new shard.
        renumber: True to replace the previous numbers.
        per_shard: see `assign_shards`.

    Returns:
        See `assign_shards`.
    """
    is_new = pc.is_null(known["shard"])
    old, new = known.filter(pc.invert(is_new)).sort_by("shard"), known.filter(is_new)
    if renumber:
        old, new = known.slice(0, 0), known
    numbers = pa.array(first + _shard_numbers(new, per_shard), pa.int32())
    place = known.schema.get_field_index("shard")
    return pa.concat_tables([old, new.set_column(place, known.schema.field(place), numbers)])


def _shard_count(clips: pa.Table, per_shard: int) -> int:
    """The number of shards of some clips."""
    return int(_shard_numbers(clips, per_shard)[-1]) + 1 if len(clips) else 0


def _shard_numbers(clips: pa.Table, per_shard: int) -> np.ndarray:
    """The shard number of each clip, from 0, for consecutive clips."""
    ends = np.cumsum(np.maximum(clips["size"].to_numpy(), 0))
    shard = np.empty(len(clips), np.int32)
    start = number = 0
    while start < len(clips):
        already = ends[start - 1] if start else 0
        full = int(np.searchsorted(ends, already + LARGEST_SHARD, side="right"))
        stop = max(start + 1, min(start + per_shard, full))
        shard[start:stop] = number
        start, number = stop, number + 1
    return shard
