"""Extracts corpora to log-mel shards and writes a summary of each."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
from tqdm import tqdm

from raysound import storage
from raysound.corpora.checks import check_classes
from raysound.distributed.cluster import prometheus
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.failures import translate_ray_errors
from raysound.distributed.cluster.progress import progress_bar
from raysound.distributed.cluster.session import on_ray, run_remote
from raysound.distributed.extraction.listing import call_near_corpus, check_manifest, plan_corpus
from raysound.distributed.extraction.pipeline import read_valid_record, write_shards
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.bands import empty_bands
from raysound.features.records import ShardTotals, suggest_clip_length
from raysound.settings.features import LOUDNESS_FLOOR, FeatureSettings
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.wording import counted

logger = logging.getLogger(__name__)

LINE_SECONDS = 5.0
# The same for a progress bar.
BAR_SECONDS = 0.5
UNITS = {"rms": "dBFS", "lufs": "LUFS"}
# Up to this number of shards the driver reads their records, without waiting for a worker.
FEW_SHARDS = 64


@on_ray
def extract(config: Config, to_train: bool = False) -> dict[str, str]:
    """Extracts the log-mels of every corpus of a config. A finished corpus is not extracted again.

    Args:
        config: the experiment.
        to_train: raise for a real corpus with too few clips for training and evaluation.

    Returns:
        The feature folder of each corpus, a path or URI, by its name: `real` and the names in
        `corpora.generated`. `read_features` reads it.

    Raises:
        UserError: a corpus can't be used. Errors of listing come before any clip is decoded.
    """
    silent = empty_bands(config.features)
    if silent:
        logger.warning(
            "%d of %d mel bands are narrower than one Fourier bin and stay silent: "
            "raise features.n_fft or lower features.n_mels",
            len(silent), config.features.n_mels,
        )  # fmt: skip
    has_real = config.corpora.real is not None
    with ExitStack() as locks:
        for name in config.corpora.names:
            locks.enter_context(sole_writer(parquet.folder(config.output, name, config.features)))
        # All corpora are listed before any is decoded, so that errors are reported at once. They
        # are listed one by one, because listing holds the rows of a corpus in memory.
        plans = {}
        if has_real:
            plans["real"] = plan_corpus("real", config)
            too_few = call_near_corpus(check_manifest, "real", config)
            if too_few and to_train:
                raise UserError(too_few)
            if too_few:
                logger.warning("%s", too_few)
        plans |= {name: plan_corpus(name, config) for name in config.corpora.generated}
        labels = {name: plan["labels"] for name, plan in plans.items()}
        if config.evaluation.checkpoint is not None and not has_real:
            labels["real"] = checkpoint.load_metadata(config.evaluation.checkpoint).labels
        check_classes(labels)
        folders = {}
        for name, plan in plans.items():
            folders[name] = extract_corpus(name, config, plan)
            if name == "real":
                report_lengths(folders[name], config.features)
    return folders


def extract_corpus(name: str, config: Config, plan: dict[str, Any] | None = None) -> str:
    """Extracts one corpus and returns its folder, `summary.json` written last.

    Only missing shards, and those whose clips changed, are extracted.

    Args:
        name: of the corpus.
        config: the experiment.
        plan: the result of `plan_corpus`, if the corpus is listed already.

    Raises:
        UserError: no clip of the corpus can be used.
    """
    folder = parquet.folder(config.output, name, config.features)
    with sole_writer(folder):
        plan = plan or plan_corpus(name, config)
        if plan["finished"]:
            verb = "is" if plan["clips"] == 1 else "are"
            logger.info("%s: %s %s extracted already", name, counted(plan["clips"], "clip"), verb)
        else:
            extract_shards(folder, name, config, plan)
    return folder


def extract_shards(folder: str, name: str, config: Config, plan: dict[str, Any]) -> None:
    """Extracts the shards of a plan that are missing, and writes `summary.json`."""
    started = time.monotonic()
    progress = ExtractionProgress(folder, name, plan, config.name)
    with translate_ray_errors(f"the extraction of {name}"):
        with show_progress(progress):
            write_shards(folder, plan["shards"], config.features)
        few = len(plan["shards"]) <= FEW_SHARDS
        arguments = (folder, name, plan, config.features)
        summary, reasons = (
            write_summary(*arguments) if few else run_remote(write_summary, *arguments)
        )
    progress.add(
        summary["found"] - progress.found,
        summary["rejected"] - progress.rejected,
        summary["hours"] - progress.hours,
    )
    progress.show(summary["found"] / (time.monotonic() - started))
    report_rejects(name, reasons, summary, folder)
    report_loudness(name, summary)
    if summary["written"] == 0:
        found = summary["found"]
        which = "its only clip can't" if found == 1 else f"none of the {found} clips can"
        raise UserError(f"{name}: {which} be used")
    uri = storage.join(folder, "summary.json")
    storage.write_bytes(uri, json.dumps(summary, indent=2).encode())


def write_summary(
    folder: str, name: str, plan: dict[str, Any], settings: FeatureSettings
) -> tuple[dict[str, Any], Counter[str]]:
    """Sums up the records of all shards, and writes their rejects to `rejects.parquet`.

    Deletes shards that are not in the manifest, and temporary files of killed writers.

    Returns:
        The content of `summary.json`, and how often each reason for a reject occurs.
    """
    totals = ShardTotals(name, settings)
    reasons: Counter[str] = Counter()
    schema = parquet.REJECT_SCHEMA
    with (
        storage.atomic_file(storage.join(folder, "rejects.parquet")) as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for shard in parquet.read_records(folder, plan["shards"]):
            totals.add(shard)
            if shard.rejects:
                writer.write_table(pa.Table.from_pylist(shard.rejects, schema=schema))
                reasons.update(reject["reason"] for reject in shard.rejects)
    wanted = {parquet.shard_name(index) for index in plan["shards"]}
    for file_name, _, _ in storage.scan(folder):
        is_shard = file_name.startswith("part-") and file_name not in wanted
        if is_shard or file_name.endswith(".tmp"):
            storage.delete(storage.join(folder, file_name))
    storage.delete(storage.join(folder, "attempts"))
    return totals.summary(plan["clips"]), reasons


class ExtractionProgress:
    """Counts the clips of finished shards, for the console and Prometheus."""

    def __init__(self, folder: str, name: str, plan: dict[str, Any], experiment: str) -> None:
        self.folder, self.name, self.clips = folder, name, plan["clips"]
        self.tags = {"experiment": experiment, "corpus": name}
        self.waiting = {parquet.shard_name(index): index for index in plan["shards"]}
        self.found = self.rejected = 0
        self.hours = 0.0

    def update(self) -> None:
        """Adds the new shards; one that can't be read yet is retried in the next update."""
        for file_name, _, _ in storage.scan(self.folder):
            if file_name in self.waiting:
                shard = read_valid_record(storage.join(self.folder, file_name))
                if shard is not None:
                    del self.waiting[file_name]
                    self.add(shard.found, len(shard.rejects), shard.seconds / 3600)

    def add(self, found: int, rejected: int, hours: float) -> None:
        """Counts some clips."""
        self.found += found
        self.rejected += rejected
        self.hours += hours
        for kind, amount in (("clips", found), ("rejects", rejected), ("audio_hours", hours)):
            prometheus.add_to_counter(kind, amount, **self.tags)

    def show(self, rate: float) -> None:
        """Prints a line; `rate` is in clips a second, 0 before the first shard is written."""
        missing = self.clips - self.found
        left = f", {missing / rate:.0f} s left" if missing > 0 and rate > 0 else ""
        logger.info(
            "%s: %d of %s, %.0f clips/s, %.2f h of audio, %d rejected%s",
            self.name, self.found, counted(self.clips, "clip"), rate, self.hours, self.rejected,
            left,
        )  # fmt: skip


@contextmanager
def show_progress(progress: ExtractionProgress) -> Iterator[None]:
    """Shows a progress bar, or without a terminal a line every few seconds, in this block."""
    ended = Event()

    def watch(bar: tqdm) -> None:
        started, before = time.monotonic(), None
        while True:
            try:
                progress.update()
            except OSError as error:
                logger.warning("%s: can't read the progress: %s", progress.name, error)
            if before is None:
                # The rate does not count shards of an earlier run.
                before = bar.initial = progress.found
            elif bar.disable:
                progress.show((progress.found - before) / (time.monotonic() - started))
            bar.set_postfix_str(f"{progress.rejected} rejected", refresh=False)
            bar.update(progress.found - bar.n)
            if ended.wait(LINE_SECONDS if bar.disable else BAR_SECONDS):
                return

    with progress_bar(progress.name, progress.clips, "clips") as bar:
        thread = Thread(target=watch, args=(bar,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def report_rejects(name: str, reasons: Counter[str], summary: dict[str, Any], folder: str) -> None:
    """Logs how many clips were rejected and why, the commonest reason first."""
    if not summary["rejected"]:
        return
    logger.warning(
        "%s: %s rejected (%s); all of them with reasons: %s",
        name,
        counted(summary["rejected"], "clip"),
        "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3)),
        storage.join(folder, "rejects.parquet"),
    )
    if summary["unreadable"]:
        logger.warning(
            "%s: %d of them could not be read; the next run tries them again",
            name, summary["unreadable"],
        )  # fmt: skip


def report_loudness(name: str, summary: dict[str, Any]) -> None:
    """Logs how many clips exceed full scale, or are too quiet for `features.loudness`."""
    counts = summary.get("loudness")
    if counts and any(counts.values()):
        ((kind, level),) = summary["features"]["loudness"].items()
        logger.info(
            "%s: loudness %g %s: of %s, %d exceed full scale before the gain, %d after it (not "
            "clipped); %d are below %g %s and keep their level",
            name, level, UNITS[kind], counted(summary["written"], "clip"),
            counts["source_above_full_scale"], counts["gained_above_full_scale"],
            counts["below_floor"], LOUDNESS_FLOOR, UNITS[kind],
        )  # fmt: skip


def report_lengths(folder: str, settings: FeatureSettings) -> None:
    """Logs the lengths of the real clips, and a `clip_length` that covers most of them."""
    filesystem, _ = storage.locate(folder)
    parts = [storage.locate(uri)[1] for uri in parquet.shard_uris(folder)]
    table = pyarrow.dataset.dataset(parts, filesystem=filesystem).to_table(
        columns=["duration"], filter=pyarrow.dataset.field("window") == 0
    )
    durations = table["duration"].to_numpy()
    logger.info(
        "real: clip lengths: %s longest %.2f s; suggested features.clip_length: %g (now %g)",
        " ".join(f"{p} % ≤ {np.percentile(durations, p):.2f} s," for p in (10, 50, 80, 90)),
        durations.max(), suggest_clip_length(durations), settings.clip_length,
    )  # fmt: skip
