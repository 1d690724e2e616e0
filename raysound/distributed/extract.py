"""Wavs → log-mel shards by Ray Data: a datasource of windows, a map to log-mels, a datasink."""

from __future__ import annotations

import json
import logging
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import groupby
from threading import Event, Thread
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import ray.data
from ray.data import Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raysound import features, storage
from raysound.config import UserError
from raysound.corpus_checks import check_classes
from raysound.distributed import gauges
from raysound.distributed.exclusive import sole_writer
from raysound.distributed.failures import finite_retries, reported
from raysound.distributed.listing import (
    call_for_corpus,
    check_manifest,
    plan_corpus,
    shard_clips,
)
from raysound.distributed.session import cluster_cpus, log_here, run_remote
from raysound.features import Shard, Totals
from raysound.settings import Config, FeatureSettings
from raysound.wording import counted

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 5.0
# Seconds that decoding a window may take before its clip is examined.
TIMEOUT = 300.0
# How often the process of one shard may die in a run, when none of its clips alone crashes it.
MOST_DEATHS = 4
# Shards of a task: Ray Data looks for finished tasks ten times a second. Its write operator holds
# the log-mels of a task until the task ends, so that more would cost memory.
SHARDS_A_TASK = 4
# Tasks of one pipeline: the driver holds each of them.
MOST_TASKS = 10_000


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
    tags = {"experiment": config.name, "corpus": name}
    with reported(f"the extraction of {name}"), progress(folder, name, plan):
        write_shards(folder, plan["shards"], config.features, tags)
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


def write_shards(
    folder: str, shards: list[int], settings: FeatureSettings, tags: dict[str, str]
) -> None:
    """Extracts shards of a manifest in parallel; those that exist already stay.

    Args:
        folder: of the features, with the manifest.
        shards: their numbers.
        settings: of the features.
        tags: of the metrics that the tasks count.
    """
    run = f"{time.time_ns():x}"
    # A death counts against the shard that was being extracted: `guarded` ends the job before.
    remote = {"num_cpus": 1, "max_retries": SHARDS_A_TASK * (MOST_DEATHS + 1)}
    most = MOST_TASKS * SHARDS_A_TASK
    sink = ShardDatasink(folder, settings, run, tags)
    for some in (shards[start : start + most] for start in range(0, len(shards), most)):
        source = WindowDatasource(some, folder, settings, run, TIMEOUT)
        with finite_retries():
            windows = ray.data.read_datasource(
                source, override_num_blocks=len(source.tasks), ray_remote_args=remote
            )
            log_mels = windows.map_batches(
                map_log_mels, fn_kwargs={"settings": settings},
                batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **remote,
            )  # fmt: skip
        log_mels.write_datasink(sink, ray_remote_args=remote)


class WindowDatasource(Datasource):
    """Windows of the clips of some shards, see `read_shards`; a few shards make a task."""

    def __init__(
        self, shards: list[int], folder: str, settings: FeatureSettings, run: str, timeout: float
    ) -> None:
        # At least four tasks for each CPU, so that none waits long for the others at the end.
        together = len(shards) // int(4 * max(1, cluster_cpus()))
        size = max(1, min(SHARDS_A_TASK, together))
        self.tasks = [shards[start : start + size] for start in range(0, len(shards), size)]
        self.arguments = (folder, settings, run, timeout)

    def estimate_inmemory_data_size(self) -> None:
        """Unknown before the clips are decoded."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """One read task for every few shards, whatever parallelism Ray Data wishes for."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(read_shards, shards, *self.arguments), unknown)
            for shards in self.tasks
        ]


def read_shards(
    shards: list[int], folder: str, settings: FeatureSettings, run: str, timeout: float
) -> Iterator[pa.Table]:
    """Runs in a Ray task: decodes the clips of shards that do not exist yet.

    Yields:
        The rows of `raysound.extraction.read_windows`, with a column `shard`.
    """
    # Torch takes seconds to import: the workers need it, the driver does not.
    import torch

    from raysound.extraction import read_windows, shard_digest

    torch.set_num_threads(1)
    for index in shards:
        clips = shard_clips(folder, run, index)
        record = record_there(storage.join(folder, features.shard_name(index)))
        if record and not record.unreadable and record.digest == shard_digest(clips, settings):
            continue
        with guarded(folder, index, clips, settings, run, timeout) as known:
            for rows in read_windows(clips, settings, known, timeout):
                yield rows.append_column("shard", pa.array([index] * len(rows), pa.int64()))


@contextmanager
def guarded(
    folder: str, index: int, clips: pa.Table, settings: FeatureSettings, run: str, timeout: float
) -> Iterator[dict[str, Any]]:
    """Marks a shard as begun, and yields the clips that crashed or hung earlier attempts.

    `ShardDatasink` removes the mark. A process that died leaves it to the next attempt.

    Raises:
        UserError: the process died again and again, though none of the clips alone crashes it.
    """
    from raysound.probe import find_crashing_clips

    name = features.shard_name(index)
    mark = attempt_mark(folder, index)
    deaths = deaths_before(mark, run)
    if deaths >= MOST_DEATHS:
        storage.delete(mark)
        raise UserError(
            f"the process that extracted {name} of {folder} died {deaths} times, though none of "
            "its clips alone crashes it: is there memory enough for as many processes as CPUs? "
            "compute.local_cpus lowers their number"
        )
    storage.write_bytes(mark, json.dumps({"run": run, "deaths": deaths}).encode())
    try:
        yield find_crashing_clips(clips, settings, timeout) if deaths else {}
    except BaseException:
        # The process lives: an error, or the datasink can't write.
        storage.delete(mark)
        raise


def attempt_mark(folder: str, index: int) -> str:
    """The file that exists while a shard is being extracted."""
    return storage.join(folder, "attempts", features.shard_name(index))


def deaths_before(mark: str, run: str) -> int:
    """How many attempts at a shard died: in this run, or just once in those before it."""
    try:
        before = json.loads(storage.read_bytes(mark))
    except FileNotFoundError:
        return 0
    except ValueError:
        # The machine itself went down while the mark was being written.
        return 1
    return 1 + int(before["deaths"] if before["run"] == run else 0)


def record_there(uri: str) -> Shard | None:
    """The record of a shard; None if there is no such file, or one that can't be read."""
    try:
        return features.read_record(uri)
    except (OSError, ValueError, LookupError, TypeError):
        # The machine went down while the file was being written, or an older version wrote it.
        return None


def map_log_mels(block: pa.Table, settings: FeatureSettings, **options: Any) -> pa.Table:
    """Runs in a Ray task: `raysound.extraction.log_mels`."""
    from raysound.extraction import log_mels

    # Of shards that all exist already there is a block without columns.
    return log_mels(block, settings, **options) if len(block) else block


class ShardDatasink(Datasink[int]):
    """Writes log-mels and rejects as one Parquet file a shard."""

    def __init__(
        self, folder: str, settings: FeatureSettings, run: str, tags: dict[str, str]
    ) -> None:
        self.folder, self.settings, self.run, self.tags = folder, settings, run, tags

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """Runs in a Ray task: the rows of a shard follow each other. Returns how many shards."""
        from raysound.extraction import write_shard

        written = 0
        for index, pairs in groupby(by_shard(blocks), lambda pair: pair[0]):
            clips = shard_clips(self.folder, self.run, index)
            uri = storage.join(self.folder, features.shard_name(index))
            shard = write_shard(uri, clips, self.settings, (rows for _, rows in pairs))
            storage.delete(attempt_mark(self.folder, index))
            self.report(uri, shard)
            written += 1
        return written

    def report(self, uri: str, shard: Shard) -> None:
        """Counts a shard's clips for Prometheus, and logs them where Ray's dashboard shows it."""
        gauges.count("clips", shard.found, **self.tags)
        gauges.count("rejects", len(shard.rejects), **self.tags)
        gauges.count("audio_hours", shard.seconds / 3600, **self.tags)
        log_here()
        logger.info("%s: %s, %d rejected", uri, counted(shard.found, "clip"), len(shard.rejects))
        for reject in shard.rejects:
            logger.warning("%s: %s rejected: %s", uri, reject["clip_id"], reject["reason"])


def by_shard(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Cuts blocks where one shard ends and the next begins; yields a shard's number and rows."""
    for block in blocks:
        if not len(block):
            continue
        shards = block["shard"].to_numpy()
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(shards)], strict=True):
            yield int(shards[start]), block.slice(start, end - start)


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
def progress(folder: str, name: str, plan: dict[str, Any]) -> Iterator[None]:
    """Prints every few seconds how many shards of a folder exist."""
    ended = Event()
    shards = {features.shard_name(index) for index in plan["shards"]}

    def there() -> int:
        return sum(file_name in shards for file_name, _, _ in storage.scan(folder))

    def show() -> None:
        before, started = there(), time.monotonic()
        while not ended.wait(SECONDS_BETWEEN_LINES):
            done = there()
            made = (done - before) / len(shards) * plan["clips"]
            rate = made / (time.monotonic() - started)
            left = (1 - done / len(shards)) * plan["clips"]
            logger.info(
                "%s: %.0f %% of %s, %.0f clips/s%s",
                name, 100 * done / len(shards), counted(plan["clips"], "clip"), rate,
                f", {left / rate:.0f} s left" if rate else "",
            )  # fmt: skip

    thread = Thread(target=show, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


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
