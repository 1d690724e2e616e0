"""What runs in each training process: its batches, the loop, and what rank 0 leaves behind."""

from __future__ import annotations

import copy
import json
import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import nn

from raysound import storage
from raysound.distributed.cluster.session import available_cpus
from raysound.distributed.training import feature_loading
from raysound.errors import UserError
from raysound.models import build
from raysound.settings.training import TrainingSettings
from raysound.storage import FORBIDDEN, FULL, explained
from raysound.training import checkpoint
from raysound.training.batches import (
    DeviceTransfer,
    device_transfer,
    epoch_order,
    log_mels_on,
    prefetched,
    row_batches,
    validation_order,
)
from raysound.training.checkpoint import ClassifierMetadata, Weights
from raysound.training.epochs import (
    Metrics,
    is_finished,
    quality,
    selected_epoch,
)
from raysound.training.hardware import decided, explain_out_of_memory, hardware_for
from raysound.training.loop import (
    TrainState,
    fit,
)
from raysound.training.step import Batch

TrainBatches = Callable[[int], Iterable[Batch]]
ValidationBatches = Callable[[], Iterable[Batch]]
# Batches of a stream that are on their way while one is used.
STREAMED_AHEAD = 2
# Metrics that Ray gets beside those of `fit`. Ray Train keeps the checkpoint of
# the best quality; Ray Tune compares trials by the validation accuracy of that epoch.
QUALITY, SCORE = "quality", "score"
# False for a trial that Ray Tune stopped: its own `done` is true of every trial that ended.
FINISHED = "finished"


@dataclass(frozen=True)
class WorkerContext:
    """One process of a training, under Ray Train or by itself.

    Attributes:
        rank: among the workers.
        workers: how many there are.
        device: of this one.
        prepare: moves a model to the device, and wraps it for DDP.
        stream: of a split's rows, where the object store can't hold them.
        report: takes an epoch's metrics and, of rank 0, its `checkpoint`.
        checkpoint: the latest one that was reported; None at the beginning.
        uploads_later: whether `report` copies a checkpoint while the next epoch trains, and deletes
            its folder afterwards.
    """

    rank: int
    workers: int
    device: torch.device
    prepare: Callable[[nn.Module], nn.Module]
    stream: Callable[[str], Any]
    report: Callable[..., None]
    checkpoint: ray.train.Checkpoint | None = None
    uploads_later: bool = False


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; continues from the run's latest checkpoint."""
    context = ray.train.get_context()
    # To copy a file on a disk takes less time than an epoch's first batch.
    uploads_later = "://" in job["run"]
    mode = ray.train.CheckpointUploadMode
    worker = WorkerContext(
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=ray.train.torch.get_device(),
        prepare=ray.train.torch.prepare_model,
        stream=ray.train.get_dataset_shard,
        report=partial(
            ray.train.report,
            checkpoint_upload_mode=mode.ASYNC if uploads_later else mode.SYNC,
        ),
        checkpoint=ray.train.get_checkpoint(),
        uploads_later=uploads_later,
    )
    try:
        train_on(worker, job)
    except Exception as error:
        if is_bug(error):
            # On its way to the driver an exception loses its traceback, but not its notes.
            error.add_note("".join(traceback.format_exception(error)))
        raise


def is_bug(error: Exception) -> bool:
    """False for mistakes of the user, storages that fail, and peers that died."""
    # Gloo raises a plain RuntimeError.
    is_of_peers = isinstance(error, dist.DistError) or "gloo" in str(error)
    return not is_of_peers and not isinstance(error, UserError | OSError)


def train_alone(
    job: dict[str, Any],
    device: torch.device,
    datasets: Mapping[str, Any],
    report: Callable[..., None] = lambda metrics, checkpoint: None,
    checkpoint: ray.train.Checkpoint | None = None,
) -> None:
    """The same without Ray Train, in the process that calls."""
    worker = WorkerContext(
        rank=0,
        workers=1,
        device=device,
        prepare=lambda model: model.to(device),
        stream=lambda split: datasets[split].iterator(),
        report=report,
        checkpoint=checkpoint,
    )
    train_on(worker, job)


def train_on(worker: WorkerContext, job: dict[str, Any]) -> None:
    """One worker's part of a training: all of it where it is the only one."""
    settings: TrainingSettings = job["settings"]
    metadata: ClassifierMetadata = job["metadata"]
    torch.set_num_threads(min(job["threads"], available_cpus()))
    torch.manual_seed(settings.seed)
    classifier = build(metadata.model, len(metadata.labels))
    if job["weights"] is not None and worker.checkpoint is None:
        weights = checkpoint.read_weights(job["weights"])
        fitting, _ = checkpoint.fitting(classifier, weights, job["weights"])
        classifier.load_state_dict(fitting, strict=False)
    averaged = copy.deepcopy(classifier) if settings.ema_decay else None
    progress = None
    if worker.checkpoint is not None:
        before, progress = read_progress(worker.checkpoint)
        classifier.load_state_dict(before.model)
        if averaged is not None:
            averaged.load_state_dict(before.averaged)
        if job.get("is_population"):
            # The checkpoint may be of a trial with other options of the same optimizer.
            for group in progress.optimizer["param_groups"]:
                group |= settings.optimizer.model_dump(exclude={"name"})
    device = worker.device
    hardware = hardware_for(device, job["compute"])
    for some in (classifier, averaged):
        if some is not None and hardware.channels_last:
            some.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if averaged is not None:
        averaged.to(device)
    model: nn.Module = classifier
    if worker.workers > 1 and decided(job["compute"].sync_batch_norm, device):
        # Else each worker would normalise by the few clips of its own.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    train_batches, validation_batches = feed(job, worker)

    def after_epoch(progress: TrainState) -> None:
        metrics = metrics_for_ray(progress.history, settings)
        if worker.rank:
            worker.report(metrics, checkpoint=None)
            return
        # First: a worker that dies between the two after the last epoch leaves it with a row.
        lines = "".join(json.dumps(row) + "\n" for row in progress.history)
        storage.write_bytes(storage.join(job["run"], "history.jsonl"), lines.encode())
        means = averaged.state_dict() if averaged is not None else {}
        folder = tempfile.mkdtemp()
        try:
            weights = Weights(classifier.state_dict(), means)
            checkpoint.save_progress(folder, weights, progress)
            with explained(job["run"], FULL | FORBIDDEN):
                epoch_checkpoint = ray.train.Checkpoint.from_directory(folder)
                worker.report(metrics, checkpoint=epoch_checkpoint)
        finally:
            if not worker.uploads_later:
                shutil.rmtree(folder)

    with explain_out_of_memory(settings):
        fit(
            worker.prepare(model),
            train_batches,
            validation_batches,
            settings,
            metadata.normalisation,
            after_epoch,
            classes=len(metadata.labels),
            class_weights=job["class_weights"],
            crop_frames=job["crop_frames"],
            averaged=averaged,
            hardware=hardware,
            progress=progress,
        )


def read_progress(epoch_checkpoint: ray.train.Checkpoint) -> tuple[Weights, TrainState]:
    """The weights and the progress that rank 0 reported."""
    with epoch_checkpoint.as_directory() as folder:
        loaded = checkpoint.load_progress(folder)
    if loaded is None:
        raise RuntimeError(f"{epoch_checkpoint.path} holds no {checkpoint.PROGRESS}")
    return loaded


def metrics_for_ray(history: list[Metrics], settings: TrainingSettings) -> Metrics:
    """The last epoch's metrics, with those by which Ray compares epochs and trials."""
    best = history[selected_epoch(history, settings) - 1]
    return {
        **history[-1],
        QUALITY: quality(history[-1]),
        SCORE: best["validation_accuracy"],
        FINISHED: is_finished(history, settings),
    }


def feed(
    job: dict[str, Any], worker: WorkerContext
) -> tuple[TrainBatches, ValidationBatches | None]:
    """Training batches of an epoch and validation batches, from the object store or a stream."""
    settings: TrainingSettings = job["settings"]
    transfer = device_transfer(worker.device, job["compute"])
    if job["rows"] is None:
        asked = job["compute"].prefetch_batches
        ahead = STREAMED_AHEAD if asked == "auto" else asked
        return streamed(job, worker, transfer, ahead)
    train = ray.get(job["rows"]["train"])
    on_device = log_mels_on(train, transfer.device)

    def train_batches(epoch: int) -> Iterator[Batch]:
        balanced = settings.class_balance == "sampling"
        order = epoch_order(train, settings.seed, epoch, balanced)
        batches = row_batches(
            train, settings.batch_size, order, worker.rank, worker.workers, transfer, on_device
        )
        return prefetched(batches, transfer.ahead)

    if not job["has_validation"]:
        return train_batches, None
    validation = ray.get(job["rows"]["validation"])
    order = validation_order(validation, settings.batch_size, worker.rank, worker.workers)

    def validation_batches() -> Iterator[Batch]:
        batches = row_batches(validation, settings.batch_size, order, 0, 1, transfer, None)
        return prefetched(batches, transfer.ahead)

    return train_batches, validation_batches


def streamed(
    job: dict[str, Any], worker: WorkerContext, transfer: DeviceTransfer, ahead: int
) -> tuple[TrainBatches, ValidationBatches | None]:
    """The same from Ray Data, shuffled in a buffer."""
    settings: TrainingSettings = job["settings"]
    share = settings.batch_size // worker.workers

    def train_batches(epoch: int) -> Iterable[Batch]:
        if worker.rank == 0:
            # Reading begins when all workers want it.
            feature_loading.announce_epoch(job["run"], epoch)
        return feature_loading.stream_batches(
            worker.stream("train"),
            share,
            transfer,
            ahead,
            local_shuffle_buffer_size=max(share, settings.shuffle_buffer // worker.workers),
            local_shuffle_seed=settings.seed * 100_003 + epoch,
        )

    def validation_batches() -> Iterable[Batch]:
        return feature_loading.stream_batches(
            worker.stream("validation"), settings.batch_size, transfer, ahead
        )

    return train_batches, validation_batches if job["has_validation"] else None
