"""Wavs → log-mel shards, in parallel on Ray Data; a shard that is there already stays."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data
import torch

from raysound import features, storage
from raysound.audio import Reject, read_clip
from raysound.config import UserError
from raysound.features import Shard
from raysound.logmel import LogMel, empty_bands
from raysound.manifest import read_corpus
from raysound.settings import Config, FeatureSettings, digest
from raysound.split import assign_split

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


def extract(config: Config) -> str:
    """Extracts every corpus of the config. Returns the last line of the job."""
    silent = empty_bands(config.features)
    if silent:
        logger.warning(
            "%d of %d mel bands are narrower than one Fourier bin and stay silent: "
            "raise features.n_fft or lower features.n_mels",
            len(silent), config.features.n_mels,
        )  # fmt: skip
    for name in ("real", *config.corpora.generated):
        folder = extract_corpus(name, list_corpus(name, config), config)
        if name == "real":
            report_lengths(folder, config.features)
    return f"features: {storage.join(config.output, 'features')}"


def list_corpus(name: str, config: Config) -> pa.Table:
    """The manifest of a corpus as it lies on disk now, the real one split."""
    if name == "real":
        real = config.corpora.real
        return assign_split(read_corpus(real.path), real.split)
    return read_corpus(config.corpora.generated[name])


def finished_features(name: str, config: Config) -> str:
    """The folder of a corpus's log-mels.

    Raises:
        UserError: they were not extracted with these settings, or the corpus has changed since.
    """
    folder = features.folder(config.output, name, config.features)
    summary = storage.join(folder, "summary.json")
    if not storage.exists(summary):
        raise UserError(f"{folder} holds no finished features of {name}: run jobs/extract.py first")
    if json.loads(storage.read_bytes(summary))["digest"] != features_digest(
        list_corpus(name, config), config
    ):
        raise UserError(
            f"{name} has changed since its features were extracted (clips, labels, split or "
            "compute.shard_clips): run jobs/extract.py again"
        )
    return folder


def extract_corpus(name: str, manifest: pa.Table, config: Config) -> str:
    """Extracts one corpus and returns its folder, `summary.json` written last.

    A finished corpus with the same manifest is left as it is; otherwise only the shards whose
    manifest rows differ are made.

    Raises:
        UserError: not one clip of the corpus can be used.
    """
    folder = features.folder(config.output, name, config.features)
    summary_uri = storage.join(folder, "summary.json")
    shard_clips = config.compute.shard_clips
    count = -(-len(manifest) // shard_clips)
    expected = features_digest(manifest, config)
    if storage.exists(summary_uri):
        summary = json.loads(storage.read_bytes(summary_uri))
        if summary["digest"] == expected:
            logger.info("%s: %d clips are extracted already", name, summary["written"])
            return folder
        storage.delete(summary_uri)
    # One row group a shard: a task reads its own rows and no others.
    storage.write_table(
        storage.join(folder, "manifest.parquet"), manifest, row_group_size=shard_clips
    )
    shards = list(follow(name, len(manifest), make_shards(folder, count, config.features)))
    parts = {features.shard_name(index) for index in range(count)}
    for stale, _, _ in storage.list_files(folder):
        if stale.startswith("part-") and stale not in parts:
            storage.delete(storage.join(folder, stale))
    summary = features.summarise(shards, name, config.features)
    rejects = [reject for shard in shards for reject in shard.rejects]
    storage.write_table(
        storage.join(folder, "rejects.parquet"),
        pa.Table.from_pylist(rejects, schema=features.REJECT_SCHEMA),
    )
    tell_rejects(name, rejects, folder)
    if summary["written"] == 0:
        raise UserError(f"{name}: none of the {summary['found']} clips can be used")
    storage.write_bytes(summary_uri, json.dumps(summary, indent=2).encode())
    return folder


def make_shards(folder: str, count: int, settings: FeatureSettings) -> Iterator[Shard]:
    """Makes the shards of a manifest in parallel, one task a shard, and yields their records."""
    tasks = ray.data.range(count, override_num_blocks=count).map(
        make_shard, fn_kwargs={"folder": folder, "settings": settings}
    )
    for row in tasks.iter_rows():
        yield Shard(**json.loads(row["shard"]))


def make_shard(row: dict[str, Any], folder: str, settings: FeatureSettings) -> dict[str, Any]:
    """Runs in a Ray task: decodes, computes and writes where it stands, returns only the record."""
    index = row["id"]
    with storage.open_file(storage.join(folder, "manifest.parquet")) as file:
        rows = pq.ParquetFile(file).read_row_group(index)
    uri = storage.join(folder, features.shard_name(index))
    shard = features.read_record(uri)
    if shard is None or shard.digest != shard_digest(rows, settings):
        shard = write_shard(uri, rows, settings)
    return {"shard": json.dumps(asdict(shard))}


def write_shard(uri: str, manifest: pa.Table, settings: FeatureSettings) -> Shard:
    """Extracts the clips of some manifest rows into one Parquet file."""
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    log_mels: list[np.ndarray] = []
    rejects: list[dict[str, str]] = []
    seconds = 0.0
    for clip in manifest.to_pylist():
        try:
            decoded = read_clip(clip["path"], settings)
        except Reject as reject:
            known = {name: clip[name] for name in ("clip_id", "path", "label")}
            rejects.append({**known, "reason": str(reject)})
            continue
        seconds += decoded.duration
        source = {"duration": decoded.duration, "sample_rate": decoded.sample_rate}
        rows.extend({**clip, **source, "window": window} for window in range(len(decoded.windows)))
        with torch.inference_mode():
            log_mels.extend(log_mel(settings)(torch.from_numpy(decoded.windows)).numpy())
    shard = Shard(
        digest=shard_digest(manifest, settings),
        found=len(manifest),
        written=len(manifest) - len(rejects),
        windows=len(rows),
        seconds=seconds,
        rejects=rejects,
    )
    features.write_shard(uri, rows, log_mels, shard, settings)
    return shard


@lru_cache(maxsize=4)
def log_mel(settings: FeatureSettings) -> LogMel:
    """The transform, made once a process."""
    return LogMel(settings)


def features_digest(manifest: pa.Table, config: Config) -> str:
    """Stands for the content of all shards of a corpus."""
    length = config.compute.shard_clips
    shards = [manifest.slice(start, length) for start in range(0, len(manifest), length)]
    return digest([shard_digest(rows, config.features) for rows in shards])


def shard_digest(rows: pa.Table, settings: FeatureSettings) -> str:
    """Stands for all that a shard's content follows from."""
    return digest([rows.to_pydict(), settings.id])


def follow(name: str, total: int, shards: Iterator[Shard]) -> Iterator[Shard]:
    """Passes the records on, and says every few seconds how far the corpus is."""
    started = last = time.monotonic()
    found = rejected = 0
    hours = 0.0
    for shard in shards:
        yield shard
        found += shard.found
        rejected += len(shard.rejects)
        hours += shard.seconds / 3600
        now = time.monotonic()
        if now - last > SECONDS_BETWEEN_LINES or found == total:
            last = now
            rate = found / (now - started)
            logger.info(
                "%s: %d of %d clips, %.0f clips/s, %.2f h of audio, %d rejected, %.0f s left",
                name, found, total, rate, hours, rejected, (total - found) / rate,
            )  # fmt: skip


def tell_rejects(name: str, rejects: list[dict[str, str]], folder: str) -> None:
    """Says how many clips were rejected and why, the commonest reason first."""
    if not rejects:
        return
    reasons = Counter(reject["reason"] for reject in rejects).most_common(3)
    logger.warning(
        "%s: %d clips rejected (%s); all of them with reasons: %s",
        name,
        len(rejects),
        "; ".join(f"{count} × {reason}" for reason, count in reasons),
        storage.join(folder, "rejects.parquet"),
    )


def report_lengths(folder: str, settings: FeatureSettings) -> None:
    """Says how long the real clips are, and which `clip_length` would hold most of them whole."""
    filesystem, path = storage.locate(folder)
    parts = [
        f"{path}/{name}" for name, _, _ in storage.list_files(folder) if name.startswith("part-")
    ]
    table = pyarrow.dataset.dataset(parts, filesystem=filesystem).to_table(
        columns=["duration"], filter=pyarrow.dataset.field("window") == 0
    )
    durations = table["duration"].to_numpy()
    logger.info(
        "real: clip lengths: %s longest %.2f s; suggested features.clip_length: %g (now %g)",
        " ".join(f"{p} % ≤ {np.percentile(durations, p):.2f} s," for p in (10, 50, 80, 90)),
        durations.max(), features.suggest_clip_length(durations), settings.clip_length,
    )  # fmt: skip
