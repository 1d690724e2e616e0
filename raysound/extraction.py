"""The clips of one shard → its Parquet file: decode, compute and write, in one place."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import pyarrow as pa
import torch

from raysound import features
from raysound.audio import Decoder, Reject, Unreadable
from raysound.features import Shard, ShardWriter
from raysound.logmel import LogMel
from raysound.settings import FeatureSettings, digest
from raysound.sounds import open_sounds

Watch = Callable[[], object]


def shard_digest(clips: pa.Table, settings: FeatureSettings) -> str:
    """Stands for all that a shard's content follows from."""
    return digest([clips.to_pydict(), settings.id])


def extract_shard(
    uri: str,
    clips: pa.Table,
    settings: FeatureSettings,
    known: Mapping[str, Reject] | None = None,
    watch: Watch = lambda: None,
) -> Shard:
    """Extracts some clips into one Parquet file, which appears whole.

    What is held in memory is one row group, however long a clip is.

    Args:
        uri: of the Parquet file.
        clips: rows of a manifest.
        settings: of the features.
        known: clips that are rejected unheard, by clip id.
        watch: called before every clip and every window: whoever watches sees that work goes on.

    Returns:
        The record that also stands in the file.
    """
    rejects = dict(known or {})
    while True:
        try:
            with features.write_shard(uri, settings) as writer:
                return _extractor(settings).run(clips, writer, rejects, watch)
        except _TooLate as late:
            rejects[late.clip_id] = late.reject


class _TooLate(Exception):  # noqa: N818 - no error: the shard is begun again without the clip
    """A clip proved broken when some of its windows were written already."""

    def __init__(self, clip_id: str, reject: Reject) -> None:
        super().__init__(clip_id)
        self.clip_id = clip_id
        self.reject = reject


@lru_cache(maxsize=1)
def _extractor(settings: FeatureSettings) -> _Extractor:
    """Made once a process: its buffers are too large to be made anew for every shard."""
    return _Extractor(settings)


class _Extractor:
    def __init__(self, settings: FeatureSettings) -> None:
        self.settings = settings
        self.decoder = Decoder(settings)
        self.log_mel = LogMel(settings)
        room = features.windows_together(settings)
        self.log_mels = torch.empty(room, settings.n_mels, settings.n_frames)
        # Of each window held: its clip's row, its number, the source's duration and sample rate.
        self.held: list[tuple[int, int, float, int]] = []

    def run(
        self, clips: pa.Table, writer: ShardWriter, rejects: Mapping[str, Reject], watch: Watch
    ) -> Shard:
        self.held.clear()
        rejected: dict[int, Reject] = {}
        seconds = 0.0
        sounds = open_sounds(clips)
        for row, clip_id in enumerate(clips["clip_id"].to_pylist()):
            watch()
            sound = rejects.get(clip_id, next(sounds))
            if isinstance(sound, Reject):
                rejected[row] = sound
                continue
            first, written = len(self.held), False
            try:
                for number, (source, window) in enumerate(self.decoder.read(sound)):
                    if len(self.held) == len(self.log_mels):
                        self.flush(clips, writer)
                        first, written = 0, number > 0
                    self.log_mel(torch.from_numpy(window), out=self.log_mels[len(self.held)])
                    self.held.append((row, number, source.duration, source.sample_rate))
                    watch()
                seconds += source.duration
            except Reject as caught:
                # What was caught holds all that it came through: the decoder's file above all.
                reject = type(caught)(str(caught))
                if written:
                    raise _TooLate(clip_id, reject) from None
                del self.held[first:]
                rejected[row] = reject
        self.flush(clips, writer)
        shard = Shard(
            digest=shard_digest(clips, self.settings),
            found=len(clips),
            written=len(clips) - len(rejected),
            windows=writer.windows,
            seconds=seconds,
            statistics=writer.statistics,
            rejects=_reject_rows(clips, rejected),
            unreadable=sum(isinstance(reject, Unreadable) for reject in rejected.values()),
        )
        writer.finish(shard)
        return shard

    def flush(self, clips: pa.Table, writer: ShardWriter) -> None:
        """Writes the windows held as one row group."""
        if not self.held:
            return
        row, number, duration, sample_rate = zip(*self.held, strict=True)
        rows = (
            clips.take(pa.array(row))
            .append_column("window", pa.array(number, pa.int32()))
            .append_column("duration", pa.array(duration))
            .append_column("sample_rate", pa.array(sample_rate, pa.int32()))
        )
        writer.add(rows, self.log_mels[: len(self.held)].numpy())
        self.held.clear()


def _reject_rows(clips: pa.Table, rejected: Mapping[int, Reject]) -> list[dict[str, str]]:
    known = clips.select(["clip_id", "path", "label"])
    rows = known.take(np.array([*rejected], np.int64)).to_pylist()
    return [
        {**row, "reason": str(reject)} for row, reject in zip(rows, rejected.values(), strict=True)
    ]
