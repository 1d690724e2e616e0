"""Parquet files of log-mels: schema, folder names, writing and reading of shards."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.features.records import MelStatistics, Shard
from raysound.settings.features import FeatureSettings

METADATA_KEY, SHARD_KEY = b"raysound", b"raysound.shard"
# Bytes of the log-mels of a row group, which are written and read together.
ROW_GROUP_BYTES = 32 << 20
# Byte-stream split improves the compression of the tensor; a dictionary or statistics do not.
LOG_MEL_LEAF = "log_mel.list.element"
PART = re.compile(r"part-(\d+)\.parquet")
# Shard records that are read at a time.
RECORDS_TOGETHER = 1024
NAME_COLUMNS = ["clip_id", "label", "fold", "split", "group"]
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "path", "label", "reason")])


def folder(output: str, corpus: str, settings: FeatureSettings) -> str:
    """The feature folder of a corpus; its name depends on the settings."""
    return storage.join(output, "features", f"{corpus}-{settings.id}")


def shard_name(index: int) -> str:
    """The file name of shard `index`."""
    return f"part-{index:08d}.parquet"


def shard_uris(folder: str) -> list[str]:
    """URIs of the shards of a feature folder, by number; the number may have any length."""
    return [storage.join(folder, name) for _, name in sorted(shard_names(folder))]


def shard_names(folder: str) -> list[tuple[int, str]]:
    """Number and file name of each shard of a folder, unordered."""
    names = (PART.fullmatch(name) for name, _, _ in storage.scan(folder))
    return [(int(name[1]), name[0]) for name in names if name]


def without_rejects(manifest: pa.Table, folder: str) -> pa.Table:
    """The manifest rows whose clips were not rejected."""
    rejected = storage.read_table(storage.join(folder, "rejects.parquet"), ["clip_id"])
    return manifest.filter(
        pc.invert(pc.is_in(manifest["clip_id"], value_set=rejected["clip_id"].combine_chunks()))
    )


def schema(settings: FeatureSettings) -> pa.Schema:
    """Columns of a shard; `duration` (s) and `sample_rate` (Hz) are those of the source."""
    value = pa.float16() if settings.dtype == "float16" else pa.float32()
    return pa.schema(
        [
            ("clip_id", pa.string()),
            ("window", pa.int32()),
            ("label", pa.string()),
            ("fold", pa.string()),
            ("split", pa.string()),
            ("group", pa.string()),
            ("duration", pa.float64()),
            ("sample_rate", pa.int32()),
            ("log_mel", pa.fixed_shape_tensor(value, (settings.n_mels, settings.n_frames))),
        ]
    )


class ShardWriter:
    """Writes a shard by row group; see `write_shard`."""

    def __init__(self, file: Any, settings: FeatureSettings) -> None:
        self.settings = settings
        self.schema = schema(settings)
        self.statistics = MelStatistics.empty(settings.n_mels)
        self.windows = 0
        note = {"feature_id": settings.id, "features": settings.model_dump()}
        self.parquet = pq.ParquetWriter(
            file,
            self.schema.with_metadata({METADATA_KEY: json.dumps(note)}),
            compression="zstd",
            compression_level=1,
            use_dictionary=NAME_COLUMNS,
            use_byte_stream_split=[LOG_MEL_LEAF],
            write_statistics=[*NAME_COLUMNS, "window", "duration", "sample_rate"],
        )

    def add(self, rows: pa.Table, log_mels: np.ndarray) -> None:
        """Writes some windows as one row group.

        Args:
            rows: the columns of `schema` without `log_mel`, and any others; one row per window.
            log_mels: float32 `(n, n_mels, n_frames)`, finite.

        Raises:
            ValueError: the numbers of rows and log-mels differ, or log-mels have another shape or
                are not finite.
        """
        shape = (self.settings.n_mels, self.settings.n_frames)
        if log_mels.shape != (len(rows), *shape):
            raise ValueError(f"{len(rows)} rows of {shape}, but log-mels of {log_mels.shape}")
        statistics = MelStatistics.of(log_mels)
        if not np.isfinite(statistics.mean).all():
            broken = int(np.argmin(np.isfinite(log_mels).all(axis=(1, 2))))
            raise ValueError(f"{rows['clip_id'][broken]}: its log-mel is not finite")
        kind = self.schema.field("log_mel").type
        values = pa.array(log_mels.astype(self.settings.dtype, copy=False).reshape(-1))
        column = pa.ExtensionArray.from_storage(
            kind, pa.FixedSizeListArray.from_arrays(values, shape[0] * shape[1])
        )
        self.parquet.write_table(
            rows.append_column("log_mel", column).select(self.schema.names).cast(self.schema),
            row_group_size=len(rows),
        )
        self.statistics = self.statistics.merge(statistics)
        self.windows += len(rows)

    def finish(self, shard: Shard) -> None:
        """Stores the shard's record in the Parquet metadata."""
        self.parquet.add_key_value_metadata({SHARD_KEY: shard.to_json()})


@contextmanager
def shard_writer(uri: str, settings: FeatureSettings) -> Iterator[ShardWriter]:
    """Opens a shard for writing; the file appears only if the block completes."""
    with storage.atomic_file(uri) as file:
        writer = ShardWriter(file, settings)
        try:
            yield writer
        finally:
            writer.parquet.close()


def windows_together(settings: FeatureSettings) -> int:
    """Number of windows per row group, from ROW_GROUP_BYTES; at least 1."""
    return max(1, ROW_GROUP_BYTES // (settings.n_mels * settings.n_frames * 4))


def read_record(uri: str) -> Shard | None:
    """Reads the record of a shard; None if the file does not exist."""
    try:
        with storage.open_file(uri) as file:
            metadata = pq.read_metadata(file).metadata
    except FileNotFoundError:
        return None
    return Shard.from_json(metadata[SHARD_KEY].decode())


def read_records(folder: str, shards: Sequence[int]) -> Iterator[Shard]:
    """Reads the records of some shards, in order. Raises FileNotFoundError for a missing one."""

    def read(index: int) -> Shard:
        uri = storage.join(folder, shard_name(index))
        shard = read_record(uri)
        if shard is None:
            raise FileNotFoundError(f"{uri} is gone")
        return shard

    # Concurrent, because each request to an object store takes some 10 ms.
    with ThreadPoolExecutor(storage.CONCURRENT_REQUESTS if "://" in folder else 1) as pool:
        for start in range(0, len(shards), RECORDS_TOGETHER):
            yield from pool.map(read, shards[start : start + RECORDS_TOGETHER])


def tensor_column(values: np.ndarray, is_null: pa.ChunkedArray) -> pa.Array:
    """Converts an array `(n, …)` to a column of tensors, without a copy.

    Args:
        values: values of the tensors; arbitrary for null tensors.
        is_null: booleans `(n,)`.
    """
    column = pa.FixedShapeTensorArray.from_numpy_ndarray(values)
    if not pc.any(is_null).as_py():
        return column
    storage_array = pa.FixedSizeListArray.from_arrays(
        column.storage.values, column.type.storage_type.list_size, mask=is_null.combine_chunks()
    )
    return pa.ExtensionArray.from_storage(column.type, storage_array)


def tensor_array(column: pa.ChunkedArray) -> np.ndarray:
    """Converts a column of tensors, such as `log_mel`, to `(n, …)`; does not copy one chunk."""
    combined = column.combine_chunks()
    chunk = combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
    array: np.ndarray = chunk.to_numpy_ndarray()
    return array
