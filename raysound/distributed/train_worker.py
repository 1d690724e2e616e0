"""What runs in each Ray Train worker: its batches, the loop, rank 0's history and checkpoints."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import ray.train
import ray.train.torch
import torch

from raysound import checkpoint, storage
from raysound.checkpoint import Checkpoint
from raysound.distributed.session import available_cpus
from raysound.models import Classifier, build
from raysound.settings import TrainingSettings
from raysound.training import Batch, Metrics, fit


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker."""
    settings: TrainingSettings = job["settings"]
    note: Checkpoint = job["note"]
    rank = ray.train.get_context().get_world_rank()
    torch.set_num_threads(min(job["threads"], available_cpus()))
    torch.manual_seed(settings.seed)
    classifier = build(note.model, len(note.labels))
    model = ray.train.torch.prepare_model(classifier)
    # The same weights everywhere, but not the same dropout.
    torch.manual_seed(settings.seed + 1 + rank)
    fit(
        model,
        lambda epoch: train_batches(epoch, settings, job["workers"]),
        lambda: batches("validation", settings.batch_size),
        settings,
        note.normalisation,
        reporter(classifier, note, job["history"])
        if rank == 0
        else lambda metrics: report(metrics),
    )


def train_batches(epoch: int, settings: TrainingSettings, workers: int) -> Iterator[Batch]:
    """This worker's share of the training rows, in another order each epoch."""
    share = settings.batch_size // workers
    return batches(
        "train",
        share,
        local_shuffle_buffer_size=max(share, settings.shuffle_buffer // workers),
        local_shuffle_seed=settings.seed * 100_003 + epoch,
    )


def batches(split: str, batch_size: int, **options: Any) -> Iterator[Batch]:
    """Batches of a split on this worker's device."""
    shard = ray.train.get_dataset_shard(split)
    for batch in shard.iter_torch_batches(batch_size=batch_size, **options):
        yield batch["log_mel"], batch["target"].long()


def report(metrics: Metrics, folder: str | None = None) -> None:
    """Tells Ray Train of an epoch, with a checkpoint's folder where there is one."""
    kept = ray.train.Checkpoint.from_directory(folder) if folder else None
    ray.train.report(metrics, checkpoint=kept)


def reporter(
    classifier: Classifier, note: Checkpoint, history_uri: str
) -> Callable[[Metrics], None]:
    """What rank 0 does after an epoch: history.jsonl, and a checkpoint if it is the best so far."""
    history: list[Metrics] = []

    def after_epoch(metrics: Metrics) -> None:
        best = not history or quality(metrics) > max(map(quality, history))
        history.append(metrics)
        lines = "".join(json.dumps(row) + "\n" for row in history)
        storage.write_bytes(history_uri, lines.encode())
        if not best:
            report(metrics)
            return
        with tempfile.TemporaryDirectory() as folder:
            checkpoint.save(folder, classifier, replace(note, metrics=metrics))
            report(metrics, folder)

    return after_epoch


def quality(metrics: Metrics) -> tuple[float, float]:
    """The order of epochs: validation accuracy, and the loss where that is equal."""
    return metrics["validation_accuracy"], -metrics["validation_loss"]
