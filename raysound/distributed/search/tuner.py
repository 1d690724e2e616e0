"""Ray Tune's objects for a search: Tuner, search space, search algorithm and scheduler."""

from __future__ import annotations

import logging
import math
import pickle
from collections.abc import Mapping
from typing import Any

from ray import tune as ray_tune
from ray.tune import schedulers
from ray.tune.search import BasicVariantGenerator

from raysound import storage
from raysound.distributed.search.progress import SearchProgress
from raysound.distributed.search.trial import Search, run_trial
from raysound.distributed.training.worker import SCORE
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.search import Dimension, PopulationBasedTraining
from raysound.settings.search_space import most_epochs

logger = logging.getLogger(__name__)

# Retries of a trial whose process or node dies.
MAX_TRIAL_FAILURES = 2
# Checkpoints per trial. In population-based training another trial may still copy an older one.
CHECKPOINTS = 4


def trial_count(config: Config) -> int:
    """The number of trials of a search."""
    space = config.search.space.values()
    if config.search.algorithm == "grid":
        return math.prod(len(dimension.values) for dimension in space)
    return config.search.trials


def make_tuner(
    search: Search, resources: dict[str, float], concurrent: int, folder: str
) -> ray_tune.Tuner:
    """The Tuner of a new search, or of one that was interrupted."""
    settings = search.config.search
    labels = search.config.compute.labels
    bundles = ray_tune.PlacementGroupFactory(
        [dict(resources)],
        # A trial with several workers only waits for them, so it can run on any node.
        bundle_label_selector=[labels] if labels and search.scaling is None else None,
    )
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, search=search), bundles)
    space = {key: sampling_domain(dimension, settings.algorithm == "grid")
             for key, dimension in settings.space.items()}  # fmt: skip
    tuner = restore_tuner(storage.join(folder, "tune"), trainable, space)
    if tuner is not None:
        return tuner
    return ray_tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=1 if settings.algorithm == "grid" else settings.trials,
            search_alg=make_searcher(settings.algorithm, settings.seed, concurrent),
            max_concurrent_trials=concurrent if settings.algorithm == "tpe" else None,
            scheduler=make_trial_scheduler(search.config, space),
            time_budget_s=settings.time_budget_hours * 3600 if settings.time_budget_hours else None,
            # The actor of a trial with several workers can't be reused.
            reuse_actors=search.scaling is None,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=folder,
            failure_config=ray_tune.FailureConfig(max_failures=MAX_TRIAL_FAILURES),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=CHECKPOINTS),
            callbacks=[SearchProgress(search.config, trial_count(search.config))],
            verbose=0,
        ),
    )


def restore_tuner(state: str, trainable: Any, space: dict[str, Any]) -> ray_tune.Tuner | None:
    """The Tuner of an interrupted search; None if there is none, or its files are truncated.

    Args:
        state: the folder of Ray Tune's files.
        trainable: the trial function.
        space: the search space.
    """
    if not ray_tune.Tuner.can_restore(state):
        return None
    try:
        tuner = ray_tune.Tuner.restore(
            state, trainable, resume_unfinished=True, resume_errored=True, param_space=space
        )
    except (EOFError, ValueError, pickle.UnpicklingError) as error:
        logger.warning("%s is truncated (%s): the search starts again", state, error)
        storage.delete(state)
        return None
    logger.info("resuming the search in %s", state.rpartition("/")[0])
    return tuner


def sampling_domain(dimension: Dimension, is_grid: bool) -> Any:
    """Ray Tune's domain of a setting; for choices, a domain of their indices."""
    if dimension.choice is not None:
        indices = list(range(len(dimension.choice)))
        return ray_tune.grid_search(indices) if is_grid else ray_tune.choice(indices)
    if dimension.integer is not None:
        return ray_tune.randint(dimension.integer[0], dimension.integer[1] + 1)
    sampler = ray_tune.uniform if dimension.uniform is not None else ray_tune.loguniform
    return sampler(*dimension.values)


def make_searcher(algorithm: str, seed: int, concurrent: int) -> Any:
    """Ray Tune's search algorithm."""
    if algorithm != "tpe":
        return BasicVariantGenerator(max_concurrent=concurrent, random_state=seed)
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=SCORE, mode="max", seed=seed)
    except ImportError as error:
        raise UserError("search.algorithm: tpe needs Optuna: pip install optuna") from error


def make_trial_scheduler(config: Config, space: Mapping[str, Any]) -> Any:
    """Ray Tune's trial scheduler; None if no trial is stopped early."""
    settings = config.search.scheduler
    if settings is None:
        return None
    # Ray Tune's own count restarts if a trial with several workers is retried.
    options = settings.model_dump(exclude={"name"}) | {"time_attr": "epoch"}
    if settings.name in {"ASHAScheduler", "HyperBandScheduler"}:
        options["max_t"] = most_epochs(config)
    if isinstance(settings, PopulationBasedTraining):
        options["hyperparam_mutations"] = dict(space)
    return getattr(schedulers, settings.name)(**options)
