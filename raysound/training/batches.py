"""Batches of log-mels in memory: their order, each worker's share, and the device transfer."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from raysound.settings.compute import ComputeSettings
from raysound.training.hardware import resolve_switch
from raysound.training.step import Batch

# Fraction of a GPU's free memory that training data may take, to avoid transfers of batches.
GPU_SHARE = 0.3


@dataclass(frozen=True)
class Rows:
    """All windows of a split.

    Attributes:
        log_mel: `(n, n_mels, n_frames)`, as stored.
        target: class indices, int64 `(n,)`.
        clip_id: of each window, `(n,)`.
    """

    log_mel: np.ndarray
    target: np.ndarray
    clip_id: np.ndarray


@dataclass(frozen=True)
class DeviceTransfer:
    """How batches are moved to the model.

    Attributes:
        device: of the model.
        pin: whether to use pinned memory.
        ahead: number of prefetched batches.
    """

    device: torch.device
    pin: bool = False
    ahead: int = 0

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        """Copies an array to the device."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (tensor.pin_memory() if self.pin else tensor).to(self.device, non_blocking=True)


def device_transfer(device: torch.device, compute: ComputeSettings) -> DeviceTransfer:
    """The DeviceTransfer of the settings."""
    is_gpu = device.type == "cuda"
    ahead = compute.prefetch_batches
    return DeviceTransfer(
        device=device,
        pin=is_gpu and resolve_switch(compute.pin_memory, device),
        ahead=(2 if is_gpu else 0) if ahead == "auto" else ahead,
    )


def prefetch(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """Yields the batches, while a thread prepares the next `count`."""
    if not count:
        yield from batches
        return
    with ThreadPoolExecutor(1) as pool:
        queue = deque(pool.submit(next, batches, None) for _ in range(count))
        while (batch := queue.popleft().result()) is not None:
            queue.append(pool.submit(next, batches, None))
            yield batch


def row_batches(
    rows: Rows,
    batch_size: int,
    order: np.ndarray,
    rank: int,
    workers: int,
    transfer: DeviceTransfer,
    on_device: torch.Tensor | None,
) -> Iterator[Batch]:
    """This worker's share of each batch.

    Worker r takes every `workers`th row of a batch. All workers together take the rows that a
    single worker would take, without the remainder of a batch that can't be divided evenly.

    Args:
        rows: all windows.
        batch_size: of all workers together.
        order: indices of rows.
        rank: of this worker.
        workers: number of workers.
        transfer: to the model's device.
        on_device: `rows.log_mel` on that device, if it is held there.
    """
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        share = batch[: len(batch) // workers * workers][rank::workers]
        if len(share) == 0:
            return
        if on_device is not None:
            log_mel = on_device[transfer.to_device(share)]
        else:
            log_mel = transfer.to_device(rows.log_mel[share])
        yield Batch(log_mel, transfer.to_device(rows.target[share]), rows.clip_id[share].tolist())


def epoch_order(rows: Rows, seed: int, epoch: int, balanced: bool) -> np.ndarray:
    """Row indices of an epoch in random order.

    With `balanced`, rows are sampled with replacement, and each class has the same probability.
    """
    rng = np.random.default_rng((seed, epoch))
    if not balanced:
        return rng.permutation(len(rows.target))
    weights = 1 / np.bincount(rows.target)[rows.target]
    return rng.choice(len(rows.target), len(rows.target), p=weights / weights.sum())


def validation_order(rows: Rows, batch_size: int, rank: int, workers: int) -> np.ndarray:
    """Row indices of one worker's share: every `workers`th batch, in the order of the rows."""
    index = np.arange(len(rows.target))
    return index[index // batch_size % workers == rank]


def load_log_mels(rows: Rows, device: torch.device) -> torch.Tensor | None:
    """The log-mels on a GPU, if they take at most GPU_SHARE of its free memory; else None."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if rows.log_mel.nbytes > GPU_SHARE * free:
        return None
    return torch.tensor(rows.log_mel, device=device)


def class_weights(rows_per_class: np.ndarray) -> torch.Tensor:
    """Loss weights that give every class the same influence; their mean over rows is 1.

    Args:
        rows_per_class: number of training rows of each class, at least 1.
    """
    weights = rows_per_class.sum() / (len(rows_per_class) * rows_per_class)
    return torch.tensor(weights, dtype=torch.float32)
