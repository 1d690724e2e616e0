"""What runs in each training process: its batches, the loop, and what rank 0 leaves behind."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import ray
import ray.train
import ray.train.torch
import torch
import torch.distributed as dist
from torch import Tensor, nn

from raysound import checkpoint, storage
from raysound.checkpoint import Checkpoint, Weights
from raysound.config import UserError
from raysound.distributed import training_data
from raysound.distributed.session import available_cpus
from raysound.models import Classifier, build
from raysound.scoring import out_of_memory
from raysound.settings import ComputeSettings, TrainingSettings
from raysound.training import Batch, Hardware, Metrics, Progress, fit, kept_epoch

TrainBatches = Callable[[int], Iterator[Batch]]
ValidationBatches = Callable[[], Iterator[Batch]]
# Batches of a stream that are on their way while one is used.
STREAMED_AHEAD = 2


@dataclass(frozen=True)
class Place:
    """Where a training runs: as one of Ray Train's workers, or by itself.

    Attributes:
        rank: among the workers.
        workers: how many there are.
        device: of this one.
        prepare: brings a model to the device, and under DDP.
        stream: of a split's rows, where the object store can't hold them.
        tell: takes an epoch's metrics.
    """

    rank: int
    workers: int
    device: torch.device
    prepare: Callable[[nn.Module], nn.Module]
    stream: Callable[[str], Any]
    tell: Callable[[Metrics], None]


class NotWantedError(Exception):
    """No epoch of this trial is wanted any more."""


def train_worker(job: dict[str, Any]) -> None:
    """Runs in each Ray Train worker; goes on where a worker before it was cut off."""
    context = ray.train.get_context()
    place = Place(
        rank=context.get_world_rank(),
        workers=context.get_world_size(),
        device=ray.train.torch.get_device(),
        prepare=ray.train.torch.prepare_model,
        stream=ray.train.get_dataset_shard,
        tell=ray.train.report,
    )
    train_at(place, job)


def train_alone(job: dict[str, Any], device: torch.device, datasets: Mapping[str, Any]) -> None:
    """The same without Ray Train, in the process that calls."""
    place = Place(
        rank=0,
        workers=1,
        device=device,
        prepare=lambda model: model.to(device),
        stream=lambda split: datasets[split].iterator(),
        tell=lambda metrics: None,
    )
    train_at(place, job)


def train_at(place: Place, job: dict[str, Any]) -> None:
    """One worker's part of a training: all of it where it is the only one."""
    settings: TrainingSettings = job["settings"]
    note: Checkpoint = job["note"]
    torch.set_num_threads(min(job["threads"], available_cpus()))
    torch.manual_seed(settings.seed)
    classifier = build(note.model, len(note.labels))
    averaged = copy.deepcopy(classifier) if settings.average else None
    weights, progress = checkpoint.load_progress(job["run"]) or (Weights({}, {}, {}), None)
    if progress is not None:
        classifier.load_state_dict(weights.model)
    if progress is not None and averaged is not None:
        averaged.load_state_dict(weights.averaged)
    device = place.device
    hardware = hardware_for(device, job["compute"])
    for some in (classifier, averaged):
        if some is not None and hardware.channels_last:
            some.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if averaged is not None:
        averaged.to(device)
    model: nn.Module = classifier
    if place.workers > 1 and decided(job["compute"].sync_batch_norm, device):
        # Else each worker would normalise by the few clips of its own.
        model = nn.SyncBatchNorm.convert_sync_batchnorm(classifier)
    train_batches, validation_batches = feed(job, place)
    save = saver(classifier, averaged, job["run"], settings, weights.kept)
    gate = job.get("gate")
    if gate is not None and place.rank == 0:
        gate.enter()

    def after_epoch(progress: Progress) -> None:
        if place.rank == 0:
            save(progress)
        place.tell(progress.history[-1])
        if gate is not None and not may_go_on(gate, place, progress):
            raise NotWantedError

    # To stop early is no failure, and Ray Train would try a failure again.
    with suppress(NotWantedError), memory_told(settings):
        fit(
            place.prepare(model),
            train_batches,
            validation_batches,
            settings,
            note.normalisation,
            after_epoch,
            classes=len(note.labels),
            class_weights=job["class_weights"],
            crop_frames=job["crop_frames"],
            averaged=averaged,
            hardware=hardware,
            progress=progress,
        )


@contextmanager
def memory_told(settings: TrainingSettings) -> Iterator[None]:
    """Says what can be done where a GPU's memory is too small; tried again it would be the same."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise UserError(
            f"a GPU has too little memory for training.batch_size {settings.batch_size} in "
            f"{settings.accumulate} turns: raise training.accumulate, or add workers "
            f"({out_of_memory(error)})"
        ) from error


def may_go_on(gate: Any, place: Place, progress: Progress) -> bool:
    """Waits for the search's word about this trial, the same for all workers."""
    word = torch.zeros(1, dtype=torch.int32, device=place.device)
    if place.rank == 0:
        word += int(gate.passed(progress.history))
    if place.workers > 1:
        dist.broadcast(word, src=0)
    return bool(word.item())


def hardware_for(device: torch.device, compute: ComputeSettings) -> Hardware:
    """What `compute` says of the arithmetic; `auto` is what helps on the device."""
    is_gpu = device.type == "cuda"
    if is_gpu:
        torch.backends.cuda.matmul.allow_tf32 = compute.tf32
        torch.backends.cudnn.allow_tf32 = compute.tf32
        torch.backends.cudnn.benchmark = True
    # Where it is only emulated, on older GPUs, it is slower than float32.
    low = is_gpu and torch.cuda.is_bf16_supported(including_emulation=False)
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


def feed(job: dict[str, Any], place: Place) -> tuple[TrainBatches, ValidationBatches | None]:
    """Training batches of an epoch and validation batches, from the object store or a stream."""
    settings: TrainingSettings = job["settings"]
    delivery = delivery_to(place.device, job["compute"])
    if job["rows"] is None:
        asked = job["compute"].prefetch_batches
        ahead = STREAMED_AHEAD if asked == "auto" else asked
        return streamed(settings, place, delivery, ahead, job["has_validation"])
    train = ray.get(job["rows"]["train"])
    on_device = training_data.on_device(train, delivery.device)

    def train_batches(epoch: int) -> Iterator[Batch]:
        balanced = settings.balance == "sampling"
        order = training_data.epoch_order(train, settings.seed, epoch, balanced)
        batches = training_data.row_batches(
            train, settings.batch_size, order, place.rank, place.workers, delivery, on_device
        )
        return training_data.ahead(batches, delivery.ahead)

    if not job["has_validation"]:
        return train_batches, None
    validation = ray.get(job["rows"]["validation"])
    order = training_data.validation_order(
        validation, settings.batch_size, place.rank, place.workers
    )

    def validation_batches() -> Iterator[Batch]:
        batches = training_data.row_batches(
            validation, settings.batch_size, order, 0, 1, delivery, None
        )
        return training_data.ahead(batches, delivery.ahead)

    return train_batches, validation_batches


def streamed(
    settings: TrainingSettings,
    place: Place,
    delivery: training_data.Delivery,
    ahead: int,
    has_validation: bool,
) -> tuple[TrainBatches, ValidationBatches | None]:
    """The same from Ray Data, shuffled in a buffer."""
    share = settings.batch_size // place.workers

    def train_batches(epoch: int) -> Iterator[Batch]:
        return training_data.stream_batches(
            place.stream("train"),
            share,
            delivery,
            ahead,
            local_shuffle_buffer_size=max(share, settings.shuffle_buffer // place.workers),
            local_shuffle_seed=settings.seed * 100_003 + epoch,
        )

    def validation_batches() -> Iterator[Batch]:
        return training_data.stream_batches(
            place.stream("validation"), settings.batch_size, delivery, ahead
        )

    return train_batches, validation_batches if has_validation else None


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

    return after_epoch
