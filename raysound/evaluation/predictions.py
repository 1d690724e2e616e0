"""Parquet files of a classifier's predictions: schema, file names, reading and writing."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pyarrow.csv import CSVWriter

from raysound import storage

Metadata = TypeVar("Metadata", bound=tuple[Any, ...])

# Incremented when predictions of the same features and classifier change.
PREDICTIONS_VERSION = 2
# Probabilities and embedding are those of the clip, the mean over its windows. `sample_rate` (Hz)
# and `duration` (s) are those of the file. `level_db` and `spectrum` (natural log power per mel
# band) are means over the frames that are not silent; `nonsilent_fraction` is their share.
# `realism`, `nearest_train_clip_id`, `balls` and `authentic` compare a clip with the real training
# clips; they are null for these.
PREDICTIONS = pa.schema(
    [
        ("corpus", pa.string()),
        ("clip_id", pa.string()),
        ("split", pa.string()),
        ("label", pa.string()),
        ("prediction", pa.string()),
        ("probability", pa.float32()),
        ("target_probability", pa.float32()),
        ("windows", pa.int32()),
        ("sample_rate", pa.int32()),
        ("duration", pa.float64()),
        ("level_db", pa.float32()),
        ("nonsilent_fraction", pa.float32()),
        ("realism", pa.float32()),
        ("nearest_train_clip_id", pa.string()),
        ("balls", pa.int32()),
        ("authentic", pa.bool_()),
        ("probabilities", pa.list_(pa.float32())),
        ("embedding", pa.list_(pa.float32())),
        ("spectrum", pa.list_(pa.float32())),
    ]
)
# Columns that compare a clip with the training clips.
COMPARED = ("realism", "nearest_train_clip_id", "balls", "authentic")
PART = re.compile(r"part-(\d+)\.parquet")
PART_KEY = b"raysound.predictions"


class PartMetadata(NamedTuple):
    """The record of a part, in its Parquet metadata.

    Attributes:
        scored: digest of shard, classifier and settings.
        compared: digest of the training clips that its clips were compared with; "" for none.
        clips: number of rows.
        train: number of training clips of the classifier.
        embedding_size: dimension of the embedding; 0 without clips.
    """

    scored: str
    compared: str
    clips: int
    train: int
    embedding_size: int


def part_uri(predictions: str, corpus: str, index: int) -> str:
    """The file of the predictions of the `index`th shard of a corpus."""
    return storage.join(predictions, corpus, f"part-{index:08d}.parquet")


def part_index(uri: str) -> int:
    """The number of a shard or of a part, from its file's name."""
    return int(PART.fullmatch(uri.rpartition("/")[2])[1])  # type: ignore[index]


def prediction_parts(predictions: str, corpus: str) -> list[str]:
    """The parts of a corpus, in order."""
    folder = storage.join(predictions, corpus)
    names = sorted(name for name, _, _ in storage.scan(folder) if PART.fullmatch(name))
    return [storage.join(folder, name) for name in names]


def read_predictions(
    predictions: str, corpus: str, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The predictions of a corpus, part by part.

    Args:
        predictions: the folder of all corpora, for example OUTPUT/evaluation/predictions.
        corpus: its name.
        columns: of PREDICTIONS; None for all.
    """
    for uri in prediction_parts(predictions, corpus):
        yield storage.read_table(uri, None if columns is None else [*columns])


def write_csv(
    uri: str, predictions: str, corpus: str, entries: np.ndarray, decreases: np.ndarray
) -> None:
    """Writes the predictions of a corpus as one CSV file.

    Args:
        uri: of the CSV file.
        predictions: the folder of all corpora.
        corpus: its name.
        entries: `part` and `row` of some of its clips, `(n,)`.
        decreases: their `mmd_decrease`, `(n,)`; it is empty for other clips.

    Raises:
        UnwritableError: the file can't be written, for example because the disk is full.
    """
    names = [field.name for field in PREDICTIONS if not pa.types.is_list(field.type)]
    added = pa.field("mmd_decrease", pa.float64())
    schema = pa.schema([*(PREDICTIONS.field(name) for name in names), added])
    with storage.atomic_file(uri) as file, CSVWriter(file, schema) as writer:
        for part in prediction_parts(predictions, corpus):
            table = storage.read_table(part, names)
            in_part = entries["part"] == part_index(part)
            values = np.full(len(table), np.nan)
            values[entries["row"][in_part]] = decreases[in_part]
            column = pa.array(values, mask=np.isnan(values))
            writer.write_table(table.append_column(added, column).cast(schema))


def write_part(uri: str, table: pa.Table, scored: str, compared: str) -> PartMetadata:
    """Writes one part, atomically."""
    train = pc.sum(pc.equal(table["split"], "train")).as_py() or 0
    size = len(table["embedding"][0]) if len(table) else 0
    part = PartMetadata(scored, compared, len(table), train, size)
    metadata = {**(table.schema.metadata or {}), PART_KEY: json.dumps(part._asdict())}
    storage.write_table(uri, table.replace_schema_metadata(metadata))
    return part


def read_part_metadata(uri: str) -> PartMetadata | None:
    """The record of a part; None if the file is missing or has another version."""
    return read_metadata(uri, PART_KEY, PartMetadata)


def read_metadata(uri: str, key: bytes, kind: type[Metadata]) -> Metadata | None:
    """A NamedTuple from a key of a Parquet file's metadata; None if it can't be read."""
    try:
        with storage.open_file(uri) as file:
            metadata = pq.read_metadata(file).metadata or {}
        return kind(**json.loads(metadata[key]))
    except (FileNotFoundError, KeyError, TypeError, pa.ArrowInvalid):
        return None


def read_prediction_rows(
    predictions: str, corpus: str, part: np.ndarray, row: np.ndarray, columns: Sequence[str]
) -> pa.Table:
    """Reads rows of a corpus, in the order given.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        part: number of the part of each row, `(n,)`.
        row: index of each row in its part, `(n,)`.
        columns: of PREDICTIONS.
    """
    order = np.lexsort((row, part))
    parts, starts = np.unique(part[order], return_index=True)
    groups = np.split(row[order], starts[1:]) if len(parts) else []

    def read(index: int, rows: np.ndarray) -> pa.Table:
        table = storage.read_table(part_uri(predictions, corpus, index), [*columns])
        return table.take(pa.array(rows))

    # Requests to an object store take some hundredths of a second each, so they run in parallel.
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS if "://" in predictions else 1) as pool:
        tables = list(pool.map(read, parts.tolist(), groups))
    if not tables:
        return pa.schema([PREDICTIONS.field(name) for name in columns]).empty_table()
    inverse = np.empty(len(order), np.int64)
    inverse[order] = np.arange(len(order))
    return pa.concat_tables(tables).take(pa.array(inverse)).combine_chunks()


def embedding_size(predictions: str, corpus: str) -> int:
    """The dimension of the embedding; 0 if the corpus has no clip."""
    parts = (read_part_metadata(uri) for uri in prediction_parts(predictions, corpus))
    return next((part.embedding_size for part in parts if part and part.clips), 0)


def as_array(column: pa.ChunkedArray) -> np.ndarray:
    """A column of lists of equal length as an array `(n, length)`."""
    if not len(column):
        return np.zeros((0, 0), np.float32)
    array: np.ndarray = pc.list_flatten(column).to_numpy().reshape(len(column), -1)
    return array
