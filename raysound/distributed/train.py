"""The judge's training: Ray Train over DDP workers, fed from the log-mel shards by Ray Data."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import pyarrow.compute as pc
import ray.train
import ray.train.torch

from raysound import checkpoint, features, storage
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.distributed.extract import finished_features
from raysound.distributed.session import cluster_cpus, cluster_gpus
from raysound.distributed.train_worker import train_worker
from raysound.distributed.training_data import dataset, fits_in_store, normalisation
from raysound.settings import Config, digest
from raysound.training import Metrics

logger = logging.getLogger(__name__)


def train(config: Config) -> str:
    """Trains the judge on the real corpus. Returns the last line of the job."""
    return f"checkpoint: {train_judge(config)}"


def run_folder(config: Config, folder: str) -> str:
    """Where this config's judge lies: another corpus, model or training setting has another.

    Args:
        config: the experiment.
        folder: of the real corpus's features.
    """
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    identity = {
        "features": config.features.id,
        # Of the clips' sizes and times too: a recording that was replaced wants another judge.
        "corpus": summary["digest"],
        "model": config.model.model_dump(),
        "training": config.training.model_dump(),
    }
    run = f"{config.model.name}-{digest(identity)}"
    return storage.join(config.output, "training", run)


def split_digest(folder: str) -> str:
    """Stands for which clips train, validate and test."""
    clips = features.usable_clips(folder).select(["clip_id", "label", "split"])
    return digest(clips.to_pydict())


def train_judge(config: Config) -> str:
    """Trains, unless this very judge is there already, and returns its folder."""
    folder = finished_features("real", config)
    run = run_folder(config, folder)
    if checkpoint.is_complete(run):
        logger.info("judge: %s is trained already", run)
        return run
    storage.delete(run)
    clips = features.usable_clips(folder)
    labels = sorted(set(clips["label"].to_pylist()))
    counts = {
        split: pc.sum(pc.equal(clips["split"], split)).as_py()
        for split in ("train", "validation", "test")
    }
    trained = set(clips.filter(pc.equal(clips["split"], "train"))["label"].to_pylist())
    if len(labels) < 2:
        raise UserError(
            f"the real corpus has a single class, '{labels[0]}': a judge needs two to tell apart; "
            "is corpora.real.path one folder too high or too low?"
        )
    if set(labels) - trained:
        raise UserError(f"no usable training clip of {', '.join(sorted(set(labels) - trained))}")
    if not counts["validation"]:
        raise UserError("no validation clip: raise corpora.real.split.validation_fraction")
    note = Checkpoint(
        model=config.model.name,
        labels=labels,
        features=config.features,
        normalisation=normalisation(folder),
        training=config.training.model_dump(),
        metrics={},
        data={**counts, "split_digest": split_digest(folder)},
        versions={name: version(name) for name in ("raysound", "ray", "torch", "torchaudio")},
    )
    logger.info(
        "judge: %s, %d classes, %d training and %d validation clips, %d workers",
        config.model.name, len(labels), counts["train"], counts["validation"],
        config.compute.workers,
    )  # fmt: skip
    scaling, threads = placement(config)
    keep = fits_in_store(folder)
    trainer = ray.train.torch.TorchTrainer(
        train_worker,
        train_loop_config={
            "note": note,
            "settings": config.training,
            "workers": config.compute.workers,
            "threads": threads,
            "history": storage.join(run, "history.jsonl"),
        },
        scaling_config=scaling,
        run_config=ray.train.RunConfig(
            name="ray",
            storage_path=run,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            failure_config=ray.train.FailureConfig(controller_failure_limit=3),
        ),
        datasets={split: dataset(folder, split, labels, keep) for split in ("train", "validation")},
        # Split equally, rows are dropped: harmless in training, a wrong number in validation.
        dataset_config=ray.train.DataConfig(datasets_to_split=["train"]),
    )
    with epochs_shown(storage.join(run, "history.jsonl"), config.training.epochs):
        try:
            result = trainer.fit()
        except ray.train.WorkerGroupError as error:
            for cause in error.worker_failures.values():
                if isinstance(cause, UserError):
                    raise UserError(str(cause)) from error
            raise
    # A worker reports a checkpoint only when it is the best so far: the last one is the best one.
    with result.checkpoint.as_directory() as best:
        for name in (checkpoint.WEIGHTS, checkpoint.NOTE):
            storage.write_bytes(
                storage.join(run, name), storage.read_bytes(storage.join(best, name))
            )
    storage.delete(storage.join(run, "ray"))
    return run


def placement(config: Config) -> tuple[ray.train.ScalingConfig, int]:
    """What each worker gets: its resources for Ray, and its number of torch threads.

    Raises:
        UserError: the cluster can't give it. Ray would wait for ever.
    """
    workers, cpus, gpus = config.compute.workers, cluster_cpus(), cluster_gpus()
    use_gpu = gpus >= workers if config.compute.use_gpu == "auto" else config.compute.use_gpu
    if use_gpu and gpus < workers:
        raise UserError(f"compute.workers {workers} want a GPU each; the cluster has {gpus:g}")
    # One CPU, or half of a single one, is left to Ray Data, which feeds the workers.
    spare = min(1.0, cpus / 2)
    per_worker = config.compute.cpus_per_worker or min(1.0, (cpus - spare) / workers)
    if workers * per_worker > cpus - spare:
        raise UserError(
            f"compute.workers {workers} × compute.cpus_per_worker {per_worker:g} leave less than "
            f"{spare:g} of the cluster's {cpus:g} CPUs to read the data: ask for fewer"
        )
    resources = {"CPU": per_worker, **({"GPU": 1} if use_gpu else {})}
    scaling = ray.train.ScalingConfig(
        num_workers=workers, use_gpu=use_gpu, resources_per_worker=resources
    )
    return scaling, max(1, int(cpus // workers))


@contextmanager
def epochs_shown(history_uri: str, epochs: int) -> Iterator[None]:
    """Logs one line an epoch while the block runs, as the history grows."""
    done = threading.Event()

    def follow() -> None:
        shown = 0
        finished = False
        while not finished:
            finished = done.wait(0.5)
            rows = read_history(history_uri)
            for row in rows[shown:]:
                logger.info(
                    "epoch %3d of %d  lr %.1e  train %.3f %5.1f %%  "
                    "validation %.3f %5.1f %%  %.1f s",
                    row["epoch"], epochs, row["lr"], row["train_loss"],
                    100 * row["train_accuracy"], row["validation_loss"],
                    100 * row["validation_accuracy"], row["seconds"],
                )  # fmt: skip
            shown = len(rows)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def read_history(uri: str) -> list[Metrics]:
    """The epochs of a history.jsonl, none if there is no such file yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
