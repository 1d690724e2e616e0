"""Batches of log-mels in memory: their order, each worker's share, and the way to the model."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch

from raysound.settings.compute import ComputeSettings
from raysound.training.hardware import decided
from raysound.training.step import Batch

# What of a GPU's free memory the training data may take; then no batch crosses the bus.
GPU_SHARE = 0.3


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


@dataclass(frozen=True)
class DeviceTransfer:
    """How batches come to the model.

    Attributes:
        device: where they are wanted.
        pin: through memory that a GPU reads by itself.
        ahead: how many are on their way while one is used.
    """

    device: torch.device
    pin: bool = False
    ahead: int = 0

    def to_device(self, array: np.ndarray) -> torch.Tensor:
        """An array, on the device."""
        tensor = torch.from_numpy(np.ascontiguousarray(array))
        return (tensor.pin_memory() if self.pin else tensor).to(self.device, non_blocking=True)


def device_transfer(device: torch.device, compute: ComputeSettings) -> DeviceTransfer:
    """What `compute` says of the way from memory to the model."""
    is_gpu = device.type == "cuda"
    ahead = compute.prefetch_batches
    return DeviceTransfer(
        device=device,
        pin=is_gpu and decided(compute.pin_memory, device),
        ahead=(2 if is_gpu else 0) if ahead == "auto" else ahead,
    )


def prefetched(batches: Iterator[Batch], count: int) -> Iterator[Batch]:
    """The same batches, of which a thread prepares `count` while one is used."""
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
    transfer: DeviceTransfer,
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
        transfer: how and where they are wanted.
        on_device: `rows.log_mel` on that device, if it is kept there.
    """
    for start in range(0, len(order), batch_size):
        batch = order[start : start + batch_size]
        mine = batch[: len(batch) // workers * workers][rank::workers]
        if len(mine) == 0:
            return
        if on_device is not None:
            log_mel = on_device[transfer.to_device(mine)]
        else:
            log_mel = transfer.to_device(rows.log_mel[mine])
        yield Batch(log_mel, transfer.to_device(rows.target[mine]), rows.clip_id[mine].tolist())


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


def log_mels_on(rows: Rows, device: torch.device) -> torch.Tensor | None:
    """The log-mels on a GPU, where they take at most GPU_SHARE of what is free there."""
    if device.type != "cuda":
        return None
    free, _ = torch.cuda.mem_get_info(device)
    if rows.log_mel.nbytes > GPU_SHARE * free:
        return None
    return torch.tensor(rows.log_mel, device=device)


def class_weights(rows_a_class: np.ndarray) -> torch.Tensor:
    """Weights that let every class count alike in the loss, 1 on the mean over rows.

    Args:
        rows_a_class: how many training rows each class has, at least 1.
    """
    weights = rows_a_class.sum() / (len(rows_a_class) * rows_a_class)
    return torch.tensor(weights, dtype=torch.float32)
