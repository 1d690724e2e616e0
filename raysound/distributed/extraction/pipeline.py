"""The pipeline of an extraction: a datasource of windows, a map to log-mels, a datasink."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import Datasink, Datasource, ReadTask
from ray.data.block import BlockMetadata

from raysound import storage
from raysound.corpora.manifest_parts import shard_clips
from raysound.distributed.cluster.failures import finite_retries
from raysound.distributed.cluster.session import cluster_cpus, log_here
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.records import Shard
from raysound.settings.features import FeatureSettings
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Seconds that decoding a window may take before its clip is examined.
TIMEOUT = 300.0
# How often the process of one shard may die in a run, when none of its clips alone crashes it.
MOST_DEATHS = 4
# Shards of a task: Ray Data looks for finished tasks ten times a second. Its write operator holds
# the log-mels of a task until the task ends, so that more would cost memory.
SHARDS_A_TASK = 8
# Tasks of one pipeline: the driver holds each of them.
MOST_TASKS = 10_000
# Below those that `read_windows` yields, which pass as they are.
BLOCK_BYTES = 15 << 20


def write_shards(folder: str, shards: list[int], settings: FeatureSettings) -> None:
    """Extracts shards of a manifest in parallel; those that exist already stay.

    Args:
        folder: of the features, with the manifest.
        shards: their numbers.
        settings: of the features.
    """
    run = f"{time.time_ns():x}"
    # A death counts against the shard that was being extracted: `guarded` ends the job before.
    remote = {"num_cpus": 1, "max_retries": SHARDS_A_TASK * (MOST_DEATHS + 1)}
    most = MOST_TASKS * SHARDS_A_TASK
    sink = ShardDatasink(folder, settings, run)
    for some in (shards[start : start + most] for start in range(0, len(shards), most)):
        source = WindowDatasource(some, folder, settings, run, TIMEOUT)
        with finite_retries():
            windows = ray.data.read_datasource(
                source, override_num_blocks=len(source.tasks), ray_remote_args=remote
            )
            # By default Ray Data joins blocks to up to 128 MB, which takes memory.
            windows.context.target_max_block_size = BLOCK_BYTES
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
        The rows of `raysound.features.extraction.read_windows`, with a column `shard`.
    """
    # Torch takes seconds to import: the workers need it, the driver does not.
    import torch

    from raysound.features.extraction import read_windows, shard_digest

    torch.set_num_threads(1)
    for index in shards:
        clips = shard_clips(folder, run, index)
        record = record_there(storage.join(folder, parquet.shard_name(index)))
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
    from raysound.features.probe import find_crashing_clips

    name = parquet.shard_name(index)
    mark = attempt_mark(folder, index)
    deaths = deaths_before(mark, run)
    if deaths >= MOST_DEATHS:
        storage.delete(mark)
        raise UserError(
            f"the process that extracted {name} of {folder} died {deaths} times, though none of "
            "its clips alone crashes it: is there memory enough for as many processes as CPUs? "
            "compute.num_cpus lowers their number"
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
    return storage.join(folder, "attempts", parquet.shard_name(index))


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
        return parquet.read_record(uri)
    except (OSError, ValueError, LookupError, TypeError):
        # The machine went down while the file was being written, or an older version wrote it.
        return None


def map_log_mels(block: pa.Table, settings: FeatureSettings, **options: Any) -> pa.Table:
    """Runs in a Ray task: `raysound.features.extraction.log_mels`."""
    from raysound.features.extraction import add_log_mels

    # Of shards that all exist already there is a block without columns.
    return add_log_mels(block, settings, **options) if len(block) else block


class ShardDatasink(Datasink[int]):
    """Writes log-mels and rejects as one Parquet file a shard."""

    def __init__(self, folder: str, settings: FeatureSettings, run: str) -> None:
        self.folder, self.settings, self.run = folder, settings, run

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """Runs in a Ray task: the rows of a shard follow each other. Returns how many shards."""
        from raysound.features.extraction import write_shard

        written = 0
        for index, pairs in groupby(group_by_shard(blocks), lambda pair: pair[0]):
            clips = shard_clips(self.folder, self.run, index)
            uri = storage.join(self.folder, parquet.shard_name(index))
            shard = write_shard(uri, clips, self.settings, (rows for _, rows in pairs))
            storage.delete(attempt_mark(self.folder, index))
            log_shard(uri, shard)
            written += 1
        return written


def log_shard(uri: str, shard: Shard) -> None:
    """Logs a shard and its rejects where Ray's dashboard shows it."""
    log_here()
    logger.info("%s: %s, %d rejected", uri, counted(shard.found, "clip"), len(shard.rejects))
    for reject in shard.rejects:
        logger.warning("%s: %s rejected: %s", uri, reject["clip_id"], reject["reason"])


def group_by_shard(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Cuts blocks where one shard ends and the next begins; yields a shard's number and rows."""
    for block in blocks:
        if not len(block):
            continue
        shards = block["shard"].to_numpy()
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(shards)], strict=True):
            yield int(shards[start]), block.slice(start, end - start)
