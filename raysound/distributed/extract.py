"""Corpora → log-mel shards: what is missing is extracted, and summed up."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq

from raysound import features, storage
from raysound.config import UserError
from raysound.corpus_checks import check_classes
from raysound.distributed import gauges
from raysound.distributed.exclusive import sole_writer
from raysound.distributed.extraction_pipeline import write_shards
from raysound.distributed.failures import reported
from raysound.distributed.listing import (
    call_for_corpus,
    check_manifest,
    plan_corpus,
)
from raysound.distributed.session import run_remote
from raysound.features import Totals
from raysound.settings import Config, FeatureSettings
from raysound.wording import counted

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0


def extract(config: Config, to_train: bool = False) -> str:
    """Extracts every corpus of the config. Returns the last line of the job.

    Args:
        config: the experiment.
        to_train: training and evaluation follow, so that too few real clips for them are refused.

    Raises:
        UserError: a corpus that can't be used, found before one is decoded where listing shows it.
    """
    silent = features.empty_bands(config.features)
    if silent:
        logger.warning(
            "%d of %d mel bands are narrower than one Fourier bin and stay silent: "
            "raise features.n_fft or lower features.n_mels",
            len(silent), config.features.n_mels,
        )  # fmt: skip
    names = ("real", *config.corpora.generated)
    with ExitStack() as locks:
        for name in names:
            locks.enter_context(sole_writer(features.folder(config.output, name, config.features)))
        # All are listed before one is decoded: an error in the last is reported at once. One after
        # the other, because listing holds the rows of a corpus in memory.
        plans = {"real": plan_corpus("real", config)}
        too_few = call_for_corpus(check_manifest, "real", config)
        if too_few and to_train:
            raise UserError(too_few)
        if too_few:
            logger.warning("%s", too_few)
        plans |= {name: plan_corpus(name, config) for name in config.corpora.generated}
        check_classes({name: plan["labels"] for name, plan in plans.items()})
        for name, plan in plans.items():
            folder = extract_corpus(name, config, plan)
            if name == "real":
                report_lengths(folder, config.features)
    return f"features: {storage.join(config.output, 'features')}"


def extract_corpus(name: str, config: Config, plan: dict[str, Any] | None = None) -> str:
    """Extracts one corpus and returns its folder, `summary.json` written last.

    A finished corpus that has not changed stays as it is; otherwise only the shards whose clips
    differ are extracted.

    Args:
        name: of the corpus.
        config: the experiment.
        plan: what `plan_corpus` returned, if the corpus is listed already.

    Raises:
        UserError: not one clip of the corpus can be used.
    """
    folder = features.folder(config.output, name, config.features)
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
    with reported(f"the extraction of {name}"), progress(folder, name, plan, config.name):
        write_shards(folder, plan["shards"], config.features)
        summary, reasons = run_remote(finish, folder, name, plan, config.features)
    rate = summary["found"] / (time.monotonic() - started)
    logger.info(
        "%s: %d of %s, %.0f clips/s, %.2f h of audio, %d rejected",
        name, summary["found"], counted(plan["clips"], "clip"), rate, summary["hours"],
        summary["rejected"],
    )  # fmt: skip
    report_rejects(name, reasons, summary, folder)
    if summary["written"] == 0:
        found = summary["found"]
        which = "its only clip can't" if found == 1 else f"none of the {found} clips can"
        raise UserError(f"{name}: {which} be used")
    uri = storage.join(folder, "summary.json")
    storage.write_bytes(uri, json.dumps(summary, indent=2).encode())


def finish(
    folder: str, name: str, plan: dict[str, Any], settings: FeatureSettings
) -> tuple[dict[str, Any], Counter[str]]:
    """Runs in a Ray task: sums up the records of all shards, and collects their rejects.

    It also removes shards that the manifest lacks, and what killed writers left.

    Returns:
        The content of `summary.json`, and how often each reason for a reject occurs.
    """
    totals = Totals(name, settings)
    reasons: Counter[str] = Counter()
    schema = features.REJECT_SCHEMA
    with (
        storage.whole_file(storage.join(folder, "rejects.parquet")) as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for shard in features.read_records(folder, plan["shards"]):
            totals.add(shard)
            if shard.rejects:
                writer.write_table(pa.Table.from_pylist(shard.rejects, schema=schema))
                reasons.update(reject["reason"] for reject in shard.rejects)
    wanted = {features.shard_name(index) for index in plan["shards"]}
    for file_name, _, _ in storage.scan(folder):
        is_shard = file_name.startswith("part-") and file_name not in wanted
        if is_shard or file_name.endswith(".tmp"):
            storage.delete(storage.join(folder, file_name))
    storage.delete(storage.join(folder, "attempts"))
    return totals.summary(plan["clips"]), reasons


@contextmanager
def progress(folder: str, name: str, plan: dict[str, Any], experiment: str) -> Iterator[None]:
    """Prints every few seconds how far an extraction is, and counts its clips for Prometheus."""
    tags = {"experiment": experiment, "corpus": name}
    waiting = {features.shard_name(index): index for index in plan["shards"]}
    totals = {"found": 0, "rejected": 0, "seconds": 0.0}
    started, ended = time.monotonic(), Event()

    def look() -> None:
        """Adds the records of the shards that are new."""
        names = [file_name for file_name, _, _ in storage.scan(folder) if file_name in waiting]
        shards = [waiting.pop(file_name) for file_name in sorted(names)]
        for shard in features.read_records(folder, shards):
            totals["found"] += shard.found
            totals["rejected"] += len(shard.rejects)
            totals["seconds"] += shard.seconds
            gauges.count("clips", shard.found, **tags)
            gauges.count("rejects", len(shard.rejects), **tags)
            gauges.count("audio_hours", shard.seconds / 3600, **tags)

    def show() -> None:
        before = totals["found"]
        while not ended.wait(SECONDS_BETWEEN_LINES):
            look()
            rate = (totals["found"] - before) / (time.monotonic() - started)
            left = (plan["clips"] - totals["found"]) / rate if rate else math.inf
            logger.info(
                "%s: %d of %s, %.0f clips/s, %.2f h of audio, %d rejected%s",
                name, totals["found"], counted(plan["clips"], "clip"), rate,
                totals["seconds"] / 3600, totals["rejected"],
                f", {left:.0f} s left" if rate else "",
            )  # fmt: skip

    def watch() -> None:
        # What is shown is worth no failure: a shard may be half removed, or a store may not answer.
        with suppress(OSError, ValueError, LookupError, TypeError):
            look()
            show()

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        ended.set()
        thread.join()
        look()
    finally:
        ended.set()


def report_rejects(name: str, reasons: Counter[str], summary: dict[str, Any], folder: str) -> None:
    """Prints how many clips were rejected and why, the commonest reason first."""
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
            "%s: %d of them could not be read; run again, and they are tried again",
            name, summary["unreadable"],
        )  # fmt: skip


def report_lengths(folder: str, settings: FeatureSettings) -> None:
    """Says how long the real clips are, and which `clip_length` would hold most of them whole."""
    filesystem, _ = storage.locate(folder)
    parts = [storage.locate(uri)[1] for uri in features.part_uris(folder)]
    table = pyarrow.dataset.dataset(parts, filesystem=filesystem).to_table(
        columns=["duration"], filter=pyarrow.dataset.field("window") == 0
    )
    durations = table["duration"].to_numpy()
    logger.info(
        "real: clip lengths: %s longest %.2f s; suggested features.clip_length: %g (now %g)",
        " ".join(f"{p} % ≤ {np.percentile(durations, p):.2f} s," for p in (10, 50, 80, 90)),
        durations.max(), features.suggest_clip_length(durations), settings.clip_length,
    )  # fmt: skip
