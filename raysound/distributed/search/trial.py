"""One trial of a search: a function that trains and reports each epoch to Ray Tune."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray.train
import torch
from ray import tune
from ray.tune.integration.ray_train import TuneReportCallback

from raysound import storage
from raysound.distributed.training.trainer import (
    classifier_metadata,
    job_of,
    run_workers,
)
from raysound.distributed.training.training_data import TrainingData
from raysound.distributed.training.worker import FINISHED, SCORE, train_alone
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.search import PopulationBasedTraining
from raysound.settings.search_space import sampled_config
from raysound.training.epochs import is_finished
from raysound.training.history import read_history

# Of a trial that failed because of its values: why.
USER_ERROR = "mistake"
# Seconds in which Ray Tune takes a report, even where it is busy.
TAKEN_WITHIN = 60.0


@dataclass(frozen=True)
class Search:
    """What all trials of a search share.

    Attributes:
        config: with the search.
        folder: of the search.
        data_by_features: what to learn from, by feature id.
        scaling: of Ray Train's workers; None where a trial is one process.
        threads: of torch, a process.
        use_gpu: whether a trial has one, or a share.
    """

    config: Config
    folder: str
    data_by_features: Mapping[str, TrainingData]
    scaling: ray.train.ScalingConfig | None
    threads: int
    use_gpu: bool

    def folder_of(self, trial_id: str) -> str:
        """Where a trial writes its history."""
        return storage.join(self.folder, "trials", trial_id)


def decoded(config: Config, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial: of a choice, Ray Tune draws the place."""
    space = config.search.space
    return {
        key: value if space[key].choice is None else space[key].values[value]
        for key, value in drawn.items()
    }


def run_trial(drawn: dict[str, Any], search: Search) -> None:
    """Runs in a process of Ray Tune: trains, and continues from the latest checkpoint.

    Values that can't be trained with are reported, not raised: the next try would be the same.
    """
    run = search.folder_of(tune.get_context().get_trial_id())
    history = storage.join(run, "history.jsonl")
    try:
        config = sampled_config(search.config, decoded(search.config, drawn))
        data = search.data_by_features[config.features.id]
        job = job_of(config, data, classifier_metadata(config, data), run, search.threads)
        job["is_population"] = isinstance(search.config.search.scheduler, PopulationBasedTraining)
        if search.scaling is not None:
            was_finished = is_finished(read_history(history), config.training)
            result = run_workers(job, search.scaling, data, [ReportToTune()])
            if was_finished:
                # Ray Tune was interrupted before it took the last report.
                tune.report(result.metrics)
            return
        device = torch.device("cuda" if search.use_gpu else "cpu")
        train_alone(job, device, data.datasets(job), tune.report, tune.get_checkpoint())
    except storage.UnwritableError:
        # Not because of the values: when there is room again, the trial continues.
        raise
    except UserError as error:
        # The lowest score: a searcher learns that this is a bad place.
        epoch = 1 + len(read_history(history))
        tune.report({"epoch": epoch, SCORE: 0.0, FINISHED: False, USER_ERROR: str(error)})


class ReportToTune(TuneReportCallback):
    """Runs in Ray Train's controller: forwards each epoch's metrics to Ray Tune."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Forwards the metrics of rank 0.

        Waits after the last epoch: a trial that ends while a report is on its way waits for ever.
        """
        super().after_report(run_context, metrics, checkpoint)
        end = time.monotonic() + TAKEN_WITHIN
        while metrics[0][FINISHED] and time.monotonic() < end:
            if self._training_actor_item_queue.empty():
                break
            time.sleep(0.05)
