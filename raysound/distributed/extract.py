"""Wavs → log-mel shards, a Ray task a shard; a shard that is there already stays."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset
import pyarrow.parquet as pq
import torch

from raysound import features, storage
from raysound.config import UserError
from raysound.corpus_checks import check_classes
from raysound.distributed import gauges
from raysound.distributed.exclusive import sole_writer
from raysound.distributed.listing import check_manifest, plan_corpus, shard_clips
from raysound.distributed.session import in_a_task, in_tasks, log_here
from raysound.extraction import extract_shard, shard_digest
from raysound.features import Shard, Totals
from raysound.logmel import empty_bands
from raysound.probe import deadly_clips, end_on_standstill
from raysound.settings import Config, FeatureSettings
from raysound.wording import counted

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
# Seconds that a window may take to be read and decoded, before its clip is taken for a trap.
STANDSTILL = 300.0
# How often the process of one shard may die in a run, when none of its clips alone kills one.
MOST_DEATHS = 4


def extract(config: Config, to_train: bool = False) -> str:
    """Extracts every corpus of the config. Returns the last line of the job.

    Args:
        config: the experiment.
        to_train: training and evaluation follow, so that too few real clips for them are refused.

    Raises:
        UserError: a corpus that can't be used, found before one is decoded where listing shows it.
    """
    silent = empty_bands(config.features)
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
        # All are listed before one is decoded: what is wrong with the last is told at once. One
        # after the other, for listing holds the rows of a corpus in memory.
        plans = {"real": plan_corpus("real", config)}
        too_few = in_a_task(check_manifest, config)
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

    A finished corpus that has not changed is left as it is; otherwise only the shards whose
    clips differ are made.

    Args:
        name: of the corpus.
        config: the experiment.
        plan: what `plan_corpus` returned, if it is laid out already.

    Raises:
        UserError: not one clip of the corpus can be used.
    """
    folder = features.folder(config.output, name, config.features)
    with sole_writer(folder):
        write_shards(folder, name, config, plan or plan_corpus(name, config))
    return folder


def write_shards(folder: str, name: str, config: Config, plan: dict[str, Any]) -> None:
    """Makes what a plan says is missing of a corpus's features; see `extract_corpus`."""
    if plan["finished"]:
        verb = "is" if plan["clips"] == 1 else "are"
        logger.info("%s: %s %s extracted already", name, counted(plan["clips"], "clip"), verb)
        return
    totals = Totals(name, config.features)
    reasons: Counter[str] = Counter()
    with_rejects = []
    progress = Progress(name, plan["clips"], config.name)
    for index, shard, made in make_shards(folder, plan["shards"], config.features):
        totals.add(shard)
        progress.add(shard, made)
        if shard.rejects:
            with_rejects.append(index)
            reasons.update(reject["reason"] for reject in shard.rejects)
    summary = totals.summary(plan["clips"])
    in_a_task(collect_rejects, folder, with_rejects)
    tell_rejects(name, reasons, totals, folder)
    if summary["written"] == 0:
        found = summary["found"]
        which = "its only clip can't" if found == 1 else f"none of the {found} clips can"
        raise UserError(f"{name}: {which} be used")
    in_a_task(clear_away, folder)
    uri = storage.join(folder, "summary.json")
    storage.write_bytes(uri, json.dumps(summary, indent=2).encode())


def make_shards(
    folder: str, shards: list[int], settings: FeatureSettings
) -> Iterator[tuple[int, Shard, bool]]:
    """Makes the shards of a manifest in parallel, and yields their records in order.

    Yields:
        The shard's number, its record, and whether it was made now.
    """
    run = f"{time.time_ns():x}"
    calls = ((index, folder, settings, run, STANDSTILL) for index in shards)
    for index, (shard, made) in zip(shards, in_tasks(make_shard, calls), strict=True):
        yield index, shard, made


def make_shard(
    index: int, folder: str, settings: FeatureSettings, run: str, standstill: float
) -> tuple[Shard, bool]:
    """Runs in a Ray task: decodes, computes and writes where it stands, returns only the record."""
    torch.set_num_threads(1)
    clips = shard_clips(folder, run, index)
    uri = storage.join(folder, features.shard_name(index))
    shard = record_there(uri)
    if shard and not shard.unreadable and shard.digest == shard_digest(clips, settings):
        return shard, False
    shard = make_with_care(folder, index, clips, settings, run, standstill)
    log_here()
    logger.info("%s: %s, %d rejected", uri, counted(shard.found, "clip"), len(shard.rejects))
    for reject in shard.rejects:
        logger.warning("%s: %s rejected: %s", uri, reject["clip_id"], reject["reason"])
    return shard, True


def record_there(uri: str) -> Shard | None:
    """The record of a shard; None if there is no such file, or one that can't be understood."""
    try:
        return features.read_record(uri)
    except (OSError, ValueError, LookupError, TypeError):
        # The machine went down while it was on its way to the disk, or an older version wrote it.
        return None


def make_with_care(
    folder: str, index: int, clips: pa.Table, settings: FeatureSettings, run: str, standstill: float
) -> Shard:
    """Makes a shard; what an attempt that died leaves behind makes the next one look for the cause.

    Raises:
        UserError: it died again and again, or the shard can't be written.
    """
    name = features.shard_name(index)
    uri, mark = storage.join(folder, name), storage.join(folder, "attempts", name)
    deaths = deaths_before(mark, run)
    if deaths >= MOST_DEATHS:
        raise UserError(
            f"the process that made {name} of {folder} died {deaths} times, though none of its "
            "clips alone kills one: is there memory enough for as many processes as CPUs? "
            "compute.local_cpus lowers their number"
        )
    storage.write_bytes(mark, json.dumps({"run": run, "deaths": deaths}).encode())
    try:
        known = deadly_clips(clips, settings, standstill) if deaths else {}
        return extract_shard(uri, clips, settings, known, lambda: end_on_standstill(standstill))
    except OSError as error:
        raise UserError(f"{uri} can't be written: {error}") from error
    finally:
        end_on_standstill(0)
        storage.delete(mark)


def deaths_before(mark: str, run: str) -> int:
    """How many attempts at a shard died: in this run, or just once in those before it."""
    try:
        before = json.loads(storage.read_bytes(mark))
    except FileNotFoundError:
        return 0
    except ValueError:
        # The machine itself went down while it was on its way to the disk.
        return 1
    return 1 + int(before["deaths"] if before["run"] == run else 0)


def collect_rejects(folder: str, shards: list[int]) -> None:
    """Runs in a Ray task: writes the rejects of some shards as one table."""
    schema = features.REJECT_SCHEMA
    with (
        storage.whole_file(storage.join(folder, "rejects.parquet")) as file,
        pq.ParquetWriter(file, schema) as writer,
    ):
        for index in shards:
            shard = features.read_record(storage.join(folder, features.shard_name(index)))
            if shard is not None:
                writer.write_table(pa.Table.from_pylist(shard.rejects, schema=schema))


def clear_away(folder: str) -> None:
    """Runs in a Ray task: removes shards that the manifest lacks, and what killed writers left."""
    shards = pc.unique(storage.read_table(storage.join(folder, "manifest.parquet"), ["shard"])[0])
    wanted = {features.shard_name(index) for index in shards.to_pylist()}
    for name, _, _ in storage.list_files(folder):
        is_shard = name.startswith("part-") and name not in wanted
        if is_shard or name.startswith("attempts/") or name.endswith(".tmp"):
            storage.delete(storage.join(folder, name))


class Progress:
    """A line every few seconds: how far a corpus is."""

    def __init__(self, name: str, clips: int, experiment: str) -> None:
        self.name = name
        self.clips = clips
        self.tags = {"experiment": experiment, "corpus": name}
        self.started = self.last = time.monotonic()
        self.found = self.made = self.rejected = 0
        self.hours = 0.0

    def add(self, shard: Shard, made: bool) -> None:
        """Counts one more shard; beside new ones, what was there says nothing about the pace."""
        self.found += shard.found
        self.made += shard.found if made else 0
        self.rejected += len(shard.rejects)
        self.hours += shard.seconds / 3600
        gauges.count("clips", shard.found, **self.tags)
        gauges.count("rejects", len(shard.rejects), **self.tags)
        gauges.count("audio_hours", shard.seconds / 3600, **self.tags)
        now = time.monotonic()
        if now - self.last > SECONDS_BETWEEN_LINES or self.found == self.clips:
            self.last = now
            rate = (self.made or self.found) / (now - self.started)
            logger.info(
                "%s: %d of %s, %.0f clips/s, %.2f h of audio, %d rejected, %.0f s left",
                self.name, self.found, counted(self.clips, "clip"), rate, self.hours, self.rejected,
                (self.clips - self.found) / rate,
            )  # fmt: skip


def tell_rejects(name: str, reasons: Counter[str], totals: Totals, folder: str) -> None:
    """Says how many clips were rejected and why, the commonest reason first."""
    if not totals.rejected:
        return
    logger.warning(
        "%s: %s rejected (%s); all of them with reasons: %s",
        name,
        counted(totals.rejected, "clip"),
        "; ".join(f"{count} × {reason}" for reason, count in reasons.most_common(3)),
        storage.join(folder, "rejects.parquet"),
    )
    if totals.unreadable:
        logger.warning(
            "%s: %d of them could not be read; run again, and they are tried again",
            name, totals.unreadable,
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
