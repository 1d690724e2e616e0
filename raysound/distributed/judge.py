"""One judge's training: Ray Train over DDP workers, fed from the log-mel shards."""

from __future__ import annotations

import json
import logging
import os
from dataclasses import dataclass, replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.data
import ray.train
import ray.train.torch
from ray.train.v2._internal.exceptions import WorkerGroupStartupTimeoutError

from raysound import checkpoint, features, storage
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.corpus_checks import check_clips as check_clips
from raysound.distributed import training_data
from raysound.distributed.epochs_shown import epochs_shown
from raysound.distributed.exclusive import sole_writer
from raysound.distributed.listing import finished_features
from raysound.distributed.placement import placement
from raysound.distributed.train_worker import train_worker
from raysound.manifest_parts import read_manifest
from raysound.scoring import Normalisation
from raysound.settings import Config, TrainingSettings, digest
from raysound.split import assign_split
from raysound.training import kept_epoch
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Workers that may die before a training is given up; each time it goes on from the last epoch.
MOST_FAILURES = 8
# Seconds that Ray Train waits for its workers' CPUs and GPUs at a time, and how many times: what
# no node could ever hold is refused beforehand, so this is for a node that died, and may come back.
LEAST_PATIENCE = 60.0
MOST_WAITS = 30


def split_clips(config: Config, folder: str) -> pa.Table:
    """The usable clips of a corpus, each in train, validation or test, as the real one is split.

    Raises:
        UserError: they can't be split as the config says.
    """
    manifest = read_manifest(folder)
    return features.without_rejects(assign_split(manifest, config.corpora.real.split), folder)


def split_digest(clips: pa.Table) -> str:
    """Stands for which clips train, validate and test."""
    return digest(clips.select(["clip_id", "label", "split"]).sort_by("clip_id").to_pydict())


def run_folder(config: Config, folder: str, clips: pa.Table | None = None) -> str:
    """Where this config's judge lies: another corpus, split, model or training has another.

    Args:
        config: the experiment.
        folder: of the features that it learns from.
        clips: with their `label` and `split`; None for all, split as the config says.
    """
    clips = split_clips(config, folder) if clips is None else clips
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    identity = {
        "features": config.features.id,
        # Of the clips' sizes and times too: a recording that was replaced wants another judge.
        "corpus": summary["digest"],
        "split": split_digest(clips),
        "model": config.model.model_dump(),
        "training": config.training.model_dump(exclude={"folds", "seeds"}),
    }
    run = f"{config.model.name}-{digest(identity)}"
    return storage.join(config.output, "training", run)


@dataclass(frozen=True)
class Material:
    """What judges learn from: the real corpus in some features and split.

    Attributes:
        labels: class names in the order of the logits.
        normalisation: of the training clips.
        data: clips a split, and the digest of the split.
        clips_a_class: training clips, in the order of the labels.
        rows: references to the Rows of `train` and `validation` in the object store, if they fit.
        datasets: the same as streams, if they don't.
    """

    labels: list[str]
    normalisation: Normalisation
    data: dict[str, Any]
    clips_a_class: np.ndarray
    rows: dict[str, ray.ObjectRef] | None
    datasets: dict[str, ray.data.Dataset] | None

    @property
    def has_validation(self) -> bool:
        """True where a clip validates."""
        return bool(self.data["validation"])


def train_judge(
    config: Config,
    name: str = "judge",
    together: int = 1,
    corpus: str = "real",
    clips: pa.Table | None = None,
) -> str:
    """Trains, unless this very judge is there already, and returns its folder.

    A training that was cut off goes on after its last whole epoch.

    Args:
        config: of one judge.
        name: what it is called in the log.
        together: how many judges share the cluster's CPUs.
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
        else:
            train_to_end(config, folder, clips, run, name, together, corpus)
    return run


def train_to_end(
    config: Config,
    folder: str,
    clips: pa.Table,
    run: str,
    name: str,
    together: int,
    corpus: str,
) -> None:
    """Trains a classifier into the folder `run`; the other arguments are `train_judge`'s."""
    check_clips(config, clips, corpus)
    scaling, threads = placement(config, together)
    material = gather(folder, clips, together)
    least, most = config.compute.workers_range
    workers = f"{least} to {most} workers" if least < most else counted(most, "worker")
    logger.info(
        "%s: %s, %s, %d training, %d validation and %s, %s on %s",
        name, config.model.name, counted(len(material.labels), "class"), material.data["train"],
        material.data["validation"], counted(material.data["test"], "test clip"), workers,
        "GPUs" if scaling.use_gpu else "CPUs",
    )  # fmt: skip
    if config.training.unreached_step:
        logger.warning("%s: note: %s", name, config.training.unreached_step)
    note = describe(config, material)
    job = job_of(config, material, note, run, threads)
    with epochs_shown(storage.join(run, "history.jsonl"), config, name):
        run_workers(job, scaling, material)
    finish(run, note, config.training)


def gather(folder: str, clips: pa.Table, sharing: int = 1) -> Material:
    """The material of some features.

    Args:
        folder: of the real corpus's features.
        clips: the usable ones, with their `label` and `split`.
        sharing: how many such materials the object store has to hold; else they are streamed.
    """
    labels = sorted(set(clips["label"].to_pylist()))
    parts = {
        split: clips.filter(pc.equal(clips["split"], split))
        for split in ("train", "validation", "test")
    }
    counts = {split: len(part) for split, part in parts.items()}
    taught = {split: parts[split] for split in ("train", "validation") if counts[split]}
    fits = training_data.fits_in_store(folder, sharing)
    make = training_data.kept_in_store if fits else training_data.stream
    made = {split: make(folder, part, labels) for split, part in taught.items()}
    found = pc.value_counts(parts["train"]["label"]).to_pylist()
    of_class = {row["values"]: row["counts"] for row in found}
    return Material(
        labels=labels,
        normalisation=training_data.normalisation(folder, parts["train"]),
        data={**counts, "split_digest": split_digest(clips)},
        clips_a_class=np.array([of_class[label] for label in labels]),
        rows=made if fits else None,
        datasets=None if fits else made,
    )


def job_of(
    config: Config, material: Material, note: Checkpoint, run: str, threads: int
) -> dict[str, Any]:
    """What a worker is told.

    Raises:
        UserError: settings that this material can't be taught with.
    """
    settings = config.training
    if material.rows is None and settings.balance == "sampling":
        raise UserError(
            "training.balance: sampling wants the features in Ray's object store, which is too "
            "small for them: use weights"
        )
    weights = training_data.class_weights(material.clips_a_class)
    crop = settings.crop_length
    return {
        "note": note,
        "settings": settings,
        "compute": config.compute,
        "threads": threads,
        "run": run,
        "rows": material.rows,
        "has_validation": material.has_validation,
        "class_weights": weights if settings.balance == "weights" else None,
        "crop_frames": config.features.frames_of(crop) if crop else None,
    }


def run_workers(job: dict[str, Any], scaling: ray.train.ScalingConfig, material: Material) -> None:
    """Trains over Ray Train's workers until the last epoch.

    Raises:
        UserError: what stops the training and can be mended.
    """
    # Ray Train reads it when it begins.
    patience = max(LEAST_PATIENCE, 60 * job["compute"].wait_for_nodes)
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = f"{patience:g}"
    # Ray's own state of an earlier attempt would bring back its results, or its errors.
    storage.delete(storage.join(job["run"], "ray"))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config=job,
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=job["run"],
            failure_config=ray.train.FailureConfig(
                max_failures=MOST_FAILURES, controller_failure_limit=MOST_WAITS
            ),
            callbacks=[EndAtMistakes()],
        ),
        datasets=material.datasets,
        dataset_config=training_data.SplitStreams(),
    )
    try:
        trainer.fit()
    except ray.train.ControllerError as error:
        if isinstance(error.controller_failure, UserError):
            raise error.controller_failure from error
        if isinstance(error.controller_failure, WorkerGroupStartupTimeoutError):
            minutes = round(patience * (MOST_WAITS + 1) / 60)
            raise UserError(
                f"no room for {counted(error.controller_failure.num_workers, 'worker')} has come "
                f"within {counted(minutes, 'minute')}: add nodes, or ask for fewer "
                "compute.workers; the same command goes on after the last whole epoch"
            ) from error
        raise
    except ray.train.WorkerGroupError as error:
        for cause in error.worker_failures.values():
            # Of a storage that did not answer: what a disk refuses is no reason to try again.
            if isinstance(cause, OSError):
                raise UserError(
                    f"the training failed {MOST_FAILURES + 1} times, at last with: {cause}; the "
                    "same command continues"
                ) from error
        raise


class EndAtMistakes(ray.train.UserCallback):
    """Stands in Ray Train's controller: what the user has to mend is not tried again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises a worker's UserError, which ends the training."""
        for cause in worker_exceptions.values():
            if isinstance(cause, UserError):
                raise cause


def describe(config: Config, material: Material) -> Checkpoint:
    """All of the judge's note but its metrics."""
    return Checkpoint(
        model=config.model.name,
        labels=material.labels,
        features=config.features,
        normalisation=material.normalisation,
        training=config.training.model_dump(),
        metrics={},
        data=material.data,
        versions={name: version(name) for name in ("raysound", "ray", "torch", "torchaudio")},
    )


def finish(run: str, note: Checkpoint, settings: TrainingSettings) -> None:
    """Leaves the kept epoch's weights and note, the note last, and clears away the rest."""
    saved = checkpoint.load_progress(run)
    if saved is None:
        raise RuntimeError(f"{run}: the training ended without a single epoch")
    weights, progress = saved
    metrics = progress.history[kept_epoch(progress.history, settings) - 1]
    checkpoint.save(run, weights.kept, replace(note, metrics=metrics))
    storage.delete(storage.join(run, checkpoint.PROGRESS))
    storage.delete(storage.join(run, "ray"))
