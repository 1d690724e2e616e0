"""Which clips stand in which shard: as many as make a good file, and none moves without need."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound.features import windows_together
from raysound.settings import FeatureSettings

# Source bytes of a shard at the most: a task holds the log-mels of its shards, which for long files
# compressed to 128 kbit/s are about twice as large.
LARGEST_SHARD = 128 << 20
# With `shard_clips: auto`: no fewer clips than make the writing cheap, no more than this, and in
# a small corpus so few that there are shards enough to share out.
FEWEST_CLIPS, MOST_CLIPS, SHARDS_ENOUGH = 64, 16384, 64


def clips_per_shard(clips: int, wanted: int | str, settings: FeatureSettings) -> int:
    """How many clips of a corpus make a shard; `auto` aims at a row group of log-mels."""
    if isinstance(wanted, int):
        return wanted
    shared = max(-(-clips // SHARDS_ENOUGH), FEWEST_CLIPS)
    return min(windows_together(settings), shared, MOST_CLIPS)


def assign_shards(clips: pa.Table, before: pa.Table | None, per_shard: int) -> pa.Table:
    """Gives every clip the number of its shard.

    A clip that has a shard stays there, with what is known of it now; clips that are new fill
    shards of their own, so that clips added to a corpus leave all that was made. Where that takes
    more than twice the shards needed, for many clips are gone or few came at a time, all are laid
    out anew.

    Args:
        clips: rows of a manifest, in the order in which they are to be laid out.
        before: the manifest of the last time, with its column `shard`; None if there is none.
        per_shard: clips of a new shard at the most; fewer where they take LARGEST_SHARD bytes.

    Returns:
        The clips with a column `shard`, int32, ordered by it; in a shard they keep their order.
    """
    if before is None or not len(before):
        return clips.append_column("shard", pa.array(_cut(clips, per_shard), pa.int32()))
    place = pc.index_in(clips["clip_id"], before["clip_id"].combine_chunks())
    is_new = pc.is_null(place)
    old = clips.append_column("shard", before["shard"].take(place))
    old = old.filter(pc.invert(is_new)).sort_by("shard")
    new = clips.filter(is_new)
    first = pc.max(before["shard"]).as_py() + 1
    new = new.append_column("shard", pa.array(first + _cut(new, per_shard), pa.int32()))
    both = pa.concat_tables([old, new])
    if pc.count_distinct(both["shard"]).as_py() > 2 * (1 + _cut(clips, per_shard)[-1]):
        return assign_shards(clips, None, per_shard)
    return both


def _cut(clips: pa.Table, per_shard: int) -> np.ndarray:
    """Numbers of shards, from 0, for clips that follow each other."""
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
