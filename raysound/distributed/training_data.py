"""Log-mel shards → what training is fed: arrays in Ray's object store, or a stream past it."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray
import ray.data
import ray.train
import torch
from ray.data import Datasource, ReadTask
from ray.data.block import BlockMetadata

from raysound import features, storage
from raysound.config import UserError
from raysound.distributed.failures import finite_retries
from raysound.distributed.session import cluster_cpus, run_remote_all
from raysound.features import MelStatistics
from raysound.scoring import Normalisation
from raysound.training import Batch

# What of the object store the training data may take. Kept there, an epoch of a small corpus costs
# a hundredth of what it costs to read it anew: benchmarks/training.py.
STORE_SHARE = 0.4
# What of a GPU's free memory the training data may take; then no batch crosses the bus.
GPU_SHARE = 0.3
# In the folder of a run: the epoch that streams are read for.
EPOCH = "epoch"


@dataclass(frozen=True)
class Rows:
    """Windows of a split, all of them.

    Attributes:
        log_mel: `(n, n_mels, n_frames)`, as stored.
        target: class indices, int64 `(n,)`.
        clip_id: names `(n,)`.
    """

    log_mel: np.ndarray
    target: np.ndarray
    clip_id: np.ndarray


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
    for uri in features.part_uris(folder):
        table = read_rows(uri, wanted)
        if len(table):
            parts.append((features.tensor_array(table["log_mel"]), table["clip_id"]))
    if not parts:
        raise UserError(f"{folder} holds no clip of {len(clips)}")
    clip_id = pa.chunked_array([chunk for _, column in parts for chunk in column.chunks])
    label = clips["label"].take(pc.index_in(clip_id, wanted)).to_pylist()
    return Rows(
        np.concatenate([log_mel for log_mel, _ in parts]),
        np.searchsorted(labels, label),
        np.array(clip_id.to_pylist(), dtype=object),
    )


def read_rows(uri: str, clip_ids: pa.Array) -> pa.Table:
    """The columns clip_id and log_mel of those windows of a shard that belong to some clips."""
    with storage.open_file(uri) as file:
        table = pq.read_table(file, columns=["clip_id", "log_mel"])
    return table.filter(pc.is_in(table["clip_id"], clip_ids))


@dataclass(frozen=True)
class Delivery:
    """How batches come to the model.

    Attributes:
        device: where they are wanted.
        pin: through memory that a GPU reads by itself.
        ahead: how many are on their way while one is used.
    """

    device: torch.device
    pin: bool = False
    ahead: int = 0

    def bring(self, array: np.ndarray) -> torch.Tensor:
        """An array, on the device."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (tensor.pin_memory() if self.pin else tensor).to(self.device, non_blocking=True)


def ahead(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, so many of them made by a thread while one is used."""
    if not count:
        yield from batches
        return
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, batches, None) for _ in range(count))
        while (batch := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(next, batches, None))
            yield batch


def row_batches(
    rows: Rows,
    batch_size: int,
    order: np.ndarray,
    rank: int,
    workers: int,
    delivery: Delivery,
    on_device: torch.Tensor | None,
) -> Iterator[Batch]:
    """This worker's share of each batch of some rows, in some order.

    Worker r takes every `workers`th clip of a batch, so that together they take those that one
    worker would, but for the last of a batch that can't be divided evenly.

    Args:
        rows: all windows.
        batch_size: of all workers together.
        order: indices of rows.
        rank: this worker.
        workers: how many there are.
        delivery: how and where they are wanted.
        on_device: `rows.log_mel` on that device, if it is kept there.
    """
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        mine = batch[: len(batch) // workers * workers][rank::workers]
        if len(mine) == 0:
            return
        if on_device is not None:
            log_mel = on_device[delivery.bring(mine)]
        else:
            log_mel = delivery.bring(rows.log_mel[mine])
        yield Batch(log_mel, delivery.bring(rows.target[mine]), rows.clip_id[mine].tolist())


def epoch_order(rows: Rows, seed: int, epoch: int, balanced: bool) -> np.ndarray:
    """The rows of an epoch in a drawn order; balanced, as many of each class, drawn with return."""
    rng = np.random.default_rng((seed, epoch))
    if not balanced:
        return rng.permutation(len(rows.target))
    share = 1 / np.bincount(rows.target)[rows.target]
    return rng.choice(len(rows.target), len(rows.target), p=share / share.sum())


def validation_order(rows: Rows, batch_size: int, rank: int, workers: int) -> np.ndarray:
    """The rows of every `workers`th batch: one worker's share, whole batches in the rows' order."""
    index = np.arange(len(rows.target))
    return index[index // batch_size % workers == rank]


def on_device(rows: Rows, device: torch.device) -> torch.Tensor | None:
    """The log-mels on a GPU, where they take at most GPU_SHARE of what is free there."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if rows.log_mel.nbytes > GPU_SHARE * free:
        return None
    return torch.tensor(rows.log_mel, device=device)


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


def stream(source: ShardDatasource) -> ray.data.Dataset:
    """The windows of some clips, read anew each epoch: for what the object store can't hold."""
    # Asking for no CPU: a range of workers may hold every one, and would wait for ever.
    with finite_retries() as retries:
        rows = ray.data.read_datasource(
            source,
            override_num_blocks=len(source.uris),
            concurrency=max(1, int(cluster_cpus())),
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
    table = read_rows(uri, clips["clip_id"].combine_chunks())
    label = clips["label"].take(pc.index_in(table["clip_id"], clips["clip_id"])).to_pylist()
    target = pa.array(np.searchsorted(labels, label), pa.int64())
    yield table.append_column("target", target)


def stream_batches(
    shard: ray.data.DataIterator, batch_size: int, delivery: Delivery, ahead: int, **options: Any
) -> Iterable[Batch]:
    """Batches of a Ray Data stream, which has so many ahead by itself."""

    def collate(rows: dict[str, np.ndarray]) -> Batch:
        names = rows["clip_id"].tolist()
        return Batch(delivery.bring(rows["log_mel"]), delivery.bring(rows["target"]), names)

    batches: Iterable[Batch] = shard.iter_torch_batches(
        batch_size=batch_size, prefetch_batches=ahead, collate_fn=collate, **options
    )
    return batches


def normalisation(folder: str, clips: pa.Table) -> Normalisation:
    """Mean and spread of every mel band over the windows of some clips, the same anywhere."""
    chosen = ray.put(clips["clip_id"].combine_chunks())
    calls = ((uri, [chosen]) for uri in features.part_uris(folder))
    total = None
    for part in run_remote_all(shard_statistics, calls):
        if part is not None:
            total = part if total is None else total.merge(part)
    if total is None:
        raise UserError(f"{folder} holds no training rows")
    return Normalisation(tuple(total.mean.tolist()), tuple(total.std.tolist()))


def shard_statistics(uri: str, chosen: list[ray.ObjectRef]) -> MelStatistics | None:
    """Runs in a Ray task: the statistics of the chosen clips' windows in one shard."""
    table = read_rows(uri, ray.get(chosen[0]))
    return MelStatistics.of(features.tensor_array(table["log_mel"])) if len(table) else None


def class_weights(rows_a_class: np.ndarray) -> torch.Tensor:
    """Weights that let every class count alike in the loss, 1 on the mean over rows.

    Args:
        rows_a_class: how many training rows each class has, at least 1.
    """
    weights = rows_a_class.sum() / (len(rows_a_class) * rows_a_class)
    return torch.tensor(weights, dtype=torch.float32)
