"""One classifier's training: Ray Train over DDP workers, fed from the log-mel shards."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.train.torch

from raysound import storage
from raysound.corpora.checks import check_clips as check_clips
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training import feature_loading
from raysound.distributed.training.failures import Failures
from raysound.distributed.training.progress import log_epochs
from raysound.distributed.training.runs import log_weights, run_folder, split_clips
from raysound.distributed.training.training_data import TrainingData, by_split, load_training_data
from raysound.distributed.training.worker import QUALITY, read_progress, train_worker
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.training import TrainingSettings
from raysound.training import checkpoint
from raysound.training.batches import class_weights
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.history import read_history
from raysound.wording import counted

logger = logging.getLogger(__name__)
# Seconds that Ray Train waits for its workers' CPUs and GPUs at a time, and how many times: what
# no node could ever hold is refused beforehand, so this is for a node that died, and may come back.
LEAST_PATIENCE = 60.0
MOST_WAITS = 30
# Where Ray Train lists the checkpoints of a run, as JSON.
SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_classifier(
    config: Config,
    name: str = "classifier",
    together: int = 1,
    corpus: str = "real",
    clips: pa.Table | None = None,
) -> str:
    """Trains, unless this very classifier is there already, and returns its folder.

    A training that was cut off continues after its last whole epoch.

    Args:
        config: of one classifier.
        name: what it is called in the log.
        together: how many classifiers share the cluster's CPUs.
        corpus: whose clips it learns from.
        clips: some of them, with their `label` and `split`; None for all, split as
            `corpora.real.split` says.
    """
    folder = finished_features(corpus, config)
    clips = split_clips(config, folder) if clips is None else clips
    run = run_folder(config, folder, clips)
    with sole_writer(run):
        if checkpoint.is_complete(run):
            logger.info("%s: %s is trained already", name, run)
            return run
        check_clips(config, clips, corpus)
        with training_shown(config, folder, clips, run, name, together):
            train_run(config, folder, clips, run, together)
    return run


@contextmanager
def training_shown(
    config: Config, folder: str, clips: pa.Table, run: str, name: str, together: int
) -> Iterator[None]:
    """Logs what is about to be trained and, while the block runs, each epoch."""
    is_streamed = not feature_loading.fits_in_store(folder, together)
    scaling, _ = plan_workers(config, together, is_streamed)
    least, most = config.compute.workers_range
    workers = f"{least} to {most} workers" if least < most else counted(most, "worker")
    counts = {split: len(part) for split, part in by_split(clips).items()}
    classes = len(pc.unique(clips["label"]))
    logger.info(
        "%s: %s, %s, %d training, %d validation and %s, %s on %s",
        name, config.model.name, counted(classes, "class"),
        counts["train"], counts["validation"], counted(counts["test"], "test clip"), workers,
        "GPUs" if scaling.use_gpu else "CPUs",
    )  # fmt: skip
    log_weights(config, classes)
    if config.training.unreached_step:
        logger.warning("%s: note: %s", name, config.training.unreached_step)
    with log_epochs(storage.join(run, "history.jsonl"), config, name):
        yield


def train_run(config: Config, folder: str, clips: pa.Table, run: str, together: int) -> None:
    """Trains a classifier into the folder `run`, which the caller has locked.

    The other arguments are `train_classifier`'s.
    """
    # A Ray task that ended may be tried again, if its node died.
    if checkpoint.is_complete(run):
        return
    data = load_training_data(folder, clips, together)
    scaling, threads = plan_workers(config, together, data.rows is None)
    metadata = classifier_metadata(config, data)
    result = run_workers(job_of(config, data, metadata, run, threads), scaling, data)
    export_classifier(run, result, metadata, config.training)


def job_of(
    config: Config, data: TrainingData, metadata: ClassifierMetadata, run: str, threads: int
) -> dict[str, Any]:
    """The settings and data of a worker.

    Raises:
        UserError: settings that this data can't be taught with.
    """
    settings = config.training
    if data.rows is None and settings.class_balance == "sampling":
        raise UserError(
            "training.class_balance: sampling needs the features in Ray's object store, which is "
            "too small for them: use weights"
        )
    weights = class_weights(data.clips_a_class)
    crop = settings.crop_length
    return {
        "metadata": metadata,
        "settings": settings,
        "compute": config.compute,
        "threads": threads,
        "weights": config.model.weights,
        "run": run,
        "rows": data.rows,
        "has_validation": data.has_validation,
        "class_weights": weights if settings.class_balance == "weights" else None,
        "crop_frames": config.features.frames_of(crop) if crop else None,
    }


def run_workers(
    job: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    data: TrainingData,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> ray.train.Result:
    """Trains over Ray Train's workers until the last epoch, from the run's latest checkpoint on.

    Raises:
        UserError: what stops the training and can be mended.
    """
    # Ray Train reads it when it begins.
    patience = max(LEAST_PATIENCE, 60 * job["compute"].node_timeout_minutes)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{patience:g}"
    # A worker that reports waits for the next look of Ray Train's controller.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    folder, _, name = job["run"].rpartition("/")
    delete_broken_snapshot(job["run"])
    history = storage.join(job["run"], "history.jsonl")
    before = len(read_history(history))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=QUALITY
                if job["settings"].checkpoint_policy == "best"
                else None,
            ),
            # Ray counts failures over the whole run: `Failures` counts those in a row.
            failure_config=ray.train.FailureConfig(
                max_failures=-1, controller_failure_limit=MOST_WAITS
            ),
            callbacks=[Failures(), *callbacks],
        ),
        datasets=data.datasets(job),
        dataset_config=feature_loading.SplitStreams(),
    )
    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        # Of WorkerGroupStartupTimeoutError, which Ray does not export.
        if hasattr(cause, "num_workers"):
            if len(read_history(history)) > before:
                # Ray counts the waits over the whole run: so they are counted since an epoch.
                return run_workers(job, scaling, data, callbacks)
            minutes = round(patience * (MOST_WAITS + 1) / 60)
            raise UserError(
                f"no room for {counted(cause.num_workers, 'worker')} has come within "
                f"{counted(minutes, 'minute')}: add nodes, or ask for fewer compute.workers; the "
                "same command goes on after the last whole epoch"
            ) from error
        raise cause from error


def delete_broken_snapshot(run: str) -> None:
    """Has a training start again where a full disk cut Ray Train's list of checkpoints."""
    uri = storage.join(run, SNAPSHOT)
    try:
        json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return
    except ValueError:
        logger.warning("%s was cut short: the training starts again", uri)
        storage.delete(uri)


def classifier_metadata(config: Config, data: TrainingData) -> ClassifierMetadata:
    """All of the classifier's metadata but its metrics."""
    return ClassifierMetadata(
        model=config.model.name,
        labels=data.labels,
        features=config.features,
        normalisation=data.normalisation,
        training=config.training.model_dump(),
        metrics={},
        data=data.splits,
        versions={name: version(name) for name in ("raysound", "ray", "torch", "torchaudio")},
    )


def export_classifier(
    run: str, result: ray.train.Result, metadata: ClassifierMetadata, settings: TrainingSettings
) -> None:
    """Writes the selected epoch's weights, then the metadata, and deletes Ray Train's files."""
    kept = result.checkpoint
    if settings.checkpoint_policy == "best" and kept is not None:
        kept = result.get_best_checkpoint(QUALITY, "max")
    if kept is None:
        raise RuntimeError(f"{run}: the training ended without a single epoch")
    weights, progress = read_progress(kept)
    checkpoint.save(
        run, weights.averaged or weights.model, replace(metadata, metrics=progress.history[-1])
    )
    for name in ray_train_files(run):
        storage.delete(storage.join(run, name))


def ray_train_files(run: str) -> set[str]:
    """Names of the files and folders that Ray Train keeps in the folder of a run."""
    names = {name.partition("/")[0] for name, _, _ in storage.list_files(run)}
    known = ("checkpoint_", ".validate_storage", feature_loading.EPOCH)
    return {name for name in names if name.startswith(known)}
