"""One trial of a search: a training that waits after each epoch for Ray Tune's word."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any, NoReturn

import ray
import ray.train
import torch
from ray import tune
from ray.util.placement_group import get_current_placement_group

from raysound import checkpoint, storage
from raysound.config import UserError, sampled
from raysound.distributed.epochs_shown import read_history
from raysound.distributed.judge import Material, describe, job_of, run_workers
from raysound.distributed.train_worker import train_alone
from raysound.settings import Config, PopulationBasedTraining
from raysound.training import Metrics, is_finished, kept_epoch

# What schedulers and searchers go by: of the epoch whose weights the judge would keep so far.
SCORE = "score"
# Whether a trial came to its own end: Ray Tune's `done` is true of those it stopped, too.
FINISHED = "finished"
# Of a trial that failed by its values: why.
MISTAKE = "mistake"

History = list[Metrics]


@dataclass(frozen=True)
class Study:
    """What all trials of a search share.

    Attributes:
        config: with the search.
        folder: of the search.
        materials: what to learn from, by feature id.
        gate: where trainings wait, a handle of the actor `Gate`.
        scaling: of Ray Train's workers; None where a trial is one process.
        threads: of torch, a process.
        use_gpu: whether a trial has one, or a share.
    """

    config: Config
    folder: str
    materials: Mapping[str, Material]
    gate: Any
    scaling: ray.train.ScalingConfig | None
    threads: int
    use_gpu: bool

    def folder_of(self, trial_id: str) -> str:
        """Where a trial leaves its history."""
        return storage.join(self.folder, "trials", trial_id)


def decoded(config: Config, drawn: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a trial: of a choice, Ray Tune draws the place."""
    space = config.search.space
    return {
        key: value if space[key].choice is None else space[key].values[value]
        for key, value in drawn.items()
    }


class Gate:
    """An actor at which every training waits after an epoch until its trial may go on.

    The trial and its training may be processes of different machines, and each may die.
    """

    def __init__(self) -> None:
        self._arrivals: dict[str, asyncio.Queue[History | None]] = defaultdict(asyncio.Queue)
        self._waiting: dict[str, asyncio.Future[bool]] = {}
        self._unwanted: set[str] = set()
        self._groups: dict[str, Any] = {}

    async def begin(self, trial: str) -> None:
        """Forgets what an earlier attempt left behind."""
        self._arrivals.pop(trial, None)
        self._waiting.pop(trial, None)
        self._unwanted.discard(trial)

    async def enter(self, trial: str, group: Any) -> None:
        """A training's first worker is there, with the resources that all of them hold."""
        self._groups[trial] = group

    async def passed(self, trial: str, history: History) -> bool:
        """An epoch is over. Waits; then False where no other is wanted."""
        if trial in self._unwanted:
            return False
        # A worker that took a dead one's place replaces it here too.
        self._waiting[trial] = asyncio.get_running_loop().create_future()
        self._arrivals[trial].put_nowait(history)
        return await self._waiting[trial]

    async def ended(self, trial: str) -> None:
        """The training is over, or has failed."""
        self._arrivals[trial].put_nowait(None)

    async def next_epoch(self, trial: str) -> History | None:
        """Lets a training go on. Waits for its next epoch; None where it has ended."""
        self._answer(trial, True)
        return await self._arrivals[trial].get()

    async def dismiss(self, trial: str) -> None:
        """Ends a training at its next epoch."""
        self._unwanted.add(trial)
        self._answer(trial, False)

    async def left_behind(self, trial: str) -> Any:
        """The resources that a trial's workers held; None for a trial without workers."""
        return self._groups.pop(trial, None)

    def _answer(self, trial: str, word: bool) -> None:
        waiting = self._waiting.pop(trial, None)
        if waiting is not None:
            waiting.set_result(word)


@dataclass(frozen=True)
class GateOf:
    """One trial's way to the gate, for its training."""

    gate: Any
    trial: str
    has_workers: bool

    def enter(self) -> None:
        """The training begins."""
        group = get_current_placement_group() if self.has_workers else None
        ray.get(self.gate.enter.remote(self.trial, group))

    def passed(self, history: History) -> bool:
        """Waits after an epoch; False where no other is wanted."""
        return bool(ray.get(self.gate.passed.remote(self.trial, history)))


class Trial(tune.Trainable):
    """One step is one epoch. What was trained before, and interrupted, is told again from disk."""

    def setup(self, config: dict[str, Any], study: Study) -> None:
        """Takes what all trials share, and the values that were drawn."""
        self.study = study
        self._take(config)

    def _take(self, drawn: Mapping[str, Any]) -> None:
        # Before a reset, `trial_id` is already that of the trial to come.
        self.name = self.trial_id
        self.values = decoded(self.study.config, drawn)
        self.folder = self.study.folder_of(self.name)
        self.history = read_history(storage.join(self.folder, "history.jsonl"))
        self.told = 0
        self.training: Thread | None = None
        self.error: BaseException | None = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Becomes another trial, which is quicker than another process."""
        self.cleanup()
        self._take(new_config)
        return True

    def step(self) -> dict[str, Any]:
        """The next epoch; where the values are at fault, why, for it would be the same again."""
        try:
            judge = sampled(self.study.config, self.values)
            self._await_epoch(judge)
        except storage.UnwritableError:
            # Not the values' fault: when there is room again, the trial continues.
            raise
        except UserError as error:
            # The lowest score: a searcher learns that this is a bad place.
            return {"epoch": self.told, SCORE: 0.0, MISTAKE: str(error), "done": True}
        self.told += 1
        so_far = self.history[: self.told]
        kept = so_far[kept_epoch(so_far, judge.training) - 1]
        finished = is_finished(so_far, judge.training)
        score = kept["validation_accuracy"]
        return {**so_far[-1], SCORE: score, FINISHED: finished, "done": finished}

    def _await_epoch(self, judge: Config) -> None:
        """Lets the training go on, if there is no epoch that is still to be told."""
        while len(self.history) <= self.told:
            if self.training is None:
                ray.get(self.study.gate.begin.remote(self.name))
                self.training = Thread(target=self._train, args=(judge,), daemon=True)
                self.training.start()
            history = ray.get(self.study.gate.next_epoch.remote(self.name))
            if history is None:
                raise self.error or RuntimeError("the training ended before its last epoch")
            self.history = history

    def _train(self, judge: Config) -> None:
        """Runs in a thread: the training, in here or over Ray Train's workers."""
        try:
            material = self.study.materials[judge.features.id]
            note = describe(judge, material)
            job = job_of(judge, material, note, self.folder, self.study.threads)
            job["gate"] = GateOf(self.study.gate, self.name, bool(self.study.scaling))
            if self.study.scaling is None:
                device = torch.device("cuda" if self.study.use_gpu else "cpu")
                train_alone(job, device, material.datasets or {})
            else:
                run_workers(job, self.study.scaling, material)
        except BaseException as error:  # told by the step that waits
            self.error = error
        finally:
            ray.get(self.study.gate.ended.remote(self.name))

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """The file that a training goes on from: for a pause, or for another trial."""
        weights = storage.read_bytes(storage.join(self.folder, checkpoint.PROGRESS))
        Path(checkpoint_dir, checkpoint.PROGRESS).write_bytes(weights)

    def load_checkpoint(self, checkpoint_dir: str) -> None:
        """Goes on from such a file: of this trial after a pause, or of a better one."""
        weights, progress = checkpoint.load_progress(checkpoint_dir) or _nothing(checkpoint_dir)
        if isinstance(self.study.config.search.scheduler, PopulationBasedTraining):
            # The optimiser's state is the other trial's; how it steps is this one's.
            judge = sampled(self.study.config, self.values)
            options = judge.training.optimizer.model_dump(exclude={"name"})
            for group in progress.optimizer["param_groups"]:
                group |= options
        checkpoint.save_progress(self.folder, weights, progress)
        self.history = progress.history
        self.told = len(self.history)

    def cleanup(self) -> None:
        """Ends the training, and waits until its workers have given back what they held."""
        if self.training is not None:
            ray.get(self.study.gate.dismiss.remote(self.name))
            self.training.join()
            self.training = None


def _nothing(folder: str) -> NoReturn:
    raise RuntimeError(f"{folder} holds no {checkpoint.PROGRESS}")
