"""The Parquet of copies: the most similar training clip of each clip of a shard, and its search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.evaluation.derived_parts import derive_part, log_mels_of
from raysound.evaluation.predictions import as_array, prediction_parts
from raysound.metrics.copies import (
    Copies,
    Threshold,
    by_clip,
    copied_share,
    find_copies,
    threshold_of,
)
from raysound.metrics.copy_search import (
    WINDOWS_TOGETHER,
    TrainingWindows,
    coarse_vectors,
    frames_together,
    normalised,
    patches,
)
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.selection import keys, smallest
from raysound.settings.features import FeatureSettings

# Raised when the same clips would be given other training clips or similarities.
COPIES_VERSION = 1
# `window` of the clip resembles `training_window` of `training_clip` most. `lag` (s) is how much
# later its sounds occur. `training_clip` is null where all training clips are of the clip's group.
COPIES = pa.schema(
    [
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("window", pa.int32()),
        ("training_clip", pa.string()),
        ("training_window", pa.int32()),
        ("similarity", pa.float32()),
        ("lag", pa.float32()),
    ]
)
# Training windows on their way to `merge_windows`: a row a window.
WINDOWS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("patch", pa.large_list(pa.uint8())),
        ("vector", pa.large_list(pa.float32())),
    ]
)
# Of two clips, in metrics.json.
PAIR = ("clip_id", "window", "training_clip", "training_window", "similarity", "lag")
# Pairs of a corpus, in metrics.json.
PAIRS_KEPT = 10


class SearchedClips(NamedTuple):
    """The training clips that are searched.

    Attributes:
        clips: columns `clip_id`, `split`, `label` and `group`, a row a clip.
        clip: of each window, the row of its clip, ascending, `(m,)`.
        group: of each window, a number, `(m,)`.
        reference: the windows.
    """

    clips: pa.Table
    clip: np.ndarray
    group: np.ndarray
    reference: TrainingWindows


def hop_seconds(settings: FeatureSettings) -> float:
    """Seconds between two frames of a log-mel."""
    return settings.hop_length / settings.sample_rate


def count_windows(shard: str, names: pa.Array) -> pa.Table:
    """Those of some clips that a shard holds, and how many windows each has there."""
    found = storage.read_table(shard, ["clip_id"])["clip_id"]
    counts = pc.value_counts(found.filter(pc.is_in(found, names)))
    return pa.table({"clip_id": counts.field("values"), "windows": counts.field("counts")})


def draw_training(clips: pa.Table, windows: pa.Table, most: int) -> pa.Table:
    """Training clips that together have at most so many windows.

    Args:
        clips: columns `clip_id`, `split`, `label` and `group`.
        windows: columns `clip_id` and `windows`, one row a clip.
        most: windows.

    Returns:
        The clips with the smallest hashes of their names, in this order, as long as their windows
        fit, with the column `windows`.
    """
    place = pc.index_in(clips["clip_id"], windows["clip_id"].combine_chunks())
    if place.null_count:
        lost = clips["clip_id"].filter(pc.is_null(place))[0]
        raise RuntimeError(f"{lost} has no window")
    clips = clips.append_column("windows", windows["windows"].take(place))
    clips = clips.take(pa.array(np.argsort(keys(clips["clip_id"].to_pylist()), kind="stable")))
    fitting = np.cumsum(clips["windows"].to_numpy()) <= most
    return clips.slice(0, int(fitting.sum())).combine_chunks()


def prepare_windows(shard: str, names: pa.Array, settings: FeatureSettings) -> pa.Table:
    """WINDOWS of some clips of a shard, for `merge_windows`."""
    tables = [WINDOWS.empty_table()]
    for place, log_mel in log_mels_of(shard, names):
        patch = patches(log_mel, hop_seconds(settings))
        columns = [
            pa.LargeListArray.from_arrays(
                np.arange(len(values) + 1) * values[0].size, pa.array(values.reshape(-1))
            )
            for values in (patch, coarse_vectors(patch))
        ]
        tables.append(pa.table([names.take(pa.array(place)), *columns], schema=WINDOWS))
    return pa.concat_tables(tables)


def merge_windows(
    tables: Sequence[pa.Table], clips: pa.Table, settings: FeatureSettings
) -> SearchedClips:
    """One reference from WINDOWS, those of a clip next to each other.

    Args:
        tables: of the shards, in their order.
        clips: all that they hold, with the columns of `SearchedClips`.
        settings: of the log-mels.
    """
    tables = [table for table in tables if len(table)]
    names = pa.chunked_array([one for table in tables for one in table["clip_id"].chunks])
    order = names.unique()
    rows = pc.index_in(order, clips["clip_id"].combine_chunks())
    clips = clips.take(rows).select(["clip_id", "split", "label", "group"]).combine_chunks()
    clip = pc.index_in(names, order).to_numpy().astype(np.int64)
    group = clips["group"].combine_chunks().dictionary_encode().indices.to_numpy()
    frames = settings.n_frames // min(frames_together(hop_seconds(settings)), settings.n_frames)
    windows = np.empty((len(names), settings.n_mels, frames), np.uint8)
    vectors = np.empty((len(names), as_array(tables[0]["vector"]).shape[1]), np.float32)
    start = 0
    for table in tables:
        rows = slice(start, start := start + len(table))
        windows[rows] = as_array(table["patch"]).reshape(-1, *windows.shape[1:])
        vectors[rows] = as_array(table["vector"])
    centre = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    seconds = hop_seconds(settings) * (settings.n_frames // frames)
    # In place: at 50,000 windows a copy takes 0.2 GB.
    for start in range(0, len(vectors), WINDOWS_TOGETHER):
        some = vectors[start : start + WINDOWS_TOGETHER]
        some[:] = normalised(some, centre)
    reference = TrainingWindows(windows, centre, vectors, seconds)
    return SearchedClips(clips, clip, group[clip].astype(np.int64), reference)


def search_part(
    row: dict[str, str], training_digest: str, settings: FeatureSettings,
    training: SearchedClips | None,
) -> dict[str, str]:  # fmt: skip
    """Finds the most similar training clips of one part of the predictions, unless they are there.

    Args:
        row: see `derive_part`.
        training_digest: of the training clips that are searched.
        settings: of the log-mels.
        training: these clips; None writes nothing.

    Returns:
        See `derive_part`.
    """

    def search(shard: str, clips: pa.Table) -> pa.Table:
        assert training is not None
        return search_shard(shard, clips, settings, training)

    return derive_part(row, training_digest, None if training is None else search)


def search_shard(
    shard: str, clips: pa.Table, settings: FeatureSettings, training: SearchedClips
) -> pa.Table:
    """COPIES of those of some clips of a shard that did not train the classifier."""
    is_train = pc.fill_null(pc.equal(clips["split"], "train"), False)
    own = clips.filter(pc.invert(is_train))
    places, found = [np.zeros(0, np.int64)], []
    for place, log_mel in log_mels_of(shard, own["clip_id"].combine_chunks()):
        places.append(place)
        found.append(find_copies(patches(log_mel, hop_seconds(settings)), training.reference))
    return copies_of(own, np.concatenate(places), found, training)


def search_sample(training: SearchedClips, first: int, last: int) -> pa.Table:
    """COPIES of training clips among those of other groups.

    Args:
        training: the clips.
        first: number of the first clip of a sample of at most PAIR_CLIPS, drawn by a hash.
        last: number after the last one.
    """
    sample = np.flatnonzero(smallest(keys(training.clips["clip_id"].to_pylist()), PAIR_CLIPS))
    sample = sample[first:last]
    windows = np.flatnonzero(np.isin(training.clip, sample))
    found = []
    for start in range(0, len(windows), WINDOWS_TOGETHER):
        some = windows[start : start + WINDOWS_TOGETHER]
        made, group = training.reference.patches[some], training.group
        found.append(find_copies(made, training.reference, excluded=group, own=group[some]))
    place = np.searchsorted(sample, training.clip[windows])
    return copies_of(training.clips.take(pa.array(sample)), place, found, training)


def copies_of(
    clips: pa.Table, place: np.ndarray, found: Sequence[Copies], training: SearchedClips
) -> pa.Table:
    """COPIES of some clips from those of their windows.

    Args:
        clips: columns `clip_id`, `split` and `label`.
        place: of each window, the row of its clip, ascending, `(n,)`.
        found: the windows' most similar training windows, `n` in all.
        training: the clips that were searched.
    """
    if not len(clips):
        return COPIES.empty_table()
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    if not np.array_equal(place[starts], np.arange(len(clips))):
        raise RuntimeError("windows and clips of a shard do not belong together")
    windows = Copies(
        np.concatenate([one.index for one in found]),
        np.concatenate([one.similarity for one in found]),
        np.concatenate([one.lag for one in found]),
    )
    best = by_clip(windows, starts)
    is_best = np.flatnonzero(windows.similarity == best.similarity[place])
    window = is_best[np.unique(place[is_best], return_index=True)[1]] - starts
    # -1 where there is none: any window, but null.
    nothing = best.index < 0
    clip = training.clip[best.index]
    training_window = best.index - np.searchsorted(training.clip, clip)
    columns = {
        "window": window,
        "training_clip": training.clips["clip_id"].take(pa.array(clip, mask=nothing)),
        "training_window": pa.array(training_window, mask=nothing),
        "similarity": best.similarity,
        "lag": best.lag,
    }
    kept = {name: clips[name] for name in ("clip_id", "split", "label")}
    return pa.table(kept | columns).cast(COPIES)


def calibrated(real: pa.Table, rate: float) -> Threshold:
    """The threshold from COPIES of training clips among those of other groups."""
    found = real.filter(pc.is_valid(real["training_clip"]))
    threshold = threshold_of(found["similarity"].to_numpy(), rate)
    if threshold.value is not None and threshold.value <= 0:
        why = f"{1 - rate:.1%} of the real clips or more are silent or steady"
        return replace(threshold, value=None, why=why)
    return threshold


def corpus_copies(folder: str, corpus: str, threshold: Threshold) -> dict[str, Any]:
    """Share of copies among the clips of a corpus, and the most similar pairs."""
    best, similarities = COPIES.empty_table(), [np.zeros(0, np.float32)]
    for uri in prediction_parts(folder, corpus):
        table = storage.read_table(uri)
        similarities.append(table["similarity"].to_numpy())
        best = most_similar(pa.concat_tables([best, table]))
    values = np.concatenate(similarities)
    return {
        "clips": len(values),
        "share": copied_share(values, threshold),
        "pairs": best.select(PAIR).to_pylist(),
    }


def most_similar(copies: pa.Table) -> pa.Table:
    """The rows of the PAIRS_KEPT most similar pairs, the most similar first."""
    order = [("similarity", "descending"), ("clip_id", "ascending")]
    return copies.filter(pc.is_valid(copies["training_clip"])).sort_by(order).slice(0, PAIRS_KEPT)


def real_pairs(real: pa.Table) -> list[dict[str, Any]]:
    """The most similar pairs of training clips; two clips that find each other are one pair."""
    seen, once = set[frozenset[str]](), []
    for row in real.select(["clip_id", "training_clip"]).to_pylist():
        pair = frozenset(row.values())
        once.append(pair not in seen)
        seen.add(pair)
    return most_similar(real.filter(pa.array(once, pa.bool_()))).select(PAIR).to_pylist()
