"""Trials that share a GPU, or where there is none, two CPUs."""

import asyncio
import csv
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from raysound.distributed.trial import Gate, History
from raysound.distributed.tune import tune
from raysound.settings import Config

# Less than a process that computes on a GPU takes of its memory, MiB.
LEAST_OF_A_PROCESS = 150


def used_memory() -> int:
    """Of the first GPU, MiB; 0 where there is none."""
    if shutil.which("nvidia-smi") is None:
        return 0
    words = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True)
    return int(done.stdout.split()[0])


def meeting_at(path: Path) -> type[Gate]:
    """A gate that lets no trial go on before two stand there, each after an epoch of its own."""

    class Meeting(Gate):
        def __init__(self) -> None:
            super().__init__()
            self.there: set[str] = set()
            self.met = asyncio.Event()
            self.missed = False

        async def passed(self, trial: str, history: History) -> bool:
            self.there.add(trial)
            if len(self.there) == 2 and not self.missed and not self.met.is_set():
                path.write_text(json.dumps({"trials": [*self.there], "used": used_memory()}))
                self.met.set()
            try:
                await asyncio.wait_for(self.met.wait(), 0 if self.missed else 60)
            except TimeoutError:
                # For good: a trial that came later, or again, would meet one that is gone.
                self.missed = True
                raise
            return await super().passed(trial, history)

    return Meeting


@pytest.mark.timeout(400)
def test_two_trials_train_on_one_gpu_at_the_same_time(
    tree: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """Each waits in the midst of its training until the other is in the midst of its own."""
    share = {"gpus_per_trial": 0.5} if device.type == "cuda" else {}
    space = {"training.optimizer.lr": {"choice": [1e-3, 2e-3]}}
    config = Config.model_validate(
        tree
        | {"training": {"epochs": 2, "batch_size": 8}}
        | {"search": {"space": space, "algorithm": "grid", **share}}
    )
    met = tmp_path / "met.json"
    monkeypatch.setattr("raysound.distributed.tune.Gate", meeting_at(met))
    before = used_memory()

    best = tune(config).removeprefix("best config: ")

    at_meeting = json.loads(met.read_text())
    assert len(at_meeting["trials"]) == 2
    rows = [*csv.DictReader(Path(best).with_name("trials.csv").open())]
    assert [row["state"] for row in rows] == ["finished", "finished"]
    if device.type == "cuda":
        assert at_meeting["used"] - before > 2 * LEAST_OF_A_PROCESS, "both computed on the GPU"
