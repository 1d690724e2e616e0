"""The extraction pipeline: a datasource of windows, a map to log-mels, a datasink of shards."""

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

# Seconds that decoding a window may take.
TIMEOUT = 300.0
# Limit of process deaths per shard and run, if none of its clips alone crashes the process.
MAX_DEATHS = 4
# Ray Data polls for finished tasks ten times a second, so a task takes several shards. More would
# cost memory: the write operator holds the log-mels of a task until the task ends.
SHARDS_PER_TASK = 8
# Limit of tasks in a pipeline, because the driver holds each of them.
MAX_TASKS = 10_000
# Smaller than the blocks that `read_windows` yields, so that Ray Data does not merge these.
BLOCK_BYTES = 15 << 20


def write_shards(folder: str, shards: list[int], settings: FeatureSettings) -> None:
    """Extracts the missing shards of a manifest in parallel.

    Args:
        folder: of the features, with the manifest.
        shards: their numbers.
        settings: of the features.
    """
    run = f"{time.time_ns():x}"
    # `crash_guard` limits the deaths per shard, and ends the job before this limit is reached.
    remote = {"num_cpus": 1, "max_retries": SHARDS_PER_TASK * (MAX_DEATHS + 1)}
    size = MAX_TASKS * SHARDS_PER_TASK
    sink = ShardDatasink(folder, settings, run)
    for start in range(0, len(shards), size):
        batch = shards[start : start + size]
        source = WindowDatasource(batch, folder, settings, run, TIMEOUT)
        with finite_retries():
            windows = ray.data.read_datasource(
                source, override_num_blocks=len(source.tasks), ray_remote_args=remote
            )
            # By default Ray Data merges blocks up to 128 MB, which takes memory.
            windows.context.target_max_block_size = BLOCK_BYTES
            log_mels = windows.map_batches(
                map_log_mels, fn_kwargs={"settings": settings},
                batch_size=None, batch_format="pyarrow", zero_copy_batch=True, **remote,
            )  # fmt: skip
        log_mels.write_datasink(sink, ray_remote_args=remote)


class WindowDatasource(Datasource):
    """The windows of some shards, a few shards per read task; see `read_shards`."""

    def __init__(
        self, shards: list[int], folder: str, settings: FeatureSettings, run: str, timeout: float
    ) -> None:
        # With at least four tasks per CPU, all CPUs finish at about the same time.
        size = max(1, min(SHARDS_PER_TASK, len(shards) // int(4 * max(1, cluster_cpus()))))
        self.tasks = [shards[start : start + size] for start in range(0, len(shards), size)]
        self.arguments = (folder, settings, run, timeout)

    def estimate_inmemory_data_size(self) -> None:
        """Unknown before the clips are decoded."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """The read tasks, whatever `parallelism` Ray Data requests."""
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
    # Imported here because torch takes seconds to import, and the driver does not need it.
    import torch

    from raysound.features.extraction import read_windows, shard_digest

    torch.set_num_threads(1)
    for index in shards:
        clips = shard_clips(folder, run, index)
        record = read_valid_record(storage.join(folder, parquet.shard_name(index)))
        if record and not record.unreadable and record.digest == shard_digest(clips, settings):
            continue
        with crash_guard(folder, index, clips, settings, run, timeout) as known:
            for rows in read_windows(clips, settings, known, timeout):
                yield rows.append_column("shard", pa.array([index] * len(rows), pa.int64()))


@contextmanager
def crash_guard(
    folder: str, index: int, clips: pa.Table, settings: FeatureSettings, run: str, timeout: float
) -> Iterator[dict[str, Any]]:
    """Writes a marker for a shard, and yields the clips that crashed or hung earlier attempts.

    `ShardDatasink` deletes the marker. If it exists already, the process of an earlier attempt
    died.

    Raises:
        UserError: the process died MAX_DEATHS times, though none of the clips alone crashes it.
    """
    from raysound.features.probe import find_crashing_clips

    name = parquet.shard_name(index)
    marker = attempt_marker(folder, index)
    deaths = count_earlier_deaths(marker, run)
    if deaths >= MAX_DEATHS:
        storage.delete(marker)
        raise UserError(
            f"the process that extracted {name} of {folder} died {deaths} times, though none of "
            "its clips alone crashes it: there may be too little memory for one process per CPU; "
            "compute.num_cpus lowers their number"
        )
    storage.write_bytes(marker, json.dumps({"run": run, "deaths": deaths}).encode())
    try:
        yield find_crashing_clips(clips, settings, timeout) if deaths else {}
    except BaseException:
        # The process is alive: this is an error, or the datasink can't write.
        storage.delete(marker)
        raise


def attempt_marker(folder: str, index: int) -> str:
    """The file that exists while a shard is being extracted."""
    return storage.join(folder, "attempts", parquet.shard_name(index))


def count_earlier_deaths(marker: str, run: str) -> int:
    """How many attempts at a shard died in this run; all earlier runs together count as one."""
    try:
        before = json.loads(storage.read_bytes(marker))
    except FileNotFoundError:
        return 0
    except ValueError:
        # The machine went down while the marker was written.
        return 1
    return 1 + int(before["deaths"] if before["run"] == run else 0)


def read_valid_record(uri: str) -> Shard | None:
    """The record of a shard; None if the file is missing or can't be read."""
    try:
        return parquet.read_record(uri)
    except (OSError, ValueError, LookupError, TypeError):
        # The machine went down while the file was written, or an older version wrote it.
        return None


def map_log_mels(block: pa.Table, settings: FeatureSettings, **options: Any) -> pa.Table:
    """Runs in a Ray task: `raysound.features.extraction.log_mels`."""
    from raysound.features.extraction import add_log_mels

    # If all shards of a task exist already, its block has no columns.
    return add_log_mels(block, settings, **options) if len(block) else block


class ShardDatasink(Datasink[int]):
    """Writes log-mels and rejects as one Parquet file per shard."""

    def __init__(self, folder: str, settings: FeatureSettings, run: str) -> None:
        self.folder, self.settings, self.run = folder, settings, run

    def write(self, blocks: Iterable[pa.Table], ctx: Any) -> int:
        """Runs in a Ray task: writes consecutive shards. Returns how many."""
        from raysound.features.extraction import write_shard

        written = 0
        for index, pairs in groupby(group_by_shard(blocks), lambda pair: pair[0]):
            clips = shard_clips(self.folder, self.run, index)
            uri = storage.join(self.folder, parquet.shard_name(index))
            shard = write_shard(uri, clips, self.settings, (rows for _, rows in pairs))
            storage.delete(attempt_marker(self.folder, index))
            log_shard(uri, shard)
            written += 1
        return written


def log_shard(uri: str, shard: Shard) -> None:
    """Logs a shard and its rejects to the worker's log, which Ray's dashboard shows."""
    log_here()
    logger.info("%s: %s, %d rejected", uri, counted(shard.found, "clip"), len(shard.rejects))
    for reject in shard.rejects:
        logger.warning("%s: %s rejected: %s", uri, reject["clip_id"], reject["reason"])


def group_by_shard(blocks: Iterable[pa.Table]) -> Iterator[tuple[int, pa.Table]]:
    """Splits blocks at the borders of shards; yields the number and rows of each piece."""
    for block in blocks:
        if not len(block):
            continue
        shards = block["shard"].to_numpy()
        starts = np.flatnonzero(np.diff(shards, prepend=-1))
        for start, end in zip(starts, [*starts[1:], len(shards)], strict=True):
            yield int(shards[start]), block.slice(start, end - start)
