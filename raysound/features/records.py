"""What a shard holds, as its Parquet footer says, and sums over the shards of a corpus."""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, astuple, dataclass, field
from operator import add
from typing import Any

import numpy as np

from raysound.settings.features import FeatureSettings

# Encoders make a clip up to a frame longer than asked; that is no reason for a longer window.
ENCODER_PADDING = 0.02


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
    """Clips that `features.loudness` counts.

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
