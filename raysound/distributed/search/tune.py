"""The search: trials by Ray Tune, each a training on the real corpus; the best one's config."""

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
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.nodes import await_nodes
from raysound.distributed.cluster.placement import (
    check_labels,
    max_concurrent_trainings,
    plan_workers,
)
from raysound.distributed.cluster.session import cluster_cpus, cluster_gpus, on_ray
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.search.trial import USER_ERROR, Search, decoded
from raysound.distributed.search.tuner import MOST_FAILURES, trial_count, tuner_of
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import (
    check_clips,
    ray_train_files,
)
from raysound.distributed.training.training_data import (
    TrainingData,
    load_training_data,
)
from raysound.errors import UserError
from raysound.report.search_page import TrialRow, best_of, render_search
from raysound.report.search_results import last_line, summary_lines, trials_csv
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.settings.search_space import (
    most_epochs,
    sampled_config,
)
from raysound.training.epochs import (
    is_finished,
    selected_epoch,
)
from raysound.training.history import read_history
from raysound.wording import counted

logger = logging.getLogger(__name__)

# What a disk takes that is not full.
PROBE_BYTES = 1 << 20
# Of Ray Tune, read from the environment: no log files beside our own; its state, for a search that
# was interrupted, saved every few seconds.
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
        UserError: nothing to search, clips that no classifier can be trained on, or no trial that
            succeeded.
    """
    real_corpus(config)
    if not config.search.space:
        raise UserError(
            "search.space is empty: name a setting and its values, as in docs/training.md"
        )
    data_by_features, corpora = load_search_data(config)
    folder = search_folder(config, corpora)
    best = storage.join(folder, "best.yaml")
    with sole_writer(folder):
        if not storage.exists(best):
            search(config, data_by_features, folder)
        else:
            logger.info("%s is there already", folder)
    return best


def load_search_data(config: Config) -> tuple[dict[str, TrainingData], dict[str, str]]:
    """What trials learn from, by feature id, and what stands for the clips in each.

    Every choice of features is extracted here, once.
    """
    of_features = {
        key: dimension.values
        for key, dimension in config.search.space.items()
        if key.startswith("features.")
    }
    variants: dict[str, Config] = {}
    for values in product(*of_features.values()):
        try:
            one = sampled_config(config, dict(zip(of_features, values, strict=True)))
        except UserError as error:
            logger.info("left out: %s", error)
            continue
        variants[one.features.id] = one
    data_by_features, corpora = {}, {}
    for feature_id, one in variants.items():
        folder = extract_corpus("real", one)
        clips = split_clips(one, folder)
        check_clips(one, clips)
        if not (clips["split"].to_numpy() == "validation").any():
            raise UserError(
                "no validation clip to tell trials apart by: name "
                "corpora.real.split.validation_folds, or raise validation_fraction"
            )
        summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
        corpora[feature_id] = summary["digest"]
        data_by_features[feature_id] = load_training_data(folder, clips, sharing=len(variants))
    return data_by_features, corpora


def search_folder(config: Config, corpora: Mapping[str, str]) -> str:
    """Where this search lies: another space, budget, split or corpus has another."""
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
    """Runs the trials that are still to be run, and writes what came of all of them."""
    os.environ |= TUNE_ENVIRONMENT
    # Its traceback of a failed trial is kept in error.txt, beside the trial's history.
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    shared, resources, together = arranged(config, data_by_features, folder)
    logger.info("%s, %d at a time", counted(trial_count(config), "trial"), together)
    probe = storage.join(folder, "probe")
    try:
        # Ray Tune tries a trial again whose process dies in training, but not while it starts.
        for _ in range(1 + MOST_FAILURES):
            results = tuner_of(shared, resources, together, folder).fit()
            if not any(isinstance(result.error, RayActorError) for result in results):
                break
    except Exception:
        # Ray Tune can't read files of its own that a full disk has cut short.
        storage.write_bytes(probe, bytes(PROBE_BYTES))
        storage.delete(probe)
        raise
    for result in results:
        cause = getattr(result.error, "cause", result.error)
        if isinstance(cause, storage.UnwritableError):
            raise cause
    rows = list(trial_rows(results, shared))
    write_results(config, rows, folder)


def arranged(
    config: Config, data_by_features: Mapping[str, TrainingData], folder: str
) -> tuple[Search, dict[str, float], int]:
    """What the trials share, what Ray Tune reserves for a trial, and how many trials run at a time.

    Raises:
        UserError: the cluster can't give it.
    """
    settings, compute = config.search, config.compute
    if compute.workers_range[1] > 1:
        if settings.gpus_per_trial is not None:
            raise UserError("search.gpus_per_trial is for trials of one worker; a worker has a GPU")
        is_streamed = any(data.rows is None for data in data_by_features.values())
        most = max_concurrent_trainings(config, is_streamed)
        together = min(most, settings.max_concurrent_trials or math.inf, trial_count(config))
        scaling, threads = plan_workers(config, int(together), is_streamed)
        # The trial itself only waits for its workers, which may need every CPU.
        resources = {"memory": float(1 << 20)}
        shared = Search(config, folder, data_by_features, scaling, threads, scaling.use_gpu)
        return shared, resources, int(together)
    share = {"GPU": settings.gpus_per_trial or 1} if compute.use_gpu is True else {}
    await_nodes({"CPU": compute.cpus_per_worker or 1, **share}, 1, compute, compute.labels)
    check_labels(compute.labels)
    cpus, gpus = cluster_cpus(), cluster_gpus()
    wants_gpu = gpus > 0 if compute.use_gpu == "auto" else compute.use_gpu
    if settings.gpus_per_trial is not None and not wants_gpu:
        raise UserError("search.gpus_per_trial wants GPUs, and this search uses none")
    resources = {"CPU": compute.cpus_per_worker or min(1.0, cpus)}
    if wants_gpu:
        resources["GPU"] = settings.gpus_per_trial or 1
    free = {"CPU": cpus, "GPU": gpus}
    for kind, amount in resources.items():
        if amount > free[kind]:
            raise UserError(f"a trial wants {amount:g} {kind}; the cluster has {free[kind]:g}")
    fitting = min(int(free[kind] // amount) for kind, amount in resources.items())
    together = min(fitting, settings.max_concurrent_trials or fitting, trial_count(config))
    threads = max(1, int(cpus // together))
    shared = Search(config, folder, data_by_features, None, threads, wants_gpu)
    return shared, resources, together


def trial_rows(results: Any, search: Search) -> Iterator[TrialRow]:
    """What came of each trial, in the order they were drawn."""
    for number, result in enumerate(results, start=1):
        # Not the last part of its path: where that folder exists, Ray Tune takes another.
        trial_id = result.metrics["trial_id"]
        folder = search.folder_of(trial_id)
        history = read_history(storage.join(folder, "history.jsonl"))
        # Of a trial that never reported Ray Tune gives no values.
        drawn = decoded(search.config, result.config or {})
        values = {key: drawn.get(key) for key in search.config.search.space}
        error = result.metrics.get(USER_ERROR)
        if result.error is not None:
            error = last_line(str(result.error)) or type(result.error).__name__
            storage.write_bytes(storage.join(folder, "error.txt"), str(result.error).encode())
        state, kept = "failed" if error else "not begun", None
        if history:
            # Values that don't go together never came so far.
            training = sampled_config(search.config, values).training
            kept = history[selected_epoch(history, training) - 1]
            if not error:
                state = "finished" if is_finished(history, training) else "stopped"
        yield TrialRow(number, trial_id, state, values, history, kept, error)


def write_results(config: Config, rows: list[TrialRow], folder: str) -> None:
    """Leaves trials.csv, report.html and, last, best.yaml; clears away what trials went on from.

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
    head = (
        f"# The best of {counted(len(rows), 'trial')}: number {best.number}, {best.accuracy:.1%} "
        f"of the validation clips in epoch {best.selected_epoch}.\n"
        "# python jobs/train.py best.yaml\n"
    )
    text = head + sampled_config(config, best.values).to_yaml()
    storage.write_bytes(storage.join(folder, "best.yaml"), text.encode())
