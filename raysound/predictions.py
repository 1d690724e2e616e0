"""The Parquet of what a judge heard: its schema, and reading parts of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.metrics.corpus import Scored
from raysound.metrics.declarations import EMBEDDING_NUMBERS
from raysound.metrics.mismatch import Sound

# Probabilities and embedding are those of the clip, the mean over its windows. `sample_rate` (Hz)
# and `duration` (s) are the file's; `level` (dB) and `spectrum` (natural log power, a number a mel
# band) are of the frames that hold sound, `sounding` is their share. `realism` and
# `nearest` set a clip against the real ones.
PREDICTIONS = pa.schema(
    [
        ("corpus", pa.string()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("asked_probability", pa.float32()),
        ("windows", pa.int32()),
        ("sample_rate", pa.int32()),
        ("duration", pa.float64()),
        ("level", pa.float32()),
        ("sounding", pa.float32()),
        ("realism", pa.float32()),
        ("nearest", pa.string()),
        ("probabilities", pa.list_(pa.float32())),
        ("embedding", pa.list_(pa.float32())),
        ("spectrum", pa.list_(pa.float32())),
    ]
)
LISTS = ("probabilities", "embedding", "spectrum")


def read_index(uri: str) -> pa.Table:
    """Every column but the lists, and `row`, where in the file it stands."""
    with storage.open_file(uri) as file:
        table = pq.read_table(
            file, columns=[name for name in PREDICTIONS.names if name not in LISTS]
        )
    return table.append_column("row", pa.array(np.arange(len(table))))


def of_corpus(index: pa.Table, corpus: str, split: str | None = None) -> pa.Table:
    """The rows of one corpus, or of one of its splits."""
    found = index.filter(pc.equal(index["corpus"], corpus))
    return found if split is None else found.filter(pc.equal(found["split"], split))


def read_lists(uri: str, column: str, rows: np.ndarray) -> np.ndarray:
    """One of the list columns at some rows of the file, ascending, as `(n, size)`."""
    parts = []
    with storage.open_file(uri) as opened:
        file, start = pq.ParquetFile(opened), 0
        for group in range(file.num_row_groups):
            end = start + file.metadata.row_group(group).num_rows
            wanted = rows[(rows >= start) & (rows < end)] - start
            if len(wanted):
                table = file.read_row_group(group, columns=[column])
                parts.append(as_array(table[column].take(pa.array(wanted))))
            start = end
    return np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of one length as `(n, length)`."""
    if not len(column):
        return np.zeros((0, 0), np.float32)
    array: np.ndarray = pc.list_flatten(column).to_numpy().reshape(len(column), -1)
    return array


def read_scored(uri: str, rows: pa.Table, labels: list[str], seed: int = 0) -> Scored:
    """What the metrics need of some clips.

    Args:
        uri: the predictions.
        rows: of `read_index`.
        labels: class names in the order of the probabilities.
        seed: of the draw of clips whose embeddings are read, where there are too many.
    """
    places = rows["row"].to_numpy()
    size = list_size(uri, "embedding")
    most = max(1, EMBEDDING_NUMBERS // max(1, size))
    drawn = np.arange(len(rows))
    if len(rows) > most:
        drawn = np.sort(np.random.default_rng(seed).permutation(len(rows))[:most])
    return Scored(
        truth=np.searchsorted(labels, rows["label"].to_pylist()).astype(np.int64),
        probabilities=read_lists(uri, "probabilities", places).reshape(-1, len(labels)),
        embedding=read_lists(uri, "embedding", places[drawn]).reshape(-1, size),
        drawn=drawn,
    )


def scored_of(table: pa.Table, labels: list[str]) -> Scored:
    """The same of predictions that are in memory."""
    return Scored(
        truth=np.searchsorted(labels, table["label"].to_pylist()).astype(np.int64),
        probabilities=as_array(table["probabilities"]),
        embedding=as_array(table["embedding"]),
        drawn=np.arange(len(table)),
    )


def read_sound(uri: str, rows: pa.Table) -> Sound:
    """How some clips sound."""
    return Sound(
        sample_rate=rows["sample_rate"].to_numpy(),
        duration=rows["duration"].to_numpy(),
        level=rows["level"].to_numpy(),
        sounding=rows["sounding"].to_numpy(),
        spectrum=read_lists(uri, "spectrum", rows["row"].to_numpy()),
    )


def list_size(uri: str, column: str) -> int:
    """Numbers in a list of some column; 0 where there is no row."""
    with storage.open_file(uri) as opened:
        file = pq.ParquetFile(opened)
        for group in range(file.num_row_groups):
            if file.metadata.row_group(group).num_rows:
                return len(file.read_row_group(group, columns=[column])[column][0])
    return 0
