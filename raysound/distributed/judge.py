"""One judge's training: Ray Train over DDP workers, fed from the log-mel shards."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import ray.train
import ray.train.torch
import torch

from raysound import checkpoint, features, storage
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.distributed import training_data
from raysound.distributed.extract import finished_features
from raysound.distributed.session import cluster_cpus, cluster_gpus
from raysound.distributed.train_worker import train_worker
from raysound.settings import Config, TrainingSettings, digest
from raysound.split import assign_split
from raysound.training import Metrics, kept_epoch

logger = logging.getLogger(__name__)

# Workers that may die before a training is given up; each time it goes on from the last epoch.
MOST_FAILURES = 8


def split_clips(config: Config, folder: str) -> pa.Table:
    """The usable clips of the real corpus, each in train, validation or test.

    Raises:
        UserError: they can't be split as the config says.
    """
    manifest = storage.read_table(storage.join(folder, "manifest.parquet"))
    return features.without_rejects(assign_split(manifest, config.corpora.real.split), folder)


def split_digest(clips: pa.Table) -> str:
    """Stands for which clips train, validate and test."""
    return digest(clips.select(["clip_id", "label", "split"]).sort_by("clip_id").to_pydict())


def run_folder(config: Config, folder: str) -> str:
    """Where this config's judge lies: another corpus, split, model or training has another.

    Args:
        config: the experiment.
        folder: of the real corpus's features.
    """
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    identity = {
        "features": config.features.id,
        # Of the clips' sizes and times too: a recording that was replaced wants another judge.
        "corpus": summary["digest"],
        "split": split_digest(split_clips(config, folder)),
        "model": config.model.model_dump(),
        "training": config.training.model_dump(exclude={"folds", "seeds"}),
    }
    run = f"{config.model.name}-{digest(identity)}"
    return storage.join(config.output, "training", run)


def train_judge(config: Config, name: str = "judge", together: int = 1) -> str:
    """Trains, unless this very judge is there already, and returns its folder.

    A training that was cut off goes on after its last whole epoch.

    Args:
        config: of one judge.
        name: what it is called in the log.
        together: how many judges share the cluster's CPUs.
    """
    folder = finished_features("real", config)
    run = run_folder(config, folder)
    if checkpoint.is_complete(run):
        logger.info("%s: %s is trained already", name, run)
        return run
    clips = split_clips(config, folder)
    note = describe(config, folder, clips, name)
    scaling, threads = placement(config, together)
    parts = {
        split: clips.filter(pc.equal(clips["split"], split)) for split in ("train", "validation")
    }
    fits = training_data.fits_in_store(folder)
    if not fits and config.training.balance == "sampling":
        raise UserError(
            "training.balance: sampling wants the features in Ray's object store, which is too "
            "small for them: use weights"
        )
    make = training_data.kept_in_store if fits else training_data.stream
    made = {split: make(folder, some, note.labels) for split, some in parts.items() if len(some)}
    crop = config.training.crop_length
    # Ray's own state of an earlier attempt would bring back its results, or its errors.
    storage.delete(storage.join(run, "ray"))
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "note": note,
            "settings": config.training,
            "compute": config.compute,
            "threads": threads,
            "run": run,
            "rows": made if fits else None,
            "has_validation": "validation" in made,
            "class_weights": class_weights(parts["train"], note.labels)
            if config.training.balance == "weights"
            else None,
            "crop_frames": config.features.frames_of(crop) if crop else None,
        },
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=run,
            failure_config=ray.train.FailureConfig(
                max_failures=MOST_FAILURES, controller_failure_limit=3
            ),
            callbacks=[EndAtMistakes()],
        ),
        datasets=None if fits else made,
        # Split equally, rows are dropped: harmless in training, a wrong number in validation.
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
    )
    with epochs_shown(storage.join(run, "history.jsonl"), config.training, name):
        try:
            trainer.fit()
        except ray.train.ControllerError as error:
            if isinstance(error.controller_failure, UserError):
                raise UserError(str(error.controller_failure)) from error
            raise
    finish(run, note, config.training)
    return run


class EndAtMistakes(ray.train.UserCallback):
    """Stands in Ray Train's controller: what the user has to mend is not tried again."""

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises a worker's UserError, which ends the training."""
        for cause in worker_exceptions.values():
            if isinstance(cause, UserError):
                raise cause


def describe(config: Config, folder: str, clips: pa.Table, name: str) -> Checkpoint:
    """All of the judge's note but its metrics.

    Raises:
        UserError: clips with which no judge can be trained.
    """
    labels = sorted(set(clips["label"].to_pylist()))
    counts = {
        split: pc.sum(pc.equal(clips["split"], split)).as_py() or 0
        for split in ("train", "validation", "test")
    }
    training = clips.filter(pc.equal(clips["split"], "train"))
    trained = set(training["label"].to_pylist())
    if len(labels) < 2:
        raise UserError(
            f"the real corpus has a single class, '{labels[0]}': a judge needs two to tell apart; "
            "is corpora.real.path one folder too high or too low?"
        )
    if set(labels) - trained:
        raise UserError(f"no usable training clip of {', '.join(sorted(set(labels) - trained))}")
    if not counts["validation"] and config.training.needs_validation:
        raise UserError(
            "no validation clip to choose the best epoch, a plateau or the end by: raise "
            "corpora.real.split.validation_fraction, or set training.keep: last"
        )
    logger.info(
        "%s: %s, %d classes, %d training and %d validation clips, %s workers",
        name, config.model.name, len(labels), counts["train"], counts["validation"],
        " to ".join(str(count) for count in sorted({*config.compute.workers_range})),
    )  # fmt: skip
    return Checkpoint(
        model=config.model.name,
        labels=labels,
        features=config.features,
        normalisation=training_data.normalisation(folder, training),
        training=config.training.model_dump(),
        metrics={},
        data={**counts, "split_digest": split_digest(clips)},
        versions={name: version(name) for name in ("raysound", "ray", "torch", "torchaudio")},
    )


def class_weights(clips: pa.Table, labels: list[str]) -> torch.Tensor:
    """Weights of the loss that let every class count alike."""
    counted = pc.value_counts(clips["label"]).to_pylist()
    counts = {row["values"]: row["counts"] for row in counted}
    return training_data.class_weights(np.array([counts[label] for label in labels]))


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


def spare_cpus() -> float:
    """One CPU, or half of a single one, is left to Ray Data, which feeds the workers."""
    return min(1.0, cluster_cpus() / 2)


def placement(config: Config, together: int = 1) -> tuple[ray.train.ScalingConfig, int]:
    """What each worker gets: its resources for Ray, and its number of torch threads.

    Raises:
        UserError: the cluster can't give it. Ray would wait for ever.
    """
    (least, most), cpus, gpus = config.compute.workers_range, cluster_cpus(), cluster_gpus()
    use_gpu = gpus >= least if config.compute.use_gpu == "auto" else config.compute.use_gpu
    if use_gpu and gpus < least:
        raise UserError(f"compute.workers {least} want a GPU each; the cluster has {gpus:g}")
    spare = spare_cpus()
    per_worker = config.compute.cpus_per_worker or min(1.0, (cpus - spare) / least)
    if least * per_worker > cpus - spare:
        raise UserError(
            f"compute.workers {least} × compute.cpus_per_worker {per_worker:g} leave less than "
            f"{spare:g} of the cluster's {cpus:g} CPUs to read the data: ask for fewer"
        )
    if config.compute.sync_batch_norm is True and not use_gpu:
        raise UserError("compute.sync_batch_norm: true wants GPUs: torch has it for nothing else")
    resources = {"CPU": per_worker, **({"GPU": 1} if use_gpu else {})}
    scaling = ray.train.ScalingConfig(
        num_workers=least if least == most else (least, most),
        use_gpu=use_gpu,
        resources_per_worker=resources,
    )
    return scaling, max(1, int(cpus // (most * together)))


@contextmanager
def epochs_shown(history_uri: str, settings: TrainingSettings, name: str) -> Iterator[None]:
    """Logs one line an epoch while the block runs, as the history grows."""
    epochs = settings.epochs + settings.finetune.epochs
    prefix = "" if name == "judge" else f"{name}: "
    done = threading.Event()

    def follow() -> None:
        shown = len(read_history(history_uri))
        if shown:
            logger.info("%s: going on after epoch %d", name, shown)
        finished = False
        while not finished:
            finished = done.wait(0.5)
            rows = read_history(history_uri)
            for row in rows[shown:]:
                logger.info("%s%s", prefix, epoch_line(row, epochs))
            shown = len(rows)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def epoch_line(row: Metrics, epochs: int) -> str:
    """What an epoch brought, as a line of text."""
    splits = (
        f"{split} {row[f'{split}_loss']:.3f} {row[f'{split}_accuracy']:6.1%}  "
        for split in ("train", "validation")
        if row[f"{split}_clips"]
    )
    return (
        f"epoch {row['epoch']:3d} of {epochs}  lr {row['lr']:.1e}  "
        f"{''.join(splits)}{row['seconds']:.1f} s"
    )


def read_history(uri: str) -> list[Metrics]:
    """The epochs of a history.jsonl, none if there is no such file yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
