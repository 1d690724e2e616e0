"""Trials that share a GPU, or where there is none, two CPUs."""

import csv
import shutil
import subprocess
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from raysound.distributed.search.progress import SearchProgress
from raysound.distributed.search.tune import tune
from raysound.settings.schema import Config

# Less than a process that computes on a GPU takes of its memory, MiB.
LEAST_OF_A_PROCESS = 150


def used_memory() -> int:
    """Of the first GPU, MiB; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout.split()[0])


class TrialsAtOnce(SearchProgress):
    """Notes the used memory while two trials run, each after an epoch of its own."""

    noted: ClassVar[list[int]] = []

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """An epoch is over."""
        super().on_trial_result(iteration, trials, trial, result, **info)
        at_once = [one for one in trials if one.status == "RUNNING" and one.last_result]
        if len(at_once) == 2:
            self.noted.append(used_memory())


@pytest.mark.timeout(400)
def test_two_trials_train_on_one_gpu_at_the_same_time(
    tree: dict[str, Any], monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    share = {"gpus_per_trial": 0.5} if device.type == "cuda" else {}
    space = {"training.optimizer.lr": {"choice": [1e-3, 2e-3]}}
    config = Config.model_validate(
        tree
        | {"training": {"epochs": 20, "batch_size": 8}}
        | {"search": {"space": space, "algorithm": "grid", **share}}
    )
    monkeypatch.setattr("raysound.distributed.search.tuner.SearchProgress", TrialsAtOnce)
    before = used_memory()

    best = tune(config)

    assert TrialsAtOnce.noted, "one trained after the other"
    rows = [*csv.DictReader(Path(best).with_name("trials.csv").open())]
    assert [row["state"] for row in rows] == ["finished", "finished"]
    if device.type == "cuda":
        assert max(TrialsAtOnce.noted) - before > 2 * LEAST_OF_A_PROCESS, "both computed on the GPU"
