"""The training process of each worker: its batches, the loop, and rank 0's checkpoints."""

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
from raysound.storage import FORBIDDEN, FULL, raise_unwritable
from raysound.training import checkpoint
from raysound.training.batches import (
    DeviceTransfer,
    device_transfer,
    epoch_order,
    load_log_mels,
    prefetch,
    row_batches,
    validation_order,
)
from raysound.training.checkpoint import ClassifierMetadata, Weights
from raysound.training.epochs import Metrics, is_finished, quality, selected_epoch
from raysound.training.hardware import explain_out_of_memory, hardware_for, resolve_switch
from raysound.training.loop import TrainState, fit
from raysound.training.step import Batch

TrainBatches = Callable[[int], Iterable[Batch]]
ValidationBatches = Callable[[], Iterable[Batch]]
# Batches of a stream that are prefetched.
STREAM_PREFETCH = 2
# Metrics for Ray, in addition to those of `fit`. Ray Train keeps the checkpoint of the best
# quality; Ray Tune compares trials by the validation accuracy of that epoch.
QUALITY, SCORE = "quality", "score"
# False for a trial that Ray Tune stopped; Ray Tune's `done` is true for every trial that ended.
FINISHED = "finished"


@dataclass(frozen=True)
class WorkerContext:
    """One process of a training, with or without Ray Train.

    Attributes:
        rank: of this worker.
        workers: number of workers.
        device: of this worker.
        prepare: moves a model to the device, and wraps it for DDP.
        stream: returns the stream of a split, if the object store can't hold its rows.
        report: takes the metrics of an epoch and, from rank 0, its `checkpoint`.
        checkpoint: the latest one that was reported; None at the beginning.
        uploads_later: whether `report` uploads a checkpoint while the next epoch trains, and
            deletes its folder afterwards.
    """

    rank: int
    workers: int
    device: torch.device
    prepare: Callable[[nn.Module], nn.Module]
    stream: Callable[[str], Any]
    report: Callable[..., None]
    checkpoint: ray.train.Checkpoint | None = None
    uploads_later: bool = False


def train_worker(loop_config: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; continues from the run's latest checkpoint."""
    context = ray.train.get_context()
    # On a disk, copying takes less time than the first batch of an epoch.
    uploads_later = "://" in loop_config["run"]
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
        train_on(worker, loop_config)
    except Exception as error:
        if is_bug(error):
            # Ray drops the traceback of an exception on its way to the driver, but keeps its notes.
            error.add_note("".join(traceback.format_exception(error)))
        raise


def is_bug(error: Exception) -> bool:
    """False for user errors, storage errors and the death of another worker."""
    # Gloo raises a plain RuntimeError.
    is_from_peer = isinstance(error, dist.DistError) or "gloo" in str(error)
    return not is_from_peer and not isinstance(error, UserError | OSError)


def train_alone(
    loop_config: dict[str, Any],
    device: torch.device,
    datasets: Mapping[str, Any],
    report: Callable[..., None] = lambda metrics, checkpoint: None,
    checkpoint: ray.train.Checkpoint | None = None,
) -> None:
    """Trains without Ray Train, in the calling process."""
    worker = WorkerContext(
        rank=0,
        workers=1,
        device=device,
        prepare=lambda model: model.to(device),
        stream=lambda split: datasets[split].iterator(),
        report=report,
        checkpoint=checkpoint,
    )
    train_on(worker, loop_config)


def train_on(worker: WorkerContext, loop_config: dict[str, Any]) -> None:
    """One worker's share of a training."""
    settings: TrainingSettings = loop_config["settings"]
    metadata: ClassifierMetadata = loop_config["metadata"]
    torch.set_num_threads(min(loop_config["threads"], available_cpus()))
    torch.manual_seed(settings.seed)
    classifier = build(metadata.model, len(metadata.labels))
    if loop_config["weights"] is not None and worker.checkpoint is None:
        weights = checkpoint.read_weights(loop_config["weights"])
        fitting, _ = checkpoint.matching_weights(classifier, weights, loop_config["weights"])
        classifier.load_state_dict(fitting, strict=False)
    averaged = copy.deepcopy(classifier) if settings.ema_decay else None
    progress = None
    if worker.checkpoint is not None:
        before, progress = read_progress(worker.checkpoint)
        classifier.load_state_dict(before.model)
        if averaged is not None:
            averaged.load_state_dict(before.averaged)
        if loop_config.get("is_population"):
            # The checkpoint may be of a trial with other options of the same optimizer.
            for group in progress.optimizer["param_groups"]:
                group |= settings.optimizer.model_dump(exclude={"name"})
    device = worker.device
    hardware = hardware_for(device, loop_config["compute"])
    for module in (classifier, averaged):
        if module is not None and hardware.channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if averaged is not None:
        averaged.to(device)
    model: nn.Module = classifier
    if worker.workers > 1 and resolve_switch(loop_config["compute"].sync_batch_norm, device):
        # Without this, each worker normalises by the few clips of its own.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    train_batches, validation_batches = make_batches(loop_config, worker)

    def after_epoch(progress: TrainState) -> None:
        metrics = metrics_for_ray(progress.history, settings)
        if worker.rank:
            worker.report(metrics, checkpoint=None)
            return
        # Written before the report: if the worker dies in between, the last epoch has its row.
        lines = "".join(json.dumps(row) + "\n" for row in progress.history)
        storage.write_bytes(storage.join(loop_config["run"], "history.jsonl"), lines.encode())
        means = averaged.state_dict() if averaged is not None else {}
        folder = tempfile.mkdtemp()
        try:
            weights = Weights(classifier.state_dict(), means)
            checkpoint.save_progress(folder, weights, progress)
            with raise_unwritable(loop_config["run"], FULL | FORBIDDEN):
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
            class_weights=loop_config["class_weights"],
            crop_frames=loop_config["crop_frames"],
            averaged=averaged,
            hardware=hardware,
            progress=progress,
        )


def read_progress(epoch_checkpoint: ray.train.Checkpoint) -> tuple[Weights, TrainState]:
    """The weights and the state of a reported checkpoint."""
    with epoch_checkpoint.as_directory() as folder:
        loaded = checkpoint.load_progress(folder)
    if loaded is None:
        raise UserError(
            f"{epoch_checkpoint.path} holds no {checkpoint.PROGRESS}: it is damaged, or another "
            "version of raysound wrote it; delete the run folder above it and train again"
        )
    return loaded


def metrics_for_ray(history: list[Metrics], settings: TrainingSettings) -> Metrics:
    """The last epoch's metrics, and those that Ray compares epochs and trials by."""
    best = history[selected_epoch(history, settings) - 1]
    return {
        **history[-1],
        QUALITY: quality(history[-1]),
        SCORE: best["validation_accuracy"],
        FINISHED: is_finished(history, settings),
    }


def make_batches(
    loop_config: dict[str, Any], worker: WorkerContext
) -> tuple[TrainBatches, ValidationBatches | None]:
    """Training batches of an epoch, and validation batches, from the object store or a stream."""
    settings: TrainingSettings = loop_config["settings"]
    transfer = device_transfer(worker.device, loop_config["compute"])
    if loop_config["rows"] is None:
        setting = loop_config["compute"].prefetch_batches
        ahead = STREAM_PREFETCH if setting == "auto" else setting
        return make_streamed_batches(loop_config, worker, transfer, ahead)
    train = ray.get(loop_config["rows"]["train"])
    on_device = load_log_mels(train, transfer.device)

    def train_batches(epoch: int) -> Iterator[Batch]:
        balanced = settings.class_balance == "sampling"
        order = epoch_order(train, settings.seed, epoch, balanced)
        batches = row_batches(
            train, settings.batch_size, order, worker.rank, worker.workers, transfer, on_device
        )
        return prefetch(batches, transfer.ahead)

    if not loop_config["has_validation"]:
        return train_batches, None
    validation = ray.get(loop_config["rows"]["validation"])
    order = validation_order(validation, settings.batch_size, worker.rank, worker.workers)

    def validation_batches() -> Iterator[Batch]:
        batches = row_batches(validation, settings.batch_size, order, 0, 1, transfer, None)
        return prefetch(batches, transfer.ahead)

    return train_batches, validation_batches


def make_streamed_batches(
    loop_config: dict[str, Any], worker: WorkerContext, transfer: DeviceTransfer, ahead: int
) -> tuple[TrainBatches, ValidationBatches | None]:
    """Like `make_batches`, from a stream of Ray Data that is shuffled in a buffer."""
    settings: TrainingSettings = loop_config["settings"]
    share = settings.batch_size // worker.workers

    def train_batches(epoch: int) -> Iterable[Batch]:
        if worker.rank == 0:
            # Reading starts when all workers have requested the stream.
            feature_loading.write_epoch(loop_config["run"], epoch)
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

    return train_batches, validation_batches if loop_config["has_validation"] else None
