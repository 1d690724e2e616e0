"""Trains one classifier with Ray Train's DDP workers."""

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
from raysound.corpora.checks import check_clips
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training import feature_loading
from raysound.distributed.training.failures import Failures
from raysound.distributed.training.progress import log_epochs
from raysound.distributed.training.runs import (
    ensemble_folder,
    log_weights,
    run_folder,
    split_clips,
)
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
# Ray Train waits this many seconds for its workers' resources, and retries this many times. This
# is for a node that died and may come back; `plan_workers` raises if the nodes are too small.
MIN_START_TIMEOUT = 60.0
MAX_START_TIMEOUTS = 30
# Where Ray Train lists the checkpoints of a run, as JSON.
SNAPSHOT = "checkpoint_manager_snapshot.json"


def train_classifier(
    config: Config,
    name: str = "classifier",
    concurrent: int = 1,
    corpus: str = "real",
    clips: pa.Table | None = None,
) -> str:
    """Trains a classifier, unless the same one exists already, and returns its folder.

    Training resumes after the last completed epoch.

    Args:
        config: of one classifier.
        name: in the log.
        concurrent: how many classifiers share the cluster's CPUs.
        corpus: whose clips to train on.
        clips: some of them, with their `label` and `split`; None for all, split by
            `corpora.real.split`.
    """
    folder = finished_features(corpus, config)
    clips = split_clips(config, folder) if clips is None else clips
    run = run_folder(config, folder, clips)
    with sole_writer(run):
        if checkpoint.is_complete(run):
            logger.info("%s: %s is trained already", name, run)
            return run
        check_clips(config, clips, corpus)
        with log_training(config, folder, clips, run, name, concurrent):
            train_run(config, folder, clips, run, concurrent)
    return run


def write_ensemble(output: str, runs: Sequence[str]) -> str:
    """Writes the ensemble of some classifiers, unless it exists, and returns its folder."""
    run = ensemble_folder(output, runs)
    with sole_writer(run):
        if not checkpoint.is_complete(run):
            checkpoint.save_ensemble(run, runs)
    return run


@contextmanager
def log_training(
    config: Config, folder: str, clips: pa.Table, run: str, name: str, concurrent: int
) -> Iterator[None]:
    """Logs the model and data and, while the block runs, each epoch."""
    is_streamed = not feature_loading.fits_in_store(folder, concurrent)
    scaling, _ = plan_workers(config, concurrent, is_streamed)
    low, high = config.compute.workers_range
    workers = f"{low} to {high} workers" if low < high else counted(high, "worker")
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


def train_run(config: Config, folder: str, clips: pa.Table, run: str, concurrent: int) -> None:
    """Trains a classifier into the folder `run`, which the caller has locked.

    See `train_classifier` for the other arguments.
    """
    # Ray may retry a task that has ended, if its node died.
    if checkpoint.is_complete(run):
        return
    data = load_training_data(folder, clips, concurrent)
    scaling, threads = plan_workers(config, concurrent, data.rows is None)
    metadata = classifier_metadata(config, data)
    result = run_workers(make_loop_config(config, data, metadata, run, threads), scaling, data)
    export_classifier(run, result, metadata, config.training)


def make_loop_config(
    config: Config, data: TrainingData, metadata: ClassifierMetadata, run: str, threads: int
) -> dict[str, Any]:
    """The `train_loop_config` of the workers.

    Raises:
        UserError: the settings don't allow training on this data.
    """
    settings = config.training
    if data.rows is None and settings.class_balance == "sampling":
        raise UserError(
            "training.class_balance: sampling needs the features in Ray's object store, which is "
            "too small for them: set it to weights"
        )
    weights = class_weights(data.clips_per_class)
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
    loop_config: dict[str, Any],
    scaling: ray.train.ScalingConfig,
    data: TrainingData,
    callbacks: Sequence[ray.train.UserCallback] = (),
) -> ray.train.Result:
    """Trains with Ray Train's workers, from the run's latest checkpoint to the last epoch.

    Raises:
        UserError: the training can't continue, and the user can fix the cause.
    """
    # Ray Train reads this variable when it starts.
    timeout = max(MIN_START_TIMEOUT, 60 * loop_config["compute"].node_timeout_minutes)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{timeout:g}"
    # A worker that reports waits for the controller's next health check.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
    folder, _, name = loop_config["run"].rpartition("/")
    delete_broken_snapshot(loop_config["run"])
    history = storage.join(loop_config["run"], "history.jsonl")
    epochs_before = len(read_history(history))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=loop_config,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name=name,
            storage_path=folder,
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=1,
                checkpoint_score_attribute=QUALITY
                if loop_config["settings"].checkpoint_policy == "best"
                else None,
            ),
            # Ray counts the failures of the whole run; `Failures` counts consecutive ones.
            failure_config=ray.train.FailureConfig(
                max_failures=-1, controller_failure_limit=MAX_START_TIMEOUTS
            ),
            callbacks=[Failures(), *callbacks],
        ),
        datasets=data.datasets(loop_config),
        dataset_config=feature_loading.SplitStreams(),
    )
    try:
        return trainer.fit()
    except ray.train.ControllerError as error:
        cause = error.controller_failure
        # Only WorkerGroupStartupTimeoutError, which Ray does not export, has this attribute.
        if hasattr(cause, "num_workers"):
            if len(read_history(history)) > epochs_before:
                # Ray counts the timeouts of the whole run; after an epoch the count restarts here.
                return run_workers(loop_config, scaling, data, callbacks)
            minutes = round(timeout * (MAX_START_TIMEOUTS + 1) / 60)
            raise UserError(
                f"the cluster had no resources for {counted(cause.num_workers, 'worker')} within "
                f"{counted(minutes, 'minute')}: add nodes, or lower compute.workers; the same "
                "command resumes after the last completed epoch"
            ) from error
        raise cause from error


def delete_broken_snapshot(run: str) -> None:
    """Deletes Ray Train's list of checkpoints if a full disk truncated it."""
    uri = storage.join(run, SNAPSHOT)
    try:
        json.loads(storage.read_bytes(uri))
    except FileNotFoundError:
        return
    except ValueError:
        logger.warning("%s is truncated: the training starts again", uri)
        storage.delete(uri)


def classifier_metadata(config: Config, data: TrainingData) -> ClassifierMetadata:
    """The classifier's metadata, without metrics."""
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
    selected = result.checkpoint
    if settings.checkpoint_policy == "best" and selected is not None:
        selected = result.get_best_checkpoint(QUALITY, "max")
    if selected is None:
        raise RuntimeError(f"{run}: the training ended without a completed epoch")
    weights, progress = read_progress(selected)
    checkpoint.save(
        run, weights.averaged or weights.model, replace(metadata, metrics=progress.history[-1])
    )
    for name in ray_train_files(run):
        storage.delete(storage.join(run, name))


def ray_train_files(run: str) -> set[str]:
    """Names of Ray Train's files and folders in a run folder."""
    names = {name.partition("/")[0] for name, _, _ in storage.list_files(run)}
    known = ("checkpoint_", ".validate_storage", feature_loading.EPOCH_FILE)
    return {name for name in names if name.startswith(known)}
