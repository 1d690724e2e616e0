"""Ray datasets of log-mels for a user's own pipelines."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data

from raysound import storage
from raysound.corpora.manifest import read_corpus
from raysound.distributed.cluster.failures import finite_retries
from raysound.distributed.cluster.session import ensure_session
from raysound.distributed.extraction.pipeline import map_log_mels
from raysound.features import parquet
from raysound.features.extraction import Transform, read_windows
from raysound.features.shards import assign_shards, clips_per_shard
from raysound.settings.features import FeatureSettings
from raysound.settings.paths import absolute_path

logger = logging.getLogger(__name__)


def log_mels(
    corpus: str, settings: FeatureSettings, transform: Transform | None = None
) -> ray.data.Dataset:
    """The log-mels of a corpus, computed while the dataset is consumed; nothing is written.

    A clip that can't be used is left out, and the log of its worker gives the reason. If only the
    end of a clip is damaged, the rows before it may be kept. A file that crashes the decoder ends
    the pipeline after some retries; `extract` finds and rejects such files. If no Ray session is
    open, one is opened and stays open.

    Args:
        corpus: path or URI, as `corpora.real.path`.
        settings: of the log-mels.
        transform: takes the waveforms of some windows, float32 `(n, samples)` with full scale at 1
            and with the gain of `settings.loudness`, and returns as many of the same shape, from
            which the log-mels are computed.

    Returns:
        A row per window: the columns of the manifest (`clip_id`, `path`, `label`, …), `window`,
        `duration` (s) and `sample_rate` (Hz) of the source, and `log_mel`, float32
        `(n_mels, n_frames)`, natural log of mel power. With `settings.loudness` also `peak`, the
        largest absolute sample of the mono clip before the gain, and `gain_db`, null for a clip
        below -70 dBFS or LUFS, which has none.

    Raises:
        UserError: the corpus can't be listed.
    """
    ensure_session()
    # Ray's workers run in another folder.
    clips = read_corpus(absolute_path(corpus))
    sharded = assign_shards(clips, None, clips_per_shard(len(clips), "auto", settings))
    options = {"batch_size": None, "batch_format": "pyarrow", "zero_copy_batch": True}
    with finite_retries() as retries:
        windows = ray.data.from_arrow(split_by_shard(sharded)).map_batches(
            decode, fn_kwargs={"settings": settings}, **options, **retries
        )
        return windows.map_batches(
            map_log_mels, fn_kwargs={"settings": settings, "transform": transform},
            **options, **retries,
        )  # fmt: skip


def split_by_shard(clips: pa.Table) -> list[pa.Table]:
    """Splits clips, sorted by their column `shard`, into one table per shard, and drops it."""
    sizes = clips["shard"].combine_chunks().value_counts().field("counts").to_pylist()
    rows, tables = clips.drop_columns("shard"), []
    for size in sizes:
        tables.append(rows.slice(0, size))
        rows = rows.slice(size)
    return tables


def decode(clips: pa.Table, settings: FeatureSettings) -> Iterator[pa.Table]:
    """Runs in a Ray task: the windows of some clips; rejects go to the log."""
    import torch

    torch.set_num_threads(1)
    for rows in read_windows(clips, settings):
        known = rows.select(["path", "reason"])
        rejects = known.filter(pc.is_valid(known["reason"])).to_pylist()
        for reject in rejects:
            logger.warning("%s rejected: %s", reject["path"], reject["reason"])
        yield rows.filter(pc.is_null(rows["reason"])) if rejects else rows


def read_features(folder: str, **options: Any) -> ray.data.Dataset:
    """The rows that `extract` wrote to a feature folder, in the order of the shards.

    If no Ray session is open, one is opened and stays open.

    Args:
        folder: path or URI that `extract` returns, `OUTPUT/features/<corpus>-<feature id>`.
        options: of `ray.data.read_parquet`.

    Returns:
        See `raysound.features.parquet.schema`.

    Raises:
        FileNotFoundError: there is no finished feature folder.
    """
    folder = absolute_path(folder)
    if not storage.exists(storage.join(folder, "summary.json")):
        raise FileNotFoundError(f"{folder} holds no finished features: run jobs/extract.py first")
    ensure_session()
    filesystem, _ = storage.locate(folder)
    parts = [storage.locate(uri)[1] for uri in parquet.shard_uris(folder)]
    return ray.data.read_parquet(parts, filesystem=filesystem, **options)
