"""Hyperparameter search with Ray Tune: each trial trains on the real corpus."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Iterator, Mapping
from itertools import product
from typing import Any

from ray.exceptions import RayActorError

from raysound import storage
from raysound.corpora.checks import check_clips
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.nodes import await_nodes
from raysound.distributed.cluster.placement import (
    check_labels,
    max_concurrent_trainings,
    plan_workers,
)
from raysound.distributed.cluster.session import cluster_cpus, cluster_gpus, on_ray
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.search.trial import USER_ERROR, Search, decode_choices
from raysound.distributed.search.tuner import MAX_TRIAL_FAILURES, make_tuner, trial_count
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import ray_train_files
from raysound.distributed.training.training_data import TrainingData, load_training_data
from raysound.errors import UserError
from raysound.report.search_page import TrialRow, best_of, render_search
from raysound.report.search_results import last_line, summary_lines, trials_csv
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.settings.search_space import most_epochs, sampled_config
from raysound.training.epochs import is_finished, selected_epoch
from raysound.training.history import read_history
from raysound.wording import counted

logger = logging.getLogger(__name__)

# Size of the file that tests whether the disk is full.
PROBE_BYTES = 1 << 20
# Options of Ray Tune: write no log files, and save the state of the search every few seconds.
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "5",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
}


@on_ray
def tune(config: Config) -> str:
    """Searches `search.space` and writes the best config. An interrupted search resumes.

    Args:
        config: the experiment.

    Returns:
        Path or URI of `best.yaml`, the config of the best trial.

    Raises:
        UserError: `search.space` is empty, the clips can't be trained on, or no trial succeeded.
    """
    real_corpus(config)
    if not config.search.space:
        raise UserError(
            "search.space is empty: add a setting and its values, as in docs/training.md"
        )
    data_by_features, corpora = load_search_data(config)
    folder = search_folder(config, corpora)
    best = storage.join(folder, "best.yaml")
    with sole_writer(folder):
        if not storage.exists(best):
            search(config, data_by_features, folder)
        else:
            logger.info("%s exists already", folder)
    return best


def load_search_data(config: Config) -> tuple[dict[str, TrainingData], dict[str, str]]:
    """Extracts every combination of features in the search space.

    Returns:
        The training data and the corpus digest, each by feature id.
    """
    feature_values = {
        key: dimension.values
        for key, dimension in config.search.space.items()
        if key.startswith("features.")
    }
    variants: dict[str, Config] = {}
    for values in product(*feature_values.values()):
        try:
            variant = sampled_config(config, dict(zip(feature_values, values, strict=True)))
        except UserError as error:
            logger.info("left out: %s", error)
            continue
        variants[variant.features.id] = variant
    data_by_features, corpora = {}, {}
    for feature_id, variant in variants.items():
        folder = extract_corpus("real", variant)
        clips = split_clips(variant, folder)
        check_clips(variant, clips)
        if not (clips["split"].to_numpy() == "validation").any():
            raise UserError(
                "a search compares trials on validation clips, and there are none: set "
                "corpora.real.split.validation_folds, or raise validation_fraction"
            )
        summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
        corpora[feature_id] = summary["digest"]
        data_by_features[feature_id] = load_training_data(folder, clips, corpora=len(variants))
    return data_by_features, corpora


def search_folder(config: Config, corpora: Mapping[str, str]) -> str:
    """The folder of this search; its name depends on the space, budget, split and corpus."""
    identity = {
        "corpora": dict(corpora),
        "split": real_corpus(config).split.model_dump(mode="json"),
        **config.model_dump(mode="json", include={"features", "model", "training"}),
        "search": config.search.model_dump(
            mode="json", exclude={"max_concurrent_trials", "gpus_per_trial"}
        ),
    }
    name = f"{config.search.algorithm}-{digest(identity)}"
    return storage.join(config.output, "search", name)


def search(config: Config, data_by_features: Mapping[str, TrainingData], folder: str) -> None:
    """Runs the remaining trials, and writes the results of all."""
    os.environ |= TUNE_ENVIRONMENT
    # The traceback of a failed trial is written to error.txt, beside the trial's history.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shared, resources, concurrent = plan_trials(config, data_by_features, folder)
    logger.info("%s, %d at a time", counted(trial_count(config), "trial"), concurrent)
    probe = storage.join(folder, "probe")
    try:
        # Ray Tune retries a trial whose process dies in training, but not one that dies at start.
        for _ in range(1 + MAX_TRIAL_FAILURES):
            results = make_tuner(shared, resources, concurrent, folder).fit()
            if not any(isinstance(result.error, RayActorError) for result in results):
                break
    except Exception:
        # A full disk truncates Ray Tune's files. The probe then raises the user's error.
        storage.write_bytes(probe, bytes(PROBE_BYTES))
        storage.delete(probe)
        raise
    for result in results:
        cause = getattr(result.error, "cause", result.error)
        if isinstance(cause, storage.UnwritableError):
            raise cause
    rows = list(trial_rows(results, shared))
    write_results(config, rows, folder)


def plan_trials(
    config: Config, data_by_features: Mapping[str, TrainingData], folder: str
) -> tuple[Search, dict[str, float], int]:
    """Divides the cluster among trials.

    Returns:
        What the trials share, the resources that Ray Tune reserves for each, and how many run at a
        time.

    Raises:
        UserError: the cluster lacks the resources.
    """
    settings, compute = config.search, config.compute
    if compute.workers_range[1] > 1:
        if settings.gpus_per_trial is not None:
            raise UserError(
                "search.gpus_per_trial needs compute.workers: 1; with more, each worker has a GPU"
            )
        is_streamed = any(data.rows is None for data in data_by_features.values())
        most = max_concurrent_trainings(config, is_streamed)
        concurrent = min(most, settings.max_concurrent_trials or math.inf, trial_count(config))
        scaling, threads = plan_workers(config, int(concurrent), is_streamed)
        # The trial itself only waits for its workers, which may need every CPU.
        resources = {"memory": float(1 << 20)}
        shared = Search(config, folder, data_by_features, scaling, threads, scaling.use_gpu)
        return shared, resources, int(concurrent)
    share = {"GPU": settings.gpus_per_trial or 1} if compute.use_gpu is True else {}
    await_nodes({"CPU": compute.cpus_per_worker or 1, **share}, 1, compute, compute.labels)
    check_labels(compute.labels)
    cpus, gpus = cluster_cpus(), cluster_gpus()
    wants_gpu = gpus > 0 if compute.use_gpu == "auto" else compute.use_gpu
    if settings.gpus_per_trial is not None and not wants_gpu:
        raise UserError("search.gpus_per_trial needs GPUs, and this search uses none")
    resources = {"CPU": compute.cpus_per_worker or min(1.0, cpus)}
    if wants_gpu:
        resources["GPU"] = settings.gpus_per_trial or 1
    free = {"CPU": cpus, "GPU": gpus}
    for kind, amount in resources.items():
        if amount > free[kind]:
            raise UserError(f"a trial needs {amount:g} {kind}; the cluster has {free[kind]:g}")
    fitting = min(int(free[kind] // amount) for kind, amount in resources.items())
    concurrent = min(fitting, settings.max_concurrent_trials or fitting, trial_count(config))
    threads = max(1, int(cpus // concurrent))
    shared = Search(config, folder, data_by_features, None, threads, wants_gpu)
    return shared, resources, concurrent


def trial_rows(results: Any, search: Search) -> Iterator[TrialRow]:
    """The result of each trial, in the order of sampling."""
    for number, result in enumerate(results, start=1):
        # The folder may have another name: Ray Tune changes it if it exists.
        trial_id = result.metrics["trial_id"]
        folder = search.folder_of(trial_id)
        history = read_history(storage.join(folder, "history.jsonl"))
        # A trial that never reported has no values.
        sampled = decode_choices(search.config, result.config or {})
        values = {key: sampled.get(key) for key in search.config.search.space}
        error = result.metrics.get(USER_ERROR)
        if result.error is not None:
            error = last_line(str(result.error)) or type(result.error).__name__
            storage.write_bytes(storage.join(folder, "error.txt"), str(result.error).encode())
        state, selected = "failed" if error else "not begun", None
        if history:
            # A trial with a history has valid values.
            training = sampled_config(search.config, values).training
            selected = history[selected_epoch(history, training) - 1]
            if not error:
                state = "finished" if is_finished(history, training) else "stopped"
        yield TrialRow(number, trial_id, state, values, history, selected, error)


def write_results(config: Config, rows: list[TrialRow], folder: str) -> None:
    """Writes trials.csv, report.html and, last, best.yaml; deletes the trials' checkpoints.

    Raises:
        UserError: no trial succeeded.
    """
    storage.write_bytes(storage.join(folder, "trials.csv"), trials_csv(rows).encode())
    best = best_of(rows)
    most = len(rows) * most_epochs(config)
    page = render_search(config.name, rows, best, list(config.search.space), most, config.to_yaml())
    storage.write_bytes(storage.join(folder, "report.html"), page.encode())
    for line in summary_lines(rows, best, most):
        logger.info("%s", line)
    if best is None:
        reasons = {row.error for row in rows if row.error}
        raise UserError(f"no trial of {len(rows)} succeeded: {'; '.join(sorted(reasons))}")
    storage.delete(storage.join(folder, "tune"))
    for row in rows:
        run = storage.join(folder, "trials", row.trial_id)
        for name in ray_train_files(run):
            storage.delete(storage.join(run, name))
    header = (
        f"# The best of {counted(len(rows), 'trial')}: number {best.number}, {best.accuracy:.1%} "
        f"of the validation clips in epoch {best.selected_epoch}.\n"
        "# python jobs/train.py best.yaml\n"
    )
    text = header + sampled_config(config, best.values).to_yaml()
    storage.write_bytes(storage.join(folder, "best.yaml"), text.encode())
