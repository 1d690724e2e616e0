"""Loads log-mel shards for training: as arrays in Ray's object store, or as a stream."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raysound import storage
from raysound.distributed.cluster.failures import finite_retries
from raysound.distributed.cluster.session import run_remote_all
from raysound.errors import UserError
from raysound.features import parquet
from raysound.features.records import MelStatistics
from raysound.training.batches import DeviceTransfer, Rows
from raysound.training.inference import Normalisation
from raysound.training.step import Batch

# Fraction of the object store that training data may take. Reading from the store takes a
# hundredth of the time of reading the shards in every epoch: benchmarks/training.py.
STORE_SHARE = 0.4
# File in a run folder with the epoch that streams are read for.
EPOCH_FILE = "epoch"


def fits_in_store(folder: str, corpora: int = 1) -> bool:
    """True if so many corpora of this size take at most STORE_SHARE of each node's store."""
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # The data are one object, and each node that uses it holds a copy.
    stores = [node.get("object_store_memory", 0) for node in nodes if node.get("CPU")]
    return bool(corpora * summary["bytes"] <= STORE_SHARE * min(stores, default=0))


def load_to_store(folder: str, clips: pa.Table, labels: list[str]) -> ray.ObjectRef:
    """Loads the Rows of some clips to the object store, without passing through the driver."""
    return ray.remote(read_all).remote(folder, clips.select(["clip_id", "label"]), labels)


def read_all(folder: str, clips: pa.Table, labels: list[str]) -> Rows:
    """Runs in a Ray task: reads the windows of some clips, in the order of the shards."""
    wanted = clips["clip_id"].combine_chunks()
    parts = []
    for uri in parquet.shard_uris(folder):
        table = read_shard_windows(uri, wanted)
        if len(table):
            parts.append((parquet.tensor_array(table["log_mel"]), table["clip_id"]))
    if not parts:
        raise UserError(f"{folder} holds no clip of {len(clips)}")
    clip_id = pa.chunked_array([chunk for _, column in parts for chunk in column.chunks])
    label = clips["label"].take(pc.index_in(clip_id, wanted)).to_pylist()
    return Rows(
        np.concatenate([log_mel for log_mel, _ in parts]),
        np.searchsorted(labels, label),
        np.array(clip_id.to_pylist(), dtype=object),
    )


def read_shard_windows(uri: str, clip_ids: pa.Array) -> pa.Table:
    """The columns clip_id and log_mel of those windows of a shard that belong to some clips."""
    with storage.open_file(uri) as file:
        table = pq.read_table(file, columns=["clip_id", "log_mel"])
    return table.filter(pc.is_in(table["clip_id"], clip_ids))


class ShardDatasource(Datasource):
    """The windows of some clips, with a read task per shard.

    Attributes:
        uris: of the shards.
        chosen: reference to the `clip_id` and `label` of the clips.
        labels: class names in the order of the logits.
        run: run folder of a training, which reads the shards in a random order each epoch; None to
            keep their order. Clips of a packed corpus may be sorted by class, and the shuffle
            buffer holds only a few shards.
        seed: of the random order.
    """

    def __init__(
        self,
        uris: list[str],
        chosen: ray.ObjectRef,
        labels: list[str],
        run: str | None = None,
        seed: int = 0,
    ) -> None:
        self.uris, self.chosen, self.labels, self.run, self.seed = uris, chosen, labels, run, seed

    def estimate_inmemory_data_size(self) -> None:
        """Unknown before the shards are read."""

    def get_read_tasks(
        self, parallelism: int, per_task_row_limit: int | None = None, data_context: Any = None
    ) -> list[ReadTask]:
        """A task per shard, in the order of the epoch that is about to begin."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        order = np.arange(len(self.uris))
        if self.run is not None:
            order = np.random.default_rng((self.seed, read_epoch(self.run))).permutation(order)
        return [
            ReadTask(partial(read_clips, self.uris[index], [self.chosen], self.labels), unknown)
            for index in order
        ]


def write_epoch(run: str, epoch: int) -> None:
    """Saves the number of the epoch that begins; Ray Data's own count restarts on a retry."""
    storage.write_bytes(storage.join(run, EPOCH_FILE), str(epoch).encode())


def read_epoch(run: str) -> int:
    """The number saved by `write_epoch`, 1 if there is none."""
    try:
        return int(storage.read_bytes(storage.join(run, EPOCH_FILE)))
    except FileNotFoundError:
        return 1


def stream(source: ShardDatasource, tasks: int) -> ray.data.Dataset:
    """The windows of some clips, read in each epoch by `tasks` concurrent tasks.

    For data that the object store can't hold.
    """
    # The tasks reserve no CPU: the workers may hold all of them, and would wait forever.
    with finite_retries() as retries:
        rows = ray.data.read_datasource(
            source,
            override_num_blocks=len(source.uris),
            concurrency=tasks,
            ray_remote_args={"num_cpus": 0, **retries},
        )
    # With this, the shuffle buffer makes the same batches from the same seed.
    rows.context.execution_options.preserve_order = True
    return rows


class SplitStreams(ray.train.DataConfig):
    """Splits each stream over the workers.

    For training every worker gets the same number of rows, because they step together; the few
    remaining rows are dropped. For validation no row is dropped: each clip is scored once.
    """

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """A dict of streams by split, for each worker."""
        streams = {
            split: rows.streaming_split(world_size, equal=split == "train")
            for split, rows in datasets.items()
        }
        return [
            {split: stream[rank] for split, stream in streams.items()} for rank in range(world_size)
        ]


def read_clips(uri: str, chosen: list[ray.ObjectRef], labels: list[str]) -> Iterator[pa.Table]:
    """Runs in a Ray task: the windows of the chosen clips of a shard, with their class."""
    clips = ray.get(chosen[0])
    table = read_shard_windows(uri, clips["clip_id"].combine_chunks())
    label = clips["label"].take(pc.index_in(table["clip_id"], clips["clip_id"])).to_pylist()
    target = pa.array(np.searchsorted(labels, label), pa.int64())
    yield table.append_column("target", target)


def stream_batches(
    shard: ray.data.DataIterator,
    batch_size: int,
    transfer: DeviceTransfer,
    ahead: int,
    **options: Any,
) -> Iterable[Batch]:
    """Batches of a Ray Data stream; `ahead` of them are prefetched."""

    def collate(rows: dict[str, np.ndarray]) -> Batch:
        clip_ids = rows["clip_id"].tolist()
        log_mel, target = (transfer.to_device(rows[name]) for name in ("log_mel", "target"))
        return Batch(log_mel, target, clip_ids)

    batches: Iterable[Batch] = shard.iter_torch_batches(
        batch_size=batch_size, prefetch_batches=ahead, collate_fn=collate, **options
    )
    return batches


def normalisation(folder: str, clips: pa.Table) -> Normalisation:
    """Mean and standard deviation of every mel band over the windows of some clips."""
    chosen = ray.put(clips["clip_id"].combine_chunks())
    calls = ((uri, [chosen]) for uri in parquet.shard_uris(folder))
    total = None
    for part in run_remote_all(shard_statistics, calls):
        if part is not None:
            total = part if total is None else total.merge(part)
    if total is None:
        raise UserError(f"{folder} holds no training rows")
    return Normalisation(tuple(total.mean.tolist()), tuple(total.std.tolist()))


def shard_statistics(uri: str, chosen: list[ray.ObjectRef]) -> MelStatistics | None:
    """Runs in a Ray task: the statistics of the chosen clips' windows in one shard."""
    table = read_shard_windows(uri, ray.get(chosen[0]))
    return MelStatistics.of(parquet.tensor_array(table["log_mel"])) if len(table) else None
