"""Which clips stand in which shard: as many as make a good file, and none moves without need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound.features.parquet import windows_together
from raysound.settings.features import FeatureSettings

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
    known = with_known_shards(clips, before)
    cuts = count_cuts(known, per_shard)
    last = -1 if before is None or not len(before) else pc.max(before["shard"]).as_py()
    (first,), anew = first_shards([cuts], last)
    return number_shards(known, first, anew, per_shard)


@dataclass(frozen=True)
class Cuts:
    """How many shards some clips make.

    Attributes:
        kept: numbers of those that they had before.
        new: of the clips that had none.
        anew: of all, laid out anew.
    """

    kept: frozenset[int]
    new: int
    anew: int


def with_known_shards(clips: pa.Table, before: pa.Table | None) -> pa.Table:
    """Clips with the column `shard` that they have in another table; null where they have none."""
    if before is None:
        return clips.append_column("shard", pa.nulls(len(clips), pa.int32()))
    place = pc.index_in(clips["clip_id"], before["clip_id"].combine_chunks())
    return clips.append_column("shard", before["shard"].take(place))


def count_cuts(known: pa.Table, per_shard: int) -> Cuts:
    """How many shards the clips of `with_known_shards` make."""
    kept = pc.unique(known["shard"].drop_null()).to_pylist()
    new = known.filter(pc.is_null(known["shard"]))
    return Cuts(frozenset(kept), _number(new, per_shard), _number(known, per_shard))


def first_shards(cuts: Sequence[Cuts], last: int) -> tuple[list[int], bool]:
    """How the shards of the ranges of a corpus are numbered.

    Args:
        cuts: of each range.
        last: number of the last shard before, -1 if there was none.

    Returns:
        The number of the first new shard of each range, and True where all shards are made anew.
    """
    kept = {shard for one in cuts for shard in one.kept}
    new, needed = (sum(sizes) for sizes in zip(*((one.new, one.anew) for one in cuts), strict=True))
    anew = len(kept) + new > 2 * needed
    sizes = [one.anew if anew else one.new for one in cuts]
    start = 0 if anew else last + 1
    return [start + before for before in accumulate(sizes[:-1], initial=0)], anew


def number_shards(known: pa.Table, first: int, anew: bool, per_shard: int) -> pa.Table:
    """Gives every clip of `with_known_shards` the number of its shard.

    Args:
        known: the clips.
        first: number of the first new shard.
        anew: True where those that the clips had before are not kept.
        per_shard: see `assign_shards`.

    Returns:
        See `assign_shards`.
    """
    is_new = pc.is_null(known["shard"])
    old, new = known.filter(pc.invert(is_new)).sort_by("shard"), known.filter(is_new)
    if anew:
        old, new = known.slice(0, 0), known
    numbers = pa.array(first + _cut(new, per_shard), pa.int32())
    place = known.schema.get_field_index("shard")
    return pa.concat_tables([old, new.set_column(place, known.schema.field(place), numbers)])


def _number(clips: pa.Table, per_shard: int) -> int:
    """How many shards clips make."""
    return int(_cut(clips, per_shard)[-1]) + 1 if len(clips) else 0


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
