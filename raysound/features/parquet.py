"""The Parquet of log-mels: its schema, its folder, one shard written and read."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import storage
from raysound.settings.features import FeatureSettings

METADATA_KEY, SHARD_KEY = b"raysound", b"raysound.shard"
# Of log-mels that are computed, written and read together.
ROW_GROUP_BYTES = 32 << 20
# The tensor is noise to a dictionary and to statistics; splitting its bytes lets zstd find more.
LOG_MEL_LEAF = "log_mel.list.element"
# Encoders make a clip up to a frame longer than asked; that is no reason for a longer window.
ENCODER_PADDING = 0.02
PART = re.compile(r"part-(\d+)\.parquet")
# Records of shards that are read at a time.
RECORDS_TOGETHER = 1024
NAME_COLUMNS = ["clip_id", "label", "fold", "split", "group"]
REJECT_SCHEMA = pa.schema([(name, pa.string()) for name in ("clip_id", "path", "label", "reason")])


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
        mean = log_mel.mean(axis=(0, 2), dtype=np.float64)
        squares = np.zeros_like(mean)
        for window in log_mel:
            differences = np.subtract(window, mean[:, np.newaxis], dtype=np.float64)
            squares += np.einsum("ij,ij->i", differences, differences)
        return cls(log_mel.shape[0] * log_mel.shape[2], mean, squares)

    @classmethod
    def empty(cls, n_mels: int) -> MelStatistics:
        """Statistics of nothing."""
        return cls(0, np.zeros(n_mels), np.zeros(n_mels))

    def merge(self, other: MelStatistics) -> MelStatistics:
        """Statistics of both together."""
        count = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        delta = other.mean - self.mean
        return MelStatistics(
            count,
            self.mean + delta * (other.count / count),
            self.squares + other.squares + delta**2 * (self.count * other.count / count),
        )

    @property
    def variance(self) -> np.ndarray:
        """Float64 `(n_mels,)`."""
        return self.squares / max(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, float64 `(n_mels,)`, in units of natural log power."""
        std: np.ndarray = np.sqrt(self.variance)
        return std


@dataclass(frozen=True)
class LoudnessCounts:
    """Clips that `features.loudness` has something to tell of.

    Attributes:
        source_above_full_scale: whose mono waveform exceeds full scale before the gain.
        gained_above_full_scale: whose waveform exceeds it after the gain; it is not clipped.
        below_floor: below -70 dBFS or LUFS, that keep their level.
    """

    source_above_full_scale: int = 0
    gained_above_full_scale: int = 0
    below_floor: int = 0

    def __add__(self, other: LoudnessCounts) -> LoudnessCounts:
        return LoudnessCounts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Shard:
    """What one shard says of itself, kept in its Parquet metadata.

    Attributes:
        digest: of the manifest rows it was made from; another digest means another content.
        found: manifest rows.
        written: clips that have at least one window in the shard.
        windows: rows of the shard.
        seconds: of source audio written.
        statistics: per mel band, over the shard's rows.
        rejects: rows of REJECT_SCHEMA.
        unreadable: of the rejects, those that the storage didn't give.
        loudness: counts of its clips, or None where `features.loudness` is none.
    """

    digest: str
    found: int
    written: int
    windows: int
    seconds: float
    statistics: MelStatistics
    rejects: list[dict[str, str]] = field(default_factory=list)
    unreadable: int = 0
    loudness: LoudnessCounts | None = None

    def to_json(self) -> str:
        """As text that `from_json` takes."""
        statistics = {
            key: np.asarray(value).tolist() for key, value in vars(self.statistics).items()
        }
        values = {**vars(self), "statistics": statistics}
        # Without loudness the bytes are those of earlier versions.
        loudness = values.pop("loudness")
        return json.dumps(values | ({"loudness": asdict(loudness)} if loudness else {}))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """The record that `to_json` wrote."""
        values = json.loads(text)
        count, mean, squares = (values["statistics"][key] for key in ("count", "mean", "squares"))
        values["statistics"] = MelStatistics(count, np.array(mean), np.array(squares))
        if "loudness" in values:
            values["loudness"] = LoudnessCounts(**values["loudness"])
        return cls(**values)


def folder(output: str, corpus: str, settings: FeatureSettings) -> str:
    """Where the features of a corpus lie; other settings have another folder."""
    return storage.join(output, "features", f"{corpus}-{settings.id}")


def band_edges(settings: FeatureSettings) -> np.ndarray:
    """Lowest frequency of each mel band, Hz, `(n_mels,)`.

    Bands lie evenly on O'Shaughnessy's mel scale as HTK has it: 2595 log10(1 + f / 700).
    """
    return mel_points(settings)[: settings.n_mels]


def mel_points(settings: FeatureSettings) -> np.ndarray:
    """Where the triangles of the mel bands begin, peak and end, Hz, `(n_mels + 2,)`."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (settings.f_min, settings.f_max))
    points = np.linspace(low, high, settings.n_mels + 2)
    hertz: np.ndarray = 700 * (10 ** (points / 2595) - 1)
    return hertz


def empty_bands(settings: FeatureSettings) -> list[int]:
    """Mel bands too narrow to hold a Fourier bin: they are silent whatever the sound is."""
    edges = mel_points(settings)
    bins = np.linspace(0, settings.sample_rate // 2, settings.n_fft // 2 + 1)
    inside = np.searchsorted(bins, edges[2:], "left") - np.searchsorted(bins, edges[:-2], "right")
    return np.flatnonzero(inside <= 0).tolist()


def shard_name(index: int) -> str:
    """The file of the `index`th shard."""
    return f"part-{index:08d}.parquet"


def shard_uris(folder: str) -> list[str]:
    """The shards of a feature folder, in order, with numbers of any length."""
    return [storage.join(folder, name) for _, name in sorted(shard_names(folder))]


def shard_names(folder: str) -> list[tuple[int, str]]:
    """Number and file name of each shard of a folder, in any order."""
    names = (PART.fullmatch(name) for name, _, _ in storage.scan(folder))
    return [(int(name[1]), name[0]) for name in names if name]


def without_rejects(manifest: pa.Table, folder: str) -> pa.Table:
    """Those of some manifest rows that were not rejected."""
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


class ShardWriter:
    """One shard being written, row group by row group; see `write_shard`."""

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
            rows: the columns of `schema` but `log_mel`, and any others; a row a window.
            log_mels: float32 `(n, n_mels, n_frames)`, finite.

        Raises:
            ValueError: rows and log-mels of different number, log-mels of another shape, or one
                that is not finite.
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
        """Leaves the shard's record in its metadata."""
        self.parquet.add_key_value_metadata({SHARD_KEY: shard.to_json()})


@contextmanager
def shard_writer(uri: str, settings: FeatureSettings) -> Iterator[ShardWriter]:
    """One shard, which appears whole when the block ends, or not at all."""
    with storage.whole_file(uri) as file:
        writer = ShardWriter(file, settings)
        try:
            yield writer
        finally:
            writer.parquet.close()


def windows_together(settings: FeatureSettings) -> int:
    """Windows of a row group: as many as ROW_GROUP_BYTES hold."""
    return max(1, ROW_GROUP_BYTES // (settings.n_mels * settings.n_frames * 4))


def read_record(uri: str) -> Shard | None:
    """The record of a shard, or None if there is no such file."""
    try:
        with storage.open_file(uri) as file:
            metadata = pq.read_metadata(file).metadata
    except FileNotFoundError:
        return None
    return Shard.from_json(metadata[SHARD_KEY].decode())


def read_records(folder: str, shards: Sequence[int]) -> Iterator[Shard]:
    """The records of some shards, in their order. Raises FileNotFoundError for one not there."""

    def read(index: int) -> Shard:
        uri = storage.join(folder, shard_name(index))
        shard = read_record(uri)
        if shard is None:
            raise FileNotFoundError(f"{uri} is gone")
        return shard

    # An object store answers each question in some hundredths of a second.
    with ThreadPoolExecutor(storage.ASKED_AT_ONCE if "://" in folder else 1) as pool:
        for start in range(0, len(shards), RECORDS_TOGETHER):
            yield from pool.map(read, shards[start : start + RECORDS_TOGETHER])


def tensor_column(values: np.ndarray, is_null: pa.ChunkedArray) -> pa.Array:
    """Arrays `(n, …)` as a column of tensors, without a copy.

    Args:
        values: of the tensors; any where the tensor is null.
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
    """A column of tensors, as `log_mel`, as `(n, …)`, without a copy where it is one chunk."""
    combined = column.combine_chunks()
    chunk = combined.chunk(0) if isinstance(combined, pa.ChunkedArray) else combined
    array: np.ndarray = chunk.to_numpy_ndarray()
    return array


class ShardTotals:
    """Sums over the shards of a corpus, added one by one: no record is kept."""

    def __init__(self, corpus: str, settings: FeatureSettings) -> None:
        self.corpus = corpus
        self.settings = settings
        self.shards = self.found = self.written = self.rejected = self.unreadable = 0
        self.windows = 0
        self.seconds = 0.0
        self.statistics = MelStatistics.empty(settings.n_mels)
        self.loudness = LoudnessCounts()
        self.digests = hashlib.sha256()

    def add(self, shard: Shard) -> None:
        """Counts one more shard; the digest stands for all of them in order."""
        self.shards += 1
        self.found += shard.found
        self.written += shard.written
        self.rejected += len(shard.rejects)
        self.unreadable += shard.unreadable
        self.windows += shard.windows
        self.seconds += shard.seconds
        self.statistics = self.statistics.merge(shard.statistics)
        self.loudness += shard.loudness or LoudnessCounts()
        self.digests.update(shard.digest.encode())

    def summary(self, clips: int) -> dict[str, Any]:
        """The content of `summary.json`.

        Args:
            clips: rows of the manifest.

        Raises:
            RuntimeError: the clips of the manifest are not clips written plus clips rejected.
        """
        if not clips == self.found == self.written + self.rejected:
            raise RuntimeError(
                f"{self.corpus}: {clips} clips in the manifest and {self.found} found, "
                f"but {self.written} written + {self.rejected} rejected"
            )
        settings = self.settings
        window_bytes = settings.n_mels * settings.n_frames * np.dtype(settings.dtype).itemsize
        return {
            "corpus": self.corpus,
            "feature_id": settings.id,
            "features": settings.model_dump(),
            "found": self.found,
            "written": self.written,
            "rejected": self.rejected,
            "unreadable": self.unreadable,
            "windows": self.windows,
            "bytes": self.windows * window_bytes,
            "hours": self.seconds / 3600,
            "shards": self.shards,
            "mel_mean": self.statistics.mean.tolist(),
            "mel_variance": self.statistics.variance.tolist(),
            "digest": self.digests.hexdigest()[:16],
            **({"loudness": asdict(self.loudness)} if settings.loudness else {}),
        }


def suggest_clip_length(durations: np.ndarray) -> float:
    """The length (s, in tenths) that 80 % of the clips don't exceed, but by ENCODER_PADDING.

    It is never more than the longest clip, whose thousandths then count.
    """
    enough = float(np.percentile(durations, 80, method="inverted_cdf")) - ENCODER_PADDING
    longest = float(durations.max())
    tenths = max(1, math.ceil(round(enough * 10, 6))) / 10
    return min(tenths, math.floor(longest * 1000) / 1000 or longest)
