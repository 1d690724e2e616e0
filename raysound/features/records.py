"""The record of a shard, stored in its Parquet footer, and sums over the shards of a corpus."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from typing import Any

import numpy as np

from raysound.settings.features import FeatureSettings

# Seconds; encoders extend a clip by up to a frame, which needs no longer window.
ENCODER_PADDING = 0.02


@dataclass(frozen=True)
class MelStatistics:
    """Mean and variance per mel band over frames; can be merged in any order (Chan et al. 1979).

    Attributes:
        count: number of frames.
        mean: float64 `(n_mels,)`.
        squares: float64 `(n_mels,)`, sums of squared differences from the mean.
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
        """Statistics of no frames."""
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
        """Variance, float64 `(n_mels,)`."""
        return self.squares / max(self.count, 1)

    @property
    def std(self) -> np.ndarray:
        """Standard deviation, float64 `(n_mels,)`, in units of natural log power."""
        std: np.ndarray = np.sqrt(self.variance)
        return std


@dataclass(frozen=True)
class LoudnessCounts:
    """Numbers of clips, counted with `features.loudness`.

    Attributes:
        source_above_full_scale: the mono waveform exceeds full scale before the gain.
        gained_above_full_scale: the waveform exceeds full scale after the gain; it is not clipped.
        below_floor: the level is below -70 dBFS or LUFS; these clips keep it.
    """

    source_above_full_scale: int = 0
    gained_above_full_scale: int = 0
    below_floor: int = 0

    def __add__(self, other: LoudnessCounts) -> LoudnessCounts:
        return LoudnessCounts(*map(add, astuple(self), astuple(other)))


@dataclass(frozen=True)
class Shard:
    """The record of a shard, stored in its Parquet metadata.

    Attributes:
        digest: digest of the manifest rows and the settings; the content depends on both only.
        found: number of manifest rows.
        written: number of clips with at least one window in the shard.
        windows: number of rows of the shard.
        seconds: duration of the written clips.
        statistics: statistics per mel band over the rows of the shard.
        rejects: rows of REJECT_SCHEMA.
        unreadable: number of rejects that the storage failed to return.
        loudness: counts of its clips; None without `features.loudness`.
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
        """The record as JSON, see `from_json`."""
        statistics = {
            key: np.asarray(value).tolist() for key, value in vars(self.statistics).items()
        }
        values = {**vars(self), "statistics": statistics}
        # Omitted without loudness, so that the bytes equal those of earlier versions.
        loudness = values.pop("loudness")
        return json.dumps(values | ({"loudness": asdict(loudness)} if loudness else {}))

    @classmethod
    def from_json(cls, text: str) -> Shard:
        """Parses the output of `to_json`."""
        values = json.loads(text)
        count, mean, squares = (values["statistics"][key] for key in ("count", "mean", "squares"))
        values["statistics"] = MelStatistics(count, np.array(mean), np.array(squares))
        if "loudness" in values:
            values["loudness"] = LoudnessCounts(**values["loudness"])
        return cls(**values)


class ShardTotals:
    """Sums over the shards of a corpus, added one at a time; records are not stored."""

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
        """Adds a shard; the digest depends on the order of the shards."""
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
            RuntimeError: the number of clips is not the sum of written and rejected clips.
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
    """A window length (s) for the durations (s) of clips.

    80 % of the clips do not exceed it by more than ENCODER_PADDING. It is a multiple of 0.1 s, but
    not longer than the longest clip, which is rounded down to 1 ms.
    """
    enough = float(np.percentile(durations, 80, method="inverted_cdf")) - ENCODER_PADDING
    longest = float(durations.max())
    tenths = max(1, math.ceil(round(enough * 10, 6))) / 10
    return min(tenths, math.floor(longest * 1000) / 1000 or longest)
