"""Ray Tune's own objects for a search: what is drawn, by whom, and which trials continue."""

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
from raysound.settings.search import (
    Dimension,
    PopulationBasedTraining,
)
from raysound.settings.search_space import most_epochs

logger = logging.getLogger(__name__)

# A trial whose process or node dies is tried again so often.
MOST_FAILURES = 2
# Of a trial: in a population others may still copy one when the next ones are there.
CHECKPOINTS = 4


def trial_count(config: Config) -> int:
    """How many trials the search has."""
    space = config.search.space.values()
    if config.search.algorithm == "grid":
        return math.prod(len(dimension.values) for dimension in space)
    return config.search.trials


def tuner_of(
    search: Search, resources: dict[str, float], together: int, folder: str
) -> ray_tune.Tuner:
    """Ray Tune, at the beginning of a search or where it was interrupted."""
    settings = search.config.search
    labels = search.config.compute.labels
    bundles = ray_tune.PlacementGroupFactory(
        [dict(resources)],
        # A trial that trains over workers only waits for them, on any node.
        bundle_label_selector=[labels] if labels and search.scaling is None else None,
    )
    trainable = ray_tune.with_resources(ray_tune.with_parameters(run_trial, search=search), bundles)
    space = {key: domain(dimension, settings.algorithm == "grid")
             for key, dimension in settings.space.items()}  # fmt: skip
    before = restored(storage.join(folder, "tune"), trainable, space)
    if before is not None:
        return before
    return ray_tune.Tuner(
        trainable,
        param_space=space,
        tune_config=ray_tune.TuneConfig(
            metric=SCORE,
            mode="max",
            num_samples=1 if settings.algorithm == "grid" else settings.trials,
            search_alg=searcher(settings.algorithm, settings.seed, together),
            max_concurrent_trials=together if settings.algorithm == "tpe" else None,
            scheduler=scheduler(search.config, space),
            time_budget_s=settings.time_budget_hours * 3600 if settings.time_budget_hours else None,
            # A trial that waits for its workers can't become another one.
            reuse_actors=search.scaling is None,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=ray_tune.RunConfig(
            name="tune",
            storage_path=folder,
            failure_config=ray_tune.FailureConfig(max_failures=MOST_FAILURES),
            checkpoint_config=ray_tune.CheckpointConfig(num_to_keep=CHECKPOINTS),
            callbacks=[SearchProgress(search.config, trial_count(search.config))],
            verbose=0,
        ),
    )


def restored(state: str, trainable: Any, space: dict[str, Any]) -> ray_tune.Tuner | None:
    """Ray Tune where it was interrupted; None where it was not, or where a full disk cut its files.

    Of files that Ray Tune reads later, one that was cut makes it begin anew, in the same space.

    Args:
        state: the folder of its files.
        trainable: as it was given to Ray Tune.
        space: likewise.
    """
    if not ray_tune.Tuner.can_restore(state):
        return None
    try:
        tuner = ray_tune.Tuner.restore(
            state, trainable, resume_unfinished=True, resume_errored=True, param_space=space
        )
    except (EOFError, ValueError, pickle.UnpicklingError) as error:
        logger.warning("%s was cut short (%s): the search starts again", state, error)
        storage.delete(state)
        return None
    logger.info("going on with the search in %s", state.rpartition("/")[0])
    return tuner


def domain(dimension: Dimension, crossed: bool) -> Any:
    """What Ray Tune draws from; of choices, which are any values, the place."""
    if dimension.choice is not None:
        places = list(range(len(dimension.choice)))
        return ray_tune.grid_search(places) if crossed else ray_tune.choice(places)
    if dimension.integer is not None:
        return ray_tune.randint(dimension.integer[0], dimension.integer[1] + 1)
    draw = ray_tune.uniform if dimension.uniform is not None else ray_tune.loguniform
    return draw(*dimension.values)


def searcher(algorithm: str, seed: int, together: int) -> Any:
    """Who draws the trials."""
    if algorithm != "tpe":
        return BasicVariantGenerator(max_concurrent=together, random_state=seed)
    try:
        from ray.tune.search.optuna import OptunaSearch

        return OptunaSearch(metric=SCORE, mode="max", seed=seed)
    except ImportError as error:
        raise UserError("search.algorithm: tpe wants Optuna: pip install optuna") from error


def scheduler(config: Config, space: Mapping[str, Any]) -> Any:
    """Who decides which trials go on; None lets all."""
    settings = config.search.scheduler
    if settings is None:
        return None
    # Not Ray Tune's own count, which begins again where a trial over several workers is retried.
    options = settings.model_dump(exclude={"name"}) | {"time_attr": "epoch"}
    if settings.name in {"ASHAScheduler", "HyperBandScheduler"}:
        options["max_t"] = most_epochs(config)
    if isinstance(settings, PopulationBasedTraining):
        options["hyperparam_mutations"] = dict(space)
    return getattr(schedulers, settings.name)(**options)
