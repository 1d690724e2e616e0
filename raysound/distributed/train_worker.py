"""What runs in each Ray Train worker: its batches, the loop, and what rank 0 leaves behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
from torch import Tensor, nn

from raysound import checkpoint, storage
from raysound.checkpoint import Checkpoint, Weights
from raysound.distributed import training_data
from raysound.distributed.session import available_cpus
from raysound.models import Classifier, build
from raysound.settings import ComputeSettings, TrainingSettings
from raysound.training import Batch, Hardware, Progress, fit, kept_epoch

TrainBatches = Callable[[int], Iterator[Batch]]
ValidationBatches = Callable[[], Iterator[Batch]]


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; goes on where a worker before it was cut off."""
    settings: TrainingSettings = job["settings"]
    note: Checkpoint = job["note"]
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(min(job["threads"], available_cpus()))
    torch.manual_seed(settings.seed)
    classifier = build(note.model, len(note.labels))
    averaged = copy.deepcopy(classifier) if settings.average else None
    weights, progress = checkpoint.load_progress(job["run"]) or (Weights({}, {}, {}), None)
    if progress is not None:
        classifier.load_state_dict(weights.model)
    if progress is not None and averaged is not None:
        averaged.load_state_dict(weights.averaged)
    device = ray.train.torch.get_device()
    hardware = hardware_for(device, job["compute"])
    for some in (classifier, averaged):
        if some is not None and hardware.channels_last:
            some.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if averaged is not None:
        averaged.to(device)
    model: nn.Module = classifier
    if workers > 1 and decided(job["compute"].sync_batch_norm, device):
        # Else each worker would normalise by the few clips of its own.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    model = ray.train.torch.prepare_model(model)
    train_batches, validation_batches = feed(
        job, rank, workers, delivery_to(device, job["compute"])
    )
    fit(
        model,
        train_batches,
        validation_batches,
        settings,
        note.normalisation,
        saver(classifier, averaged, job["run"], settings, weights.kept) if rank == 0 else tell_ray,
        classes=len(note.labels),
        class_weights=job["class_weights"],
        crop_frames=job["crop_frames"],
        averaged=averaged,
        hardware=hardware,
        progress=progress,
    )


def hardware_for(device: torch.device, compute: ComputeSettings) -> Hardware:
    """What `compute` says of the arithmetic; `auto` is what helps on the device."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = compute.tf32
        torch.backends.cudnn.allow_tf32 = compute.tf32
        torch.backends.cudnn.benchmark = True
    low = is_gpu and torch.cuda.is_bf16_supported()
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16}
    return Hardware(
        precision=named.get(compute.precision, torch.bfloat16 if low else torch.float32),
        channels_last=decided(compute.channels_last, device),
        compile=compute.compile,
    )


def delivery_to(device: torch.device, compute: ComputeSettings) -> training_data.Delivery:
    """What `compute` says of the way from memory to the model."""
    is_gpu = device.type == "cuda"
    ahead = compute.prefetch_batches
    return training_data.Delivery(
        device=device,
        pin=is_gpu and decided(compute.pin_memory, device),
        ahead=(2 if is_gpu else 0) if ahead == "auto" else ahead,
    )


def decided(switch: bool | str, device: torch.device) -> bool:
    """A switch's position; `auto` is on where the device is a GPU."""
    return device.type == "cuda" if isinstance(switch, str) else switch


def feed(
    job: dict[str, Any], rank: int, workers: int, delivery: training_data.Delivery
) -> tuple[TrainBatches, ValidationBatches | None]:
    """Training batches of an epoch and validation batches, from the object store or a stream."""
    settings: TrainingSettings = job["settings"]
    if job["rows"] is None:
        return streamed(settings, workers, delivery, job["has_validation"])
    train = ray.get(job["rows"]["train"])
    on_device = training_data.on_device(train, delivery.device)

    def train_batches(epoch: int) -> Iterator[Batch]:
        balanced = settings.balance == "sampling"
        order = training_data.epoch_order(train, settings.seed, epoch, balanced)
        batches = training_data.row_batches(
            train, settings.batch_size, order, rank, workers, delivery, on_device
        )
        return training_data.ahead(batches, delivery.ahead)

    if not job["has_validation"]:
        return train_batches, None
    validation = ray.get(job["rows"]["validation"])
    in_order = training_data.in_order(validation)

    def validation_batches() -> Iterator[Batch]:
        batches = training_data.row_batches(
            validation, settings.batch_size, in_order, 0, 1, delivery, None
        )
        return training_data.ahead(batches, delivery.ahead)

    return train_batches, validation_batches


def streamed(
    settings: TrainingSettings,
    workers: int,
    delivery: training_data.Delivery,
    has_validation: bool,
) -> tuple[TrainBatches, ValidationBatches | None]:
    """The same from Ray Data, shuffled in a buffer."""
    share = settings.batch_size // workers

    def train_batches(epoch: int) -> Iterator[Batch]:
        return training_data.stream_batches(
            ray.train.get_dataset_shard("train"),
            share,
            delivery,
            local_shuffle_buffer_size=max(share, settings.shuffle_buffer // workers),
            local_shuffle_seed=settings.seed * 100_003 + epoch,
        )

    def validation_batches() -> Iterator[Batch]:
        shard = ray.train.get_dataset_shard("validation")
        return training_data.stream_batches(shard, settings.batch_size, delivery)

    return train_batches, validation_batches if has_validation else None


def tell_ray(progress: Progress) -> None:
    """Tells Ray Train of an epoch."""
    ray.train.report(progress.history[-1])


def saver(
    classifier: Classifier,
    averaged: Classifier | None,
    run: str,
    settings: TrainingSettings,
    before: Mapping[str, Tensor],
) -> Callable[[Progress], None]:
    """What rank 0 does after an epoch: history.jsonl, and all that it takes to go on."""
    kept = dict(before)

    def after_epoch(progress: Progress) -> None:
        now = classifier.state_dict()
        means = averaged.state_dict() if averaged is not None else {}
        if kept_epoch(progress.history, settings) == len(progress.history):
            kept.update(
                {key: value.detach().cpu().clone() for key, value in (means or now).items()}
            )
        # First, or a worker that dies between the two after the last epoch leaves it without a row.
        lines = "".join(json.dumps(row) + "\n" for row in progress.history)
        storage.write_bytes(storage.join(run, "history.jsonl"), lines.encode())
        checkpoint.save_progress(run, Weights(now, means, kept), progress)
        tell_ray(progress)

    return after_epoch
