"""Processes die while they train, the cluster is too small, the loss is no number."""

import json
import logging
import os
import random
import re
import shutil
import signal
import subprocess
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import ray
import ray.train
import yaml
from ray.train import CheckpointConsistencyMode
from torch.distributed import DistNetworkError

from raysound import storage
from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.extraction.extract import extract
from raysound.distributed.training import trainer
from raysound.distributed.training.failures import MAX_CONSECUTIVE_FAILURES
from raysound.distributed.training.progress import log_new_epochs
from raysound.distributed.training.trainer import train_classifier
from raysound.distributed.training.worker import is_bug, train_worker
from raysound.errors import UserError
from raysound.settings.loading import from_tree
from raysound.training import checkpoint
from raysound.training.epochs import Metrics
from raysound.training.history import read_history
from tests.processes import (
    console_output,
    job,
    poll,
    poll_until_empty,
    processes_below,
    processes_of_session,
)

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
EPOCHS = 8


def without_seconds(history: list[Metrics]) -> list[Metrics]:
    """A history without its times."""
    return [{key: row[key] for key in row if key != "seconds"} for row in history]


def train_workers(job: int) -> set[int]:
    """Process ids of the workers that a job trains with now."""
    return {
        pid
        for pid, title in processes_below(job).items()
        if title.startswith("ray::RayTrainWorker")
    }


@pytest.fixture(scope="module")
def whole(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A training that nothing interrupts: epochs of a second, full of drawn numbers."""
    tree = {
        "name": "faults",
        "output": str(tmp_path_factory.mktemp("whole")),
        "corpora": {"real": {"path": str(tones["real"])}},
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 80, "n_fft": 512,
            "n_mels": 32, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {
            "epochs": EPOCHS, "batch_size": 8, "scheduler": {"name": "CosineAnnealingLR"},
            "augment": {"roll": True, "mixup": 0.2, "time_masks": 1},
        },
        "compute": {"workers": 2, "shard_clips": 16, "use_gpu": False, "num_cpus": 2},
    }  # fmt: skip
    config = from_tree(tree, "test")
    extract(config)
    return {"tree": tree, "output": Path(config.output), "run": Path(train_classifier(config))}


@pytest.fixture
def config(whole: dict[str, Any], tmp_path: Path) -> Path:
    """The same experiment in another folder, features and all, but not trained."""
    output = tmp_path / "out"
    shutil.copytree(whole["output"] / "features", output / "features")
    path = tmp_path / "faults.yaml"
    path.write_text(yaml.safe_dump({**whole["tree"], "output": str(output)}))
    return path


def history_of(config: Path) -> list[Metrics]:
    """Of the only classifier below a config's output; none if there is none yet."""
    found = list(config.parent.glob("out/training/*/history.jsonl"))
    return read_history(str(found[0])) if found else []


def epochs_there(config: Path, process: subprocess.Popen[str], least: int) -> int:
    """How many epochs the history has, once there are so many."""

    def count() -> int:
        assert process.poll() is None, console_output(config)
        epochs = len(history_of(config))
        return epochs if epochs >= least else 0

    return int(poll(count, 200, f"{least} epochs"))


def assert_as_if_nothing_had_happened(config: Path, whole: dict[str, Any]) -> None:
    """Each epoch once, the same numbers, the same weights, nothing left behind."""
    run = config.parent / "out/training" / whole["run"].name
    history, expected = (
        read_history(f"{run}/history.jsonl"),
        read_history(f"{whole['run']}/history.jsonl"),
    )
    assert [row["epoch"] for row in history] == list(range(1, EPOCHS + 1))
    assert without_seconds(history) == without_seconds(expected)
    all_metadata = [
        json.loads((folder / "checkpoint.json").read_text()) for folder in (run, whole["run"])
    ]
    for metadata in all_metadata:
        metadata["metrics"].pop("seconds")
    assert all_metadata[0] == all_metadata[1]
    weights = [(folder / checkpoint.WEIGHTS).read_bytes() for folder in (run, whole["run"])]
    assert weights[0] == weights[1]
    assert {path.name for path in run.iterdir()} == {path.name for path in whole["run"].iterdir()}


def test_an_epoch_trained_again_after_a_failure_is_logged_once(
    whole: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    history = read_history(str(whole["run"] / "history.jsonl"))
    shown = 0
    with caplog.at_level(logging.INFO):
        for epochs in (2, 1, 2, 3):
            shown = log_new_epochs(history[:epochs], shown, from_tree(whole["tree"], "test"), "cas")

    numbers = [re.match(r"cas: epoch +(\d+) of", line) for line in caplog.messages]
    assert [number and number[1] for number in numbers] == ["1", "2", "3"]


def test_training_to_an_object_store_equals_training_to_a_disk(
    object_store: str, whole: dict[str, Any]
) -> None:
    """Checkpoints are uploaded while the next epoch trains, the last one before the end."""
    config = from_tree({**whole["tree"], "output": f"{object_store}/whole"}, "test")
    extract(config)
    run = train_classifier(config)

    names = {name for name, _, _ in storage.list_files(run)}
    assert names == {path.name for path in whole["run"].iterdir()}
    history, expected = (read_history(f"{folder}/history.jsonl") for folder in (run, whole["run"]))
    assert without_seconds(history) == without_seconds(expected)
    weights = storage.read_bytes(storage.join(run, checkpoint.WEIGHTS))
    assert weights == (whole["run"] / checkpoint.WEIGHTS).read_bytes()


def test_a_killed_worker_does_not_change_the_result(
    root: Path, config: Path, whole: dict[str, Any]
) -> None:
    with job(root, "train", config) as process:
        epochs_there(config, process, 2)
        before = train_workers(process.pid)
        os.kill(random.Random(0).choice(sorted(before)), signal.SIGKILL)
        at_death = len(history_of(config))

        # Others take the place of both: a group that lost one starts anew.
        poll(lambda: len(train_workers(process.pid) - before) == 2, 200, "two other workers")
        assert process.wait(150) == 0, console_output(config)

    assert len(before) == 2
    assert 2 <= at_death < EPOCHS
    assert "Traceback" not in console_output(config)
    # A line an epoch, and none twice.
    lines = re.findall(r"^epoch +(\d+) of", console_output(config), re.MULTILINE)
    assert lines == [str(epoch) for epoch in range(1, EPOCHS + 1)]
    assert_as_if_nothing_had_happened(config, whole)


def test_training_resumes_after_the_driver_is_killed(
    root: Path, config: Path, whole: dict[str, Any]
) -> None:
    with job(root, "train", config) as killed:
        epochs_there(config, killed, 2)
        killed.kill()
        killed.wait(10)
        at_death = len(history_of(config))

    with job(root, "train", config) as process:
        assert process.wait(150) == 0, console_output(config)

    (epoch,) = re.findall(r"resuming after epoch (\d+)$", console_output(config), re.MULTILINE)
    # The orphans may have ended one more epoch before they died.
    assert 2 <= at_death <= int(epoch) < EPOCHS
    assert f"epoch {epoch:>3} of" not in console_output(config)
    assert_as_if_nothing_had_happened(config, whole)
    poll_until_empty(lambda: processes_of_session(killed.pid))


def test_an_infinite_loss_ends_the_training_without_retries(config: Path) -> None:
    """The learning rate grows until the loss is infinite, at about the third epoch."""
    growing = {
        "optimizer": {"name": "SGD", "lr": 1e-3},
        "scheduler": {"name": "ExponentialLR", "gamma": 1e12},
    }
    tree = yaml.safe_load(config.read_text())
    tree["training"] |= growing
    before, workers = train_workers(os.getpid()), set[int]()

    with ThreadPoolExecutor(1) as pool:
        training = pool.submit(train_classifier, from_tree(tree, "test"))

        def is_over() -> bool:
            workers.update(train_workers(os.getpid()) - before)
            return training.done()

        poll(is_over, 150, "the end")
        error = training.exception()

    assert isinstance(error, UserError), error
    assert re.fullmatch(
        r"the training loss is (nan|inf) in epoch \d, at the batch of the clips "
        r"((high|low|mid)/\d{3}\.wav(, |: )){4}try a smaller training\.optimizer\.lr than 0\.001, "
        r"or training\.max_grad_norm",
        str(error),
    ), error
    history = history_of(config)
    assert [row["epoch"] for row in history] == list(range(1, len(history) + 1))
    assert 1 <= len(history) < EPOCHS
    assert f"in epoch {len(history) + 1}," in str(error)
    assert len(workers) == 2, "it was tried again"


def train_and_die(job: dict[str, Any]) -> None:
    """Runs in a Ray Train worker: its process dies after each epoch but the last."""
    report = ray.train.report

    def report_and_die(metrics: Metrics, **options: Any) -> None:
        report(metrics, **options)
        ray.train.get_all_reported_checkpoints(consistency_mode=CheckpointConsistencyMode.COMMITTED)
        if metrics["epoch"] < 13:
            os.kill(os.getpid(), signal.SIGKILL)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ray.train, "report", report_and_die)
        train_worker(job)


def train_with_a_bug(job: dict[str, Any]) -> None:
    """Runs in a Ray Train worker: each epoch ends in the same exception."""
    with open(f"{job['run']}.tries", "a") as file:
        file.write("x")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("raysound.distributed.training.worker.metrics_for_ray", fail)
        train_worker(job)


def fail(history: list[Metrics], *settings: Any) -> Metrics:
    raise ValueError(f"a bug in epoch {len(history)}")


def test_any_number_of_failures_is_tolerated_between_epochs(
    config: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """There are twelve failures, more than are allowed without an epoch in between."""
    monkeypatch.setattr(trainer, "train_worker", train_and_die)
    tree = yaml.safe_load(config.read_text())
    tree["training"]["epochs"] = 13
    tree["compute"]["workers"] = 1

    with caplog.at_level("INFO"):
        train_classifier(from_tree(tree, "test"))

    assert MAX_CONSECUTIVE_FAILURES < 12
    assert [row["epoch"] for row in history_of(config)] == [*range(1, 14)]
    assert len(re.findall(r"^epoch +\d+ of 13", caplog.text, re.MULTILINE)) <= 13


def test_a_bug_ends_the_training_the_second_time(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The error holds its traceback."""
    monkeypatch.setattr(trainer, "train_worker", train_with_a_bug)
    tree = yaml.safe_load(config.read_text())
    tree["compute"]["workers"] = 1

    with pytest.raises(ValueError, match="a bug in epoch 1") as caught:
        train_classifier(from_tree(tree, "test"))

    text = "".join(traceback.format_exception(caught.value))
    assert "in fail" in text, text
    (tries,) = config.parent.glob("out/training/*.tries")
    assert tries.read_text() == "xx"


def test_failures_are_counted_since_the_last_epoch() -> None:
    """A user error ends the training at once, a bug the second time, other failures later."""
    lost = ray.exceptions.NodeDiedError("gone")
    failures = trainer.Failures()
    for _ in range(3):
        for _ in range(MAX_CONSECUTIVE_FAILURES):
            failures.after_exception(None, {0: lost, 1: OSError("no answer")})
        failures.after_report(None, [{}], None)
    for _ in range(MAX_CONSECUTIVE_FAILURES):
        failures.after_exception(None, {0: lost})
    with pytest.raises(UserError, match=r"failed 9 times without an epoch in between.*gone"):
        failures.after_exception(None, {0: lost})

    failures = trainer.Failures()
    with pytest.raises(UserError, match="a smaller rate"):
        failures.after_exception(None, {0: lost, 1: UserError("a smaller rate")})
    one, another, closed = ValueError("one"), ValueError("another"), RuntimeError("[gloo] closed")
    for error in (one, another):
        error.add_note(f"Traceback: {error}")
    # Two workers may raise the same at once.
    failures.after_exception(None, {0: one, 1: one})
    failures.after_exception(None, {0: another})
    failures.after_report(None, [{}], None)
    # Of a worker whose peer died, and where it is not known yet that it did.
    failures.after_exception(None, {0: lost, 1: one})
    for _ in range(2):
        failures.after_exception(None, {0: closed, 1: closed})
    with pytest.raises(ValueError, match="one"):
        failures.after_exception(None, {0: one})


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("a bug"), True),
        (UserError("a smaller rate"), False),
        (OSError("no answer"), False),
        (RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer"), False),
        (DistNetworkError("The client socket has timed out"), False),
    ],
)
def test_errors_of_users_storage_and_peers_are_no_bugs(error: Exception, expected: bool) -> None:
    assert is_bug(error) is expected


def test_a_training_with_a_truncated_list_of_checkpoints_starts_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    snapshot = tmp_path / trainer.SNAPSHOT
    trainer.delete_broken_snapshot(str(tmp_path))
    snapshot.write_text('{"ray_version": "2.60.0"}')
    trainer.delete_broken_snapshot(str(tmp_path))
    assert snapshot.exists()

    snapshot.write_text('{"ray_ver')
    trainer.delete_broken_snapshot(str(tmp_path))

    assert not snapshot.exists()
    assert "is truncated: the training starts again" in caplog.text


class NoRoomError(Exception):
    """Stands for Ray's error of workers that found no room."""

    num_workers = 2


def test_start_timeouts_are_counted_since_the_last_epoch(
    whole: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = from_tree(whole["tree"], "test")
    folder = trainer.finished_features("real", config)
    training_data = trainer.load_training_data(folder, trainer.split_clips(config, folder))
    scaling, threads = plan_workers(config)
    metadata = trainer.classifier_metadata(config, training_data)
    job = trainer.make_loop_config(config, training_data, metadata, str(tmp_path / "run"), threads)
    history = tmp_path / "run" / "history.jsonl"
    history.parent.mkdir()
    history.write_text("{}\n")
    tries = []

    def fit(trainer: Any) -> None:
        tries.append(trainer)
        if len(tries) == 1:
            history.write_text("{}\n{}\n")
        raise ray.train.ControllerError(NoRoomError())

    monkeypatch.setattr("ray.train.torch.TorchTrainer.fit", fit)

    with pytest.raises(
        UserError, match="the cluster had no resources for 2 workers within 31 minutes"
    ):
        trainer.run_workers(job, scaling, training_data)
    assert len(tries) == 2
