"""One classifier's training: Ray Train over DDP workers, fed from the log-mel shards."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.train.torch

from raysound import storage
from raysound.corpora.checks import check_clips as check_clips
from raysound.corpora.manifest_parts import read_manifest
from raysound.corpora.split import assign_split
from raysound.distributed.cluster.connect import first_line
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.placement import placement, reading_tasks
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training import data as training_data
from raysound.distributed.training.data import ShardDatasource
from raysound.distributed.training.progress import log_epochs
from raysound.distributed.training.worker import QUALITY, read_progress, train_worker
from raysound.errors import UserError
from raysound.features import parquet
from raysound.models import build
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.settings.training import TrainingSettings
from raysound.training import checkpoint
from raysound.training.batches import class_weights
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.history import read_history
from raysound.training.inference import Normalisation
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Failures in a row, without an epoch between them, before a training is given up.
MOST_FAILURES = 8
# Seconds that Ray Train waits for its workers' CPUs and GPUs at a time, and how many times: what
# no node could ever hold is refused beforehand, so this is for a node that died, and may come back.
LEAST_PATIENCE = 60.0
MOST_WAITS = 30
# Where Ray Train lists the checkpoints of a run, as JSON.
SNAPSHOT = "checkpoint_manager_snapshot.json"


def split_clips(config: Config, folder: str) -> pa.Table:
    """The usable clips of a corpus, each in train, validation or test, as the real one is split.

    Raises:
        UserError: they can't be split as the config says.
    """
    manifest = read_manifest(folder)
    return parquet.without_rejects(assign_split(manifest, real_corpus(config).split), folder)


def split_digest(clips: pa.Table) -> str:
    """Stands for which clips train, validate and test."""
    return digest(clips.select(["clip_id", "label", "split"]).sort_by("clip_id").to_pydict())


def run_folder(config: Config, folder: str, clips: pa.Table | None = None) -> str:
    """Where this config's classifier lies: another corpus, split, model or training has another.

    Args:
        config: the experiment.
        folder: of the features that it learns from.
        clips: with their `label` and `split`; None for all, split as the config says.
    """
    clips = split_clips(config, folder) if clips is None else clips
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    identity = {
        "features": config.features.id,
        # Of the clips' sizes and times too: a recording that was replaced wants another classifier.
        "corpus": summary["digest"],
        "split": split_digest(clips),
        "model": model_identity(config),
        "training": config.training.model_dump(exclude={"folds", "seeds"}),
    }
    run = f"{config.model.name}-{digest(identity)}"
    return storage.join(config.output, "training", run)


def model_identity(config: Config) -> dict[str, str]:
    """The model's settings, with what the file of weights holds in place of its name."""
    identity = config.model.model_dump(exclude_none=True)
    if config.model.weights is not None:
        content = checkpoint.read_weights_file(config.model.weights)
        identity["weights"] = hashlib.sha256(content).hexdigest()
    return identity


def log_weights(config: Config, classes: int) -> None:
    """Logs which of the weights that a training starts from fit its model."""
    uri = config.model.weights
    if uri is not None:
        model = build(config.model.name, classes)
        found, missing = checkpoint.fitting(model, checkpoint.read_weights(uri), uri)
        untrained = f"; not loaded: {', '.join(missing)}" if missing else ""
        logger.info("%d tensors loaded from %s%s", len(found), uri, untrained)


@dataclass(frozen=True)
class TrainingData:
    """What classifiers learn from: the real corpus in some features and split.

    Attributes:
        labels: class names in the order of the logits.
        normalisation: of the training clips.
        splits: clips per split, and the digest of the split.
        clips_a_class: training clips, in the order of the labels.
        rows: references to the Rows of `train` and `validation` in the object store, if they fit.
        sources: of the same as streams, if they don't.
    """

    labels: list[str]
    normalisation: Normalisation
    splits: dict[str, Any]
    clips_a_class: np.ndarray
    rows: dict[str, ray.ObjectRef] | None
    sources: dict[str, ShardDatasource] | None

    @property
    def has_validation(self) -> bool:
        """True where a clip validates."""
        return bool(self.splits["validation"])

    def datasets(self, job: dict[str, Any]) -> dict[str, ray.data.Dataset]:
        """The streams of a training; none where the rows are in the object store."""
        streams = {}
        for split, source in (self.sources or {}).items():
            of_run = copy(source)
            if split == "train":
                of_run.run, of_run.seed = job["run"], job["settings"].seed
            streams[split] = training_data.stream(of_run, reading_tasks(job["compute"]))
        return streams


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
    is_streamed = not training_data.fits_in_store(folder, together)
    scaling, _ = placement(config, together, is_streamed)
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
    scaling, threads = placement(config, together, data.rows is None)
    metadata = classifier_metadata(config, data)
    result = run_workers(job_of(config, data, metadata, run, threads), scaling, data)
    export_classifier(run, result, metadata, config.training)


def by_split(clips: pa.Table) -> dict[str, pa.Table]:
    """The clips that train, validate and test."""
    return {
        split: clips.filter(pc.equal(clips["split"], split))
        for split in ("train", "validation", "test")
    }


def load_training_data(folder: str, clips: pa.Table, sharing: int = 1) -> TrainingData:
    """The data of some features.

    Args:
        folder: of the real corpus's features.
        clips: the usable ones, with their `label` and `split`.
        sharing: how many such data sets the object store has to hold; else they are streamed.
    """
    labels = sorted(set(clips["label"].to_pylist()))
    parts = by_split(clips)
    counts = {split: len(part) for split, part in parts.items()}
    taught = {split: parts[split] for split in ("train", "validation") if counts[split]}
    fits = training_data.fits_in_store(folder, sharing)
    rows, sources = {}, {}
    for split, part in taught.items():
        if fits:
            rows[split] = training_data.kept_in_store(folder, part, labels)
        else:
            chosen = ray.put(part.select(["clip_id", "label"]))
            sources[split] = ShardDatasource(parquet.shard_uris(folder), chosen, labels)
    found = pc.value_counts(parts["train"]["label"]).to_pylist()
    of_class = {row["values"]: row["counts"] for row in found}
    return TrainingData(
        labels=labels,
        normalisation=training_data.normalisation(folder, parts["train"]),
        splits={**counts, "split_digest": split_digest(clips)},
        clips_a_class=np.array([of_class[label] for label in labels]),
        rows=rows if fits else None,
        sources=None if fits else sources,
    )


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
        dataset_config=training_data.SplitStreams(),
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


class Failures(ray.train.UserCallback):
    """Runs in Ray Train's controller: ends a training whose workers fail again and again.

    A UserError ends it at once, and the same exception in the same place at the second time. Other
    failures, as of nodes, may follow each other MOST_FAILURES times without an epoch in between.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.seen: set[str] = set()

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """An epoch is over."""
        self.in_a_row = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises what ends the training."""
        errors = [*worker_exceptions.values()]
        for error in errors:
            if isinstance(error, UserError):
                raise error
        self.in_a_row += 1
        # `train_worker` notes the traceback of a bug; where a process died, the others' exceptions
        # follow from that. Workers may raise the same at once.
        bugs = {str(getattr(error, "__notes__", "")): error for error in errors}
        if all(bugs):
            for bug in bugs.keys() & self.seen:
                raise bugs[bug]
            self.seen |= bugs.keys()
        if self.in_a_row > MOST_FAILURES:
            raise UserError(
                f"the training failed {self.in_a_row} times without an epoch in between, at last "
                f"with: {first_line(errors[0])}; the same command continues"
            )


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
    known = ("checkpoint_", ".validate_storage", training_data.EPOCH)
    return {name for name in names if name.startswith(known)}
