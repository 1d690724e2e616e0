"""Log-mel shards → what training is fed: arrays in Ray's object store, or a stream past it."""

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

# What of the object store the training data may take. Kept there, an epoch of a small corpus costs
# a hundredth of what it costs to read it anew: benchmarks/training.py.
STORE_SHARE = 0.4
# In the folder of a run: the epoch that streams are read for.
EPOCH = "epoch"


def fits_in_store(folder: str, sharing: int = 1) -> bool:
    """True where so many like this corpus take at most STORE_SHARE of each worker node's store."""
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    # What is kept is one object, and each node where it is used has a copy.
    stores = [node.get("object_store_memory", 0) for node in nodes if node.get("CPU")]
    return bool(sharing * summary["bytes"] <= STORE_SHARE * min(stores, default=0))


def kept_in_store(folder: str, clips: pa.Table, labels: list[str]) -> ray.ObjectRef:
    """The Rows of some clips, in the object store; the driver never holds them."""
    return ray.remote(read_all).remote(folder, clips.select(["clip_id", "label"]), labels)


def read_all(folder: str, clips: pa.Table, labels: list[str]) -> Rows:
    """Runs in a Ray task: reads the windows of some clips, in the order of the shards."""
    wanted = clips["clip_id"].combine_chunks()
    parts = []
    for uri in parquet.shard_uris(folder):
        table = read_windows(uri, wanted)
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


def read_windows(uri: str, clip_ids: pa.Array) -> pa.Table:
    """The columns clip_id and log_mel of those windows of a shard that belong to some clips."""
    with storage.open_file(uri) as file:
        table = pq.read_table(file, columns=["clip_id", "log_mel"])
    return table.filter(pc.is_in(table["clip_id"], clip_ids))


class ShardDatasource(Datasource):
    """The windows of some clips, a read task a shard.

    Attributes:
        uris: of the shards.
        chosen: reference to the `clip_id` and `label` of the clips.
        labels: class names in the order of the logits.
        run: whose training reads the shards in another order each epoch; None for theirs. Clips of
            a packed corpus may lie class by class, and the buffer that shuffles holds a few shards.
        seed: of the order.
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
        """A task a shard, in the order of the epoch that is about to begin."""
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        order = np.arange(len(self.uris))
        if self.run is not None:
            order = np.random.default_rng((self.seed, next_epoch(self.run))).permutation(order)
        return [
            ReadTask(partial(read_chosen, self.uris[place], [self.chosen], self.labels), unknown)
            for place in order
        ]


def announce_epoch(run: str, epoch: int) -> None:
    """Says which epoch begins: Ray Data counts those of this attempt at the training alone."""
    storage.write_bytes(storage.join(run, EPOCH), str(epoch).encode())


def next_epoch(run: str) -> int:
    """The epoch that was announced last, 1 before any."""
    try:
        return int(storage.read_bytes(storage.join(run, EPOCH)))
    except FileNotFoundError:
        return 1


def stream(source: ShardDatasource, tasks: int) -> ray.data.Dataset:
    """The windows of some clips, read anew each epoch by `tasks` tasks at a time.

    For what the object store can't hold.
    """
    # Asking for no CPU: a range of workers may hold every one, and would wait for ever.
    with finite_retries() as retries:
        rows = ray.data.read_datasource(
            source,
            override_num_blocks=len(source.uris),
            concurrency=tasks,
            ray_remote_args={"num_cpus": 0, **retries},
        )
    # The buffer that shuffles then draws the same batches from the same seed.
    rows.context.execution_options.preserve_order = True
    return rows


class SplitStreams(ray.train.DataConfig):
    """Splits each stream over the workers: training equally, validation without loss.

    Training gives every worker as many rows as the others, for they step together, and drops the
    few that are left over. Validation drops none: each clip is scored once, whatever order the
    blocks arrive in.
    """

    def configure(
        self, datasets: dict[str, ray.data.Dataset], world_size: int, *args: Any, **kwargs: Any
    ) -> list[dict[str, ray.data.DataIterator]]:
        """One dict of streams by split for each worker."""
        streams = {
            split: rows.streaming_split(world_size, equal=split == "train")
            for split, rows in datasets.items()
        }
        return [
            {split: stream[rank] for split, stream in streams.items()} for rank in range(world_size)
        ]


def read_chosen(uri: str, chosen: list[ray.ObjectRef], labels: list[str]) -> Iterator[pa.Table]:
    """Runs in a Ray task: the windows of the chosen clips of a shard, with their class."""
    clips = ray.get(chosen[0])
    table = read_windows(uri, clips["clip_id"].combine_chunks())
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
    """Batches of a Ray Data stream, which has so many ahead by itself."""

    def collate(rows: dict[str, np.ndarray]) -> Batch:
        names = rows["clip_id"].tolist()
        return Batch(transfer.to_device(rows["log_mel"]), transfer.to_device(rows["target"]), names)

    batches: Iterable[Batch] = shard.iter_torch_batches(
        batch_size=batch_size, prefetch_batches=ahead, collate_fn=collate, **options
    )
    return batches


def normalisation(folder: str, clips: pa.Table) -> Normalisation:
    """Mean and spread of every mel band over the windows of some clips, the same anywhere."""
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
    table = read_windows(uri, ray.get(chosen[0]))
    return MelStatistics.of(parquet.tensor_array(table["log_mel"])) if len(table) else None
