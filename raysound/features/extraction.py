"""Extracts a shard: clips → windows → log-mels → Parquet file, as a stream of Arrow tables.

Each step accepts rows divided into tables in any way, so that the steps can run in one task or in
different processes. A row is a window or a reject. A reject has a `reason`, and invalidates earlier
windows of its clip.
"""

from __future__ import annotations

import signal
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysound.audio.decode import Decoder, Reject, Source, Unreadable
from raysound.audio.log_mel import LogMel
from raysound.audio.sounds import open_sounds
from raysound.corpora.formats.samples import FLOAT, INT, as_float
from raysound.features import parquet
from raysound.features.records import LoudnessCounts, Shard
from raysound.settings.features import FeatureSettings
from raysound.settings.fields import digest

# Bytes of the waveforms of a table, without the last window.
BLOCK_BYTES = 16 << 20
WINDOW_COLUMNS = pa.schema(
    [
        ("window", pa.int32()),
        ("duration", pa.float64()),
        ("sample_rate", pa.int32()),
        ("reason", pa.string()),
        ("unreadable", pa.bool_()),
    ]
)
# Additional columns with `features.loudness`: the largest absolute sample of the mono clip before
# the gain, and the gain in dB, null for a clip below the floor, which has no gain.
GAIN_COLUMNS = pa.schema([("peak", pa.float64()), ("gain_db", pa.float64())])

# Float32 waveforms `(n, samples)` → waveforms of the same shape.
Transform = Callable[[np.ndarray], np.ndarray]


def shard_digest(clips: pa.Table, settings: FeatureSettings) -> str:
    """Digest of everything that the content of a shard depends on."""
    return digest([clips.to_pydict(), settings.id])


def extract_shard(
    uri: str,
    clips: pa.Table,
    settings: FeatureSettings,
    known: Mapping[str, Reject] | None = None,
    timeout: float = 0,
) -> Shard:
    """Extracts some clips into one Parquet file, written atomically.

    Args:
        uri: URI of the Parquet file.
        clips: rows of a manifest.
        settings: settings of the features.
        known: clips that are rejected without being decoded, by clip id.
        timeout: see `read_windows`.

    Returns:
        The record that is also stored in the file.
    """
    windows = read_windows(clips, settings, known, timeout)
    return write_shard(uri, clips, settings, (add_log_mels(rows, settings) for rows in windows))


def read_windows(
    clips: pa.Table,
    settings: FeatureSettings,
    known: Mapping[str, Reject] | None = None,
    timeout: float = 0,
) -> Iterator[pa.Table]:
    """Decodes clips into windows.

    Args:
        clips: rows of a manifest.
        settings: settings of the windows.
        known: clips that are rejected without being decoded, by clip id.
        timeout: seconds to decode one window, after which this process ends; 0 for no limit. The
            download of a remote file does not count.

    Yields:
        Rows of windows and rejects: the columns of the clips; `window`, its number; `duration` (s)
        and `sample_rate` (Hz) of the source; `waveform`, the bytes of `clip_samples` samples,
        float32 or int16 with full scale at 32768; `reason`, null for a window; `unreadable`, true
        if the storage failed to return the file; GAIN_COLUMNS with `features.loudness`.
    """
    known = known or {}
    limit = set_timeout if timeout else lambda seconds: None
    decoder = _decoder(settings)
    rows = _Rows(clips, settings)
    sounds = open_sounds(clips)
    for row, clip_id in enumerate(clips["clip_id"].to_pylist()):
        sound = known.get(clip_id, next(sounds))
        first = len(rows.row)
        try:
            if isinstance(sound, Reject):
                raise sound
            limit(timeout)
            for number, (source, window) in enumerate(decoder.read(sound, partial(limit, timeout))):
                limit(0)
                rows.add(row, window, number, source)
                if rows.bytes >= BLOCK_BYTES:
                    yield rows.take()
                    first = 0
                limit(timeout)
        except Reject as reject:
            limit(0)
            rows.drop(first)
            # Stores the text only, because the exception references the decoder's file.
            rows.reject(row, str(reject), isinstance(reject, Unreadable))
        finally:
            limit(0)
    if rows.row:
        yield rows.take()


class _Rows:
    """Windows and rejects of some clips, before they become a table."""

    def __init__(self, clips: pa.Table, settings: FeatureSettings) -> None:
        self.clips = clips
        self.fields = [*WINDOW_COLUMNS, *(GAIN_COLUMNS if settings.loudness else ())]
        self.size = BLOCK_BYTES + settings.clip_samples * FLOAT.itemsize
        self.clear()

    def clear(self) -> None:
        self.row: list[int] = []
        self.columns: list[tuple[Any, ...]] = []
        # Concatenated waveforms, and the end of each.
        self.data = np.empty(0, np.uint8)
        self.ends = [0]

    @property
    def bytes(self) -> int:
        """Bytes of the waveforms."""
        return self.ends[-1]

    def add(self, row: int, window: np.ndarray, number: int, source: Source) -> None:
        """Copies a window."""
        if not len(self.data):
            self.data = np.empty(self.size, np.uint8)
        end = self.bytes + window.nbytes
        self.data[self.bytes : end] = window.view(np.uint8)
        values = (number, source.duration, source.sample_rate, None, False)
        gain = (source.gain.peak, source.gain.decibels) if source.gain else ()
        self._append(row, (*values, *gain), end)

    def reject(self, row: int, reason: str, unreadable: bool) -> None:
        """Adds a reject."""
        values = (0, None, None, reason, unreadable)
        missing = len(self.fields) - len(values)
        self._append(row, (*values, *[None] * missing), self.bytes)

    def _append(self, row: int, values: tuple[Any, ...], end: int) -> None:
        self.row.append(row)
        self.columns.append(values)
        self.ends.append(end)

    def drop(self, first: int) -> None:
        """Removes the rows from `first` on."""
        del self.row[first:], self.columns[first:], self.ends[first + 1 :]

    def take(self) -> pa.Table:
        """Returns the rows as a table, and clears them."""
        table = self.clips.take(pa.array(self.row))
        for field, values in zip(self.fields, zip(*self.columns, strict=True), strict=True):
            table = table.append_column(field, pa.array(values, field.type))
        buffers = [None, pa.py_buffer(np.array(self.ends, np.int64)), pa.py_buffer(self.data)]
        waveforms = pa.Array.from_buffers(pa.large_binary(), len(self.row), buffers)
        self.clear()
        return table.append_column("waveform", waveforms)


def add_log_mels(
    rows: pa.Table, settings: FeatureSettings, transform: Transform | None = None
) -> pa.Table:
    """Replaces the column `waveform` by `log_mel`, which is null for a reject.

    Args:
        rows: see `read_windows`.
        settings: settings of the features.
        transform: applied to the waveforms first, as float32 `(n, samples)`; they have the gain of
            `features.loudness`.

    Raises:
        ValueError: the transform changes the shape.
    """
    found = torch.empty(len(rows), settings.n_mels, settings.n_frames)
    places = np.flatnonzero(pc.is_null(rows["reason"]).to_numpy())
    waveforms = _waveforms(rows["waveform"], places, settings)
    if transform is not None and len(places):
        given = np.stack([as_float(waveform) for waveform in waveforms])
        changed = np.ascontiguousarray(transform(given), np.float32)
        if changed.shape != given.shape:
            raise ValueError(f"the transform turns {given.shape} into {changed.shape}")
        waveforms = iter(changed)
    log_mel = _log_mel(settings)
    with warnings.catch_warnings():
        # Arrow's buffers are read-only; LogMel does not write to them.
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        # One at a time, so that a result does not depend on other windows of the batch.
        for place, waveform in zip(places, waveforms, strict=True):
            log_mel(torch.from_numpy(waveform), out=found[place])
    return rows.drop_columns("waveform").append_column(
        "log_mel", parquet.tensor_column(found.numpy(), pc.is_valid(rows["reason"]))
    )


def _waveforms(
    column: pa.ChunkedArray, places: np.ndarray, settings: FeatureSettings
) -> Iterator[np.ndarray]:
    """Yields the waveforms `(clip_samples,)`, int16 or float32, of some rows."""
    for place in places.tolist():
        buffer = column[place].as_buffer()
        dtype = INT if buffer.size == settings.clip_samples * INT.itemsize else FLOAT
        yield np.frombuffer(buffer, dtype)


def write_shard(
    uri: str, clips: pa.Table, settings: FeatureSettings, tables: Iterable[pa.Table]
) -> Shard:
    """Writes the log-mels of a shard to one Parquet file, atomically.

    Args:
        uri: URI of the Parquet file.
        clips: rows of a manifest; each has at least one row in the tables.
        settings: settings of the features.
        tables: see `add_log_mels`; collected before writing, because a clip may be rejected after
            its first windows.

    Returns:
        The record that is also stored in the file.
    """
    rows = pa.concat_tables(tables) if len(clips) else None
    with parquet.shard_writer(uri, settings) as writer:
        rejects, seconds, unreadable = [], 0.0, 0
        loudness = LoudnessCounts() if settings.loudness else None
        if rows is not None:
            # Without the tensors, because a filter copies them.
            known = rows.drop_columns("log_mel")
            rejected = known.filter(pc.is_valid(known["reason"]))
            rejects = rejected.select(parquet.REJECT_SCHEMA.names).to_pylist()
            if rejects:
                unreadable = pc.sum(rejected["unreadable"]).as_py()
                # Also removes earlier windows of rejected clips.
                broken = pc.is_in(rows["clip_id"], value_set=rejected["clip_id"].combine_chunks())
                rows = rows.filter(pc.invert(broken))
                known = rows.drop_columns("log_mel")
            firsts = known.filter(pc.equal(known["window"], 0))
            for duration in firsts["duration"].to_pylist():
                seconds += duration
            if loudness:
                loudness = _loudness_counts(firsts)
            capacity = parquet.windows_together(settings)
            for start in range(0, len(rows), capacity):
                group = rows.slice(start, capacity)
                writer.add(group.drop_columns("log_mel"), parquet.tensor_array(group["log_mel"]))
        shard = Shard(
            digest=shard_digest(clips, settings),
            found=len(clips),
            written=len(clips) - len(rejects),
            windows=writer.windows,
            seconds=seconds,
            statistics=writer.statistics,
            rejects=rejects,
            unreadable=unreadable,
            loudness=loudness,
        )
        writer.finish(shard)
    return shard


def _loudness_counts(clips: pa.Table) -> LoudnessCounts:
    """Counts clips by their GAIN_COLUMNS; there is one row per clip."""
    peak = clips["peak"].to_numpy()
    gained = peak * 10 ** (clips["gain_db"].fill_null(0).to_numpy() / 20)
    return LoudnessCounts(
        source_above_full_scale=int((peak > 1).sum()),
        gained_above_full_scale=int((gained > 1).sum()),
        below_floor=clips["gain_db"].null_count,
    )


def set_timeout(seconds: float) -> None:
    """Ends this process after some seconds, unless called again before; 0 cancels the timeout.

    A decoder that hangs in C code can't be interrupted in any other way.
    """
    signal.setitimer(signal.ITIMER_REAL, seconds)


@lru_cache(maxsize=1)
def _decoder(settings: FeatureSettings) -> Decoder:
    """Created once per process, because its buffers are too large to allocate per shard."""
    return Decoder(settings)


@lru_cache(maxsize=1)
def _log_mel(settings: FeatureSettings) -> LogMel:
    return LogMel(settings)
