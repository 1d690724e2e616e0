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
from raysound.distributed.training.trainer import classifier_metadata, make_loop_config, run_workers
from raysound.distributed.training.training_data import TrainingData
from raysound.distributed.training.worker import FINISHED, SCORE, train_alone
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.search import PopulationBasedTraining
from raysound.settings.search_space import sampled_config
from raysound.training.epochs import is_finished
from raysound.training.history import read_history

# Metric that holds the error of a trial whose values can't be trained with.
USER_ERROR = "user_error"
# Seconds to wait for Ray Tune to receive the last report.
REPORT_TIMEOUT = 60.0


@dataclass(frozen=True)
class Search:
    """The parameters that all trials of a search share.

    Attributes:
        config: with the search.
        folder: of the search.
        data_by_features: training data by feature id.
        scaling: of Ray Train's workers; None if a trial is one process.
        threads: torch threads of a process.
        use_gpu: whether a trial has a GPU, or a share of one.
    """

    config: Config
    folder: str
    data_by_features: Mapping[str, TrainingData]
    scaling: ray.train.ScalingConfig | None
    threads: int
    use_gpu: bool

    def folder_of(self, trial_id: str) -> str:
        """The folder of a trial's history."""
        return storage.join(self.folder, "trials", trial_id)


def decode_choices(config: Config, sampled: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial; for a choice Ray Tune samples an index."""
    space = config.search.space
    return {
        key: value if space[key].choice is None else space[key].values[value]
        for key, value in sampled.items()
    }


def run_trial(sampled: dict[str, Any], search: Search) -> None:
    """Runs in a process of Ray Tune: trains, and continues from the latest checkpoint.

    Reports a UserError, for values that can't be trained with, instead of raising it, so that Ray
    Tune does not retry the trial.
    """
    run = search.folder_of(tune.get_context().get_trial_id())
    history = storage.join(run, "history.jsonl")
    try:
        config = sampled_config(search.config, decode_choices(search.config, sampled))
        data = search.data_by_features[config.features.id]
        loop_config = make_loop_config(
            config, data, classifier_metadata(config, data), run, search.threads
        )
        loop_config["is_population"] = isinstance(
            search.config.search.scheduler, PopulationBasedTraining
        )
        if search.scaling is not None:
            was_finished = is_finished(read_history(history), config.training)
            result = run_workers(loop_config, search.scaling, data, [ReportToTune()])
            if was_finished:
                # Ray Tune was interrupted before it received the last report.
                tune.report(result.metrics)
            return
        device = torch.device("cuda" if search.use_gpu else "cpu")
        train_alone(
            loop_config, device, data.datasets(loop_config), tune.report, tune.get_checkpoint()
        )
    except storage.UnwritableError:
        # The values are valid: the trial continues when the disk has space again.
        raise
    except UserError as error:
        # The lowest score makes a search algorithm avoid these values.
        epoch = 1 + len(read_history(history))
        tune.report({"epoch": epoch, SCORE: 0.0, FINISHED: False, USER_ERROR: str(error)})


class ReportToTune(TuneReportCallback):
    """Runs in Ray Train's controller: forwards each epoch's metrics to Ray Tune."""

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Any
    ) -> None:
        """Forwards the metrics of rank 0.

        Waits until Ray Tune has received the last epoch's: a trial that ends before hangs.
        """
        super().after_report(run_context, metrics, checkpoint)
        end = time.monotonic() + REPORT_TIMEOUT
        while metrics[0][FINISHED] and time.monotonic() < end:
            if self._training_actor_item_queue.empty():
                break
            time.sleep(0.05)
