"""Searches for the most similar training clip of each clip of a shard; writes it to Parquet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.evaluation.derived_parts import derive_part, read_log_mels
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
    WINDOWS_PER_BLOCK,
    TrainingWindows,
    coarse_vectors,
    frames_together,
    normalised,
    patches,
)
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.selection import keys, smallest
from raysound.settings.features import FeatureSettings

# Incremented when results for the same clips change.
COPIES_VERSION = 1
# `window` of the clip and `training_window` of `training_clip` are the most similar windows. `lag`
# (s) is how much later the sounds of the clip occur. `training_clip` is null if all training clips
# are in the clip's group.
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
# Input of `merge_windows`: a row per training window.
WINDOWS = pa.schema(
    [
        ("clip_id", pa.string()),
        ("patch", pa.large_list(pa.uint8())),
        ("vector", pa.large_list(pa.float32())),
    ]
)
# Columns of a pair in metrics.json.
PAIR = ("clip_id", "window", "training_clip", "training_window", "similarity", "lag")
# Pairs per corpus in metrics.json.
MAX_PAIRS = 10


class SearchedClips(NamedTuple):
    """The training clips to search.

    Attributes:
        clips: columns `clip_id`, `split`, `label` and `group`, a row per clip.
        clip: row of each window's clip, ascending, `(m,)`.
        group: of each window, as an integer, `(m,)`.
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
    """The number of windows in a shard per clip, without clips that have no windows."""
    column = storage.read_table(shard, ["clip_id"])["clip_id"]
    counts = pc.value_counts(column.filter(pc.is_in(column, names)))
    return pa.table({"clip_id": counts.field("values"), "windows": counts.field("counts")})


def sample_training(clips: pa.Table, windows: pa.Table, max_windows: int) -> pa.Table:
    """Samples training clips that together have at most `max_windows` windows.

    Args:
        clips: columns `clip_id`, `split`, `label` and `group`.
        windows: columns `clip_id` and `windows`, one row per clip.
        max_windows: of all clips together.

    Returns:
        Clips in the order of the hashes of their names, until the next one would exceed
        `max_windows`, with the column `windows`.
    """
    index = pc.index_in(clips["clip_id"], windows["clip_id"].combine_chunks())
    if index.null_count:
        missing = clips["clip_id"].filter(pc.is_null(index))[0]
        raise RuntimeError(f"{missing} has no window")
    clips = clips.append_column("windows", windows["windows"].take(index))
    clips = clips.take(pa.array(np.argsort(keys(clips["clip_id"].to_pylist()), kind="stable")))
    fits = np.cumsum(clips["windows"].to_numpy()) <= max_windows
    return clips.slice(0, int(fits.sum())).combine_chunks()


def prepare_windows(shard: str, names: pa.Array, settings: FeatureSettings) -> pa.Table:
    """WINDOWS of some clips of a shard, for `merge_windows`."""
    tables = [WINDOWS.empty_table()]
    for index, log_mel in read_log_mels(shard, names):
        patch = patches(log_mel, hop_seconds(settings))
        columns = [
            pa.LargeListArray.from_arrays(
                np.arange(len(values) + 1) * values[0].size, pa.array(values.reshape(-1))
            )
            for values in (patch, coarse_vectors(patch))
        ]
        tables.append(pa.table([names.take(pa.array(index)), *columns], schema=WINDOWS))
    return pa.concat_tables(tables)


def merge_windows(
    tables: Sequence[pa.Table], clips: pa.Table, settings: FeatureSettings
) -> SearchedClips:
    """Merges WINDOWS, with those of a clip in consecutive rows, into SearchedClips.

    Args:
        tables: of the shards, in their order.
        clips: of the windows, with the columns of `SearchedClips`.
        settings: of the log-mels.
    """
    tables = [table for table in tables if len(table)]
    names = pa.chunked_array([chunk for table in tables for chunk in table["clip_id"].chunks])
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
    # In place, because a copy of 50,000 windows takes 0.2 GB.
    for start in range(0, len(vectors), WINDOWS_PER_BLOCK):
        block = vectors[start : start + WINDOWS_PER_BLOCK]
        block[:] = normalised(block, centre)
    reference = TrainingWindows(windows, centre, vectors, seconds)
    return SearchedClips(clips, clip, group[clip].astype(np.int64), reference)


def search_part(
    row: dict[str, str], training_digest: str, settings: FeatureSettings,
    training: SearchedClips | None,
) -> dict[str, str]:  # fmt: skip
    """Writes the most similar training clips of one part of the predictions, unless they exist.

    Args:
        row: see `derive_part`.
        training_digest: of the training clips to search.
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
    """COPIES of the clips of a shard that are not training clips."""
    is_train = pc.fill_null(pc.equal(clips["split"], "train"), False)
    searched = clips.filter(pc.invert(is_train))
    indices, found = [np.zeros(0, np.int64)], []
    for index, log_mel in read_log_mels(shard, searched["clip_id"].combine_chunks()):
        indices.append(index)
        found.append(find_copies(patches(log_mel, hop_seconds(settings)), training.reference))
    return clip_copies(searched, np.concatenate(indices), found, training)


def search_sample(training: SearchedClips, first: int, last: int) -> pa.Table:
    """COPIES of training clips among those of other groups.

    Args:
        training: the clips.
        first: index of the first clip, in a sample of at most PAIR_CLIPS by the hash of the names.
        last: index after the last clip.
    """
    sample = np.flatnonzero(smallest(keys(training.clips["clip_id"].to_pylist()), PAIR_CLIPS))
    sample = sample[first:last]
    windows = np.flatnonzero(np.isin(training.clip, sample))
    found = []
    for start in range(0, len(windows), WINDOWS_PER_BLOCK):
        block = windows[start : start + WINDOWS_PER_BLOCK]
        patch, group = training.reference.patches[block], training.group
        found.append(find_copies(patch, training.reference, excluded=group, own=group[block]))
    index = np.searchsorted(sample, training.clip[windows])
    return clip_copies(training.clips.take(pa.array(sample)), index, found, training)


def clip_copies(
    clips: pa.Table, index: np.ndarray, found: Sequence[Copies], training: SearchedClips
) -> pa.Table:
    """COPIES of some clips, from the copies of their windows.

    Args:
        clips: columns `clip_id`, `split` and `label`.
        index: row of each window's clip, ascending, `(n,)`.
        found: the most similar training windows of all `n` windows.
        training: the searched clips.
    """
    if not len(clips):
        return COPIES.empty_table()
    starts = np.flatnonzero(np.diff(index, prepend=-1))
    if not np.array_equal(index[starts], np.arange(len(clips))):
        raise RuntimeError("windows and clips of a shard do not belong together")
    windows = Copies(
        np.concatenate([copies.index for copies in found]),
        np.concatenate([copies.similarity for copies in found]),
        np.concatenate([copies.lag for copies in found]),
    )
    best = by_clip(windows, starts)
    is_best = np.flatnonzero(windows.similarity == best.similarity[index])
    window = is_best[np.unique(index[is_best], return_index=True)[1]] - starts
    # The index is -1 if there is no training window to compare with.
    is_missing = best.index < 0
    clip = training.clip[best.index]
    training_window = best.index - np.searchsorted(training.clip, clip)
    columns = {
        "window": window,
        "training_clip": training.clips["clip_id"].take(pa.array(clip, mask=is_missing)),
        "training_window": pa.array(training_window, mask=is_missing),
        "similarity": best.similarity,
        "lag": best.lag,
    }
    identity = {name: clips[name] for name in ("clip_id", "split", "label")}
    return pa.table(identity | columns).cast(COPIES)


def calibrate(real: pa.Table, rate: float) -> Threshold:
    """The threshold from COPIES of training clips among those of other groups."""
    copies = real.filter(pc.is_valid(real["training_clip"]))
    threshold = threshold_of(copies["similarity"].to_numpy(), rate)
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
    """The rows of the MAX_PAIRS most similar pairs, the most similar first."""
    order = [("similarity", "descending"), ("clip_id", "ascending")]
    return copies.filter(pc.is_valid(copies["training_clip"])).sort_by(order).slice(0, MAX_PAIRS)


def real_pairs(real: pa.Table) -> list[dict[str, Any]]:
    """The most similar pairs of training clips; two clips that match each other are one pair."""
    seen, is_new = set[frozenset[str]](), []
    for row in real.select(["clip_id", "training_clip"]).to_pylist():
        pair = frozenset(row.values())
        is_new.append(pair not in seen)
        seen.add(pair)
    return most_similar(real.filter(pa.array(is_new, pa.bool_()))).select(PAIR).to_pylist()
