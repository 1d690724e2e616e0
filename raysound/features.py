"""The Parquet of log-mels: its schema, its folder, one shard written and read."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.settings import FeatureSettings, digest

METADATA_KEY = b"raysound"
# The tensor is noise to a dictionary and to statistics; splitting its bytes lets zstd find more.
LOG_MEL_LEAF = "log_mel.list.element"
# Encoders make a clip up to a frame longer than asked; that is no reason for a longer window.
ENCODER_PADDING = 0.02
NAME_COLUMNS = ["clip_id", "label", "fold", "split", "group"]
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "path", "label", "reason")])


@dataclass(frozen=True)
class Shard:
    """What one shard says of itself, kept in its Parquet metadata.

    Attributes:
        digest: of the manifest rows it was made from; another digest means another content.
        found: manifest rows.
        written: clips that have at least one window in the shard.
        windows: rows of the shard.
        seconds: of source audio written.
        rejects: rows of REJECT_SCHEMA.
    """

    digest: str
    found: int
    written: int
    windows: int
    seconds: float
    rejects: list[dict[str, str]] = field(default_factory=list)


def folder(output: str, corpus: str, settings: FeatureSettings) -> str:
    """Where the features of a corpus lie; other settings have another folder."""
    return storage.join(output, "features", f"{corpus}-{settings.id}")


def shard_name(index: int) -> str:
    """The file of the `index`th shard."""
    return f"part-{index:05d}.parquet"


def part_uris(folder: str) -> list[str]:
    """The shards of a feature folder, in order."""
    names = [name for name, _, _ in storage.list_files(folder)]
    return [
        storage.join(folder, name)
        for name in names
        if name.startswith("part-") and name.endswith(".parquet")
    ]


def usable_clips(folder: str) -> pa.Table:
    """The manifest rows of a finished feature folder that were not rejected."""
    manifest = storage.read_table(storage.join(folder, "manifest.parquet"))
    rejected = storage.read_table(storage.join(folder, "rejects.parquet"), ["clip_id"])
    return manifest.filter(
        pc.invert(pc.is_in(manifest["clip_id"], value_set=rejected["clip_id"].combine_chunks()))
    )


def schema(settings: FeatureSettings) -> pa.Schema:
    """Columns of a shard; `duration` in s and `sample_rate` in Hz are the source's."""
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


def write_shard(
    uri: str,
    rows: Sequence[Mapping[str, Any]],
    log_mels: Sequence[np.ndarray],
    shard: Shard,
    settings: FeatureSettings,
) -> None:
    """Writes one shard whole.

    Args:
        uri: of the file.
        rows: the columns of `schema` but `log_mel`, a dict a window.
        log_mels: `(n_mels, n_frames)` a window, finite.
        shard: the record to keep with it.
        settings: what the log-mels were made with.

    Raises:
        ValueError: rows and log-mels of different number, a log-mel of another shape, or one that
            is not finite.
    """
    target = schema(settings)
    shape = (settings.n_mels, settings.n_frames)
    if len(log_mels) != len(rows):
        raise ValueError(f"{len(rows)} rows, but {len(log_mels)} log-mels")
    tensor = np.empty((len(rows), *shape), settings.dtype)
    for index, log_mel in enumerate(log_mels):
        if log_mel.shape != shape or not np.isfinite(log_mel).all():
            raise ValueError(
                f"{rows[index]['clip_id']}: expected a finite log-mel of shape {shape}, "
                f"got {log_mel.shape}"
            )
        tensor[index] = log_mel
    names = [name for name in target.names if name != "log_mel"]
    columns = [pa.array([row[name] for row in rows], target.field(name).type) for name in names]
    values = pa.array(tensor.reshape(-1), target.field("log_mel").type.value_type)
    storage_array = pa.FixedSizeListArray.from_arrays(values, shape[0] * shape[1])
    columns.append(pa.ExtensionArray.from_storage(target.field("log_mel").type, storage_array))
    note = {"feature_id": settings.id, "features": settings.model_dump(), "shard": asdict(shard)}
    table = pa.Table.from_arrays(
        columns, schema=target.with_metadata({METADATA_KEY: json.dumps(note).encode()})
    )
    storage.write_table(
        uri,
        table,
        compression="zstd",
        compression_level=1,
        use_dictionary=NAME_COLUMNS,
        use_byte_stream_split=[LOG_MEL_LEAF],
        write_statistics=[*NAME_COLUMNS, "window", "duration", "sample_rate"],
    )


def read_record(uri: str) -> Shard | None:
    """The record of a shard, or None if there is no such file."""
    if not storage.exists(uri):
        return None
    with storage.open_file(uri) as file:
        metadata = pq.read_schema(file).metadata or {}
    return Shard(**json.loads(metadata[METADATA_KEY])["shard"])


def log_mel_array(column: pa.ChunkedArray) -> np.ndarray:
    """A `log_mel` column as `(n, n_mels, n_frames)`, without a copy where it is one chunk."""
    combined = column.combine_chunks()
    chunk = combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
    array: np.ndarray = chunk.to_numpy_ndarray()
    return array


def summarise(shards: Sequence[Shard], corpus: str, settings: FeatureSettings) -> dict[str, Any]:
    """Totals over all shards, for `summary.json`.

    Raises:
        RuntimeError: clips found are not clips written plus clips rejected.
    """
    found = sum(shard.found for shard in shards)
    written = sum(shard.written for shard in shards)
    rejected = sum(len(shard.rejects) for shard in shards)
    windows = sum(shard.windows for shard in shards)
    if found != written + rejected:
        raise RuntimeError(
            f"{corpus}: {found} clips found, but {written} written + {rejected} rejected"
        )
    return {
        "corpus": corpus,
        "feature_id": settings.id,
        "features": settings.model_dump(),
        "found": found,
        "written": written,
        "rejected": rejected,
        "windows": windows,
        "bytes": windows * settings.n_mels * settings.n_frames * np.dtype(settings.dtype).itemsize,
        "hours": sum(shard.seconds for shard in shards) / 3600,
        "shards": len(shards),
        "digest": digest([shard.digest for shard in shards]),
    }


def suggest_clip_length(durations: np.ndarray) -> float:
    """The length (s, in tenths) that 80 % of the clips don't exceed, but by ENCODER_PADDING."""
    enough = float(np.percentile(durations, 80, method="inverted_cdf")) - ENCODER_PADDING
    return max(1, math.ceil(round(enough * 10, 6))) / 10


@dataclass(frozen=True)
class MelStatistics:
    """Mean and spread per mel band, over every frame seen; merges in any order (Chan et al. 1979).

    Attributes:
        count: frames.
        mean: float64 `(n_mels,)`.
        squares: float64 `(n_mels,)`, sum of squared differences from the mean.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray

    @classmethod
    def of(cls, log_mel: np.ndarray) -> MelStatistics:
        """Statistics of `(n, n_mels, n_frames)`."""
        bands = np.moveaxis(log_mel, 1, 0).reshape(log_mel.shape[1], -1).astype(np.float64)
        mean = bands.mean(axis=1)
        return cls(bands.shape[1], mean, np.square(bands - mean[:, np.newaxis]).sum(axis=1))

    def merge(self, other: MelStatistics) -> MelStatistics:
        """Statistics of both together."""
        count = self.count + other.count
        delta = other.mean - self.mean
        return MelStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.squares + other.squares + delta**2 * (self.count * other.count / count),
        )

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, float64 `(n_mels,)`, in units of natural log power."""
        std: np.ndarray = np.sqrt(self.squares / self.count)
        return std
