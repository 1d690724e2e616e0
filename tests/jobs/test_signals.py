"""Signals end a job with one line and no process left, and the same command continues."""

import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.processes import console_output, job, poll, poll_until_empty, processes_of_session

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
EPOCHS = 12
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
LINES = {
    signal.SIGINT: "interrupted; the same command continues",
    signal.SIGTERM: "stopped; the same command continues",
    signal.SIGHUP: "stopped; the same command continues",
}


@pytest.fixture
def config(tone_config: dict[str, object], tmp_path: Path) -> Path:
    """A config of the tones with many small shards, and a search of two trials."""
    tree = {
        **tone_config,
        "training": {"epochs": EPOCHS, "batch_size": 8, "augment": {"roll": True}},
        "compute": {"workers": 2, "shard_clips": 2, "use_gpu": False, "num_cpus": 2},
        "search": {"trials": 2, "space": {"training.optimizer.lr": {"loguniform": [1e-4, 1e-2]}}},
    }
    path = tmp_path / "signals.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def interrupt(
    process: subprocess.Popen[str],
    config: Path,
    moment: Callable[[], object],
    *signals: signal.Signals,
    group: bool = False,
) -> None:
    """Sends signals to a job at a certain moment, and asserts that it ends as expected.

    Args:
        process: the job, leader of its own session.
        config: of the job.
        moment: returns true when the signals are to be sent.
        signals: one or more; the first one determines exit code and message.
        group: whether all processes of the job's group get the signals, as from a terminal.
    """

    def has_come() -> object:
        assert process.poll() is None, console_output(config)
        return moment()

    poll(has_come, 120, "the moment")
    for one in signals:
        # Ray creates a process group for the job and its daemons.
        os.killpg(os.getpgid(process.pid), one) if group else process.send_signal(one)

    assert process.wait(30) == CODES[signals[0]], console_output(config)
    line = LINES[signals[0]]
    assert console_output(config).splitlines()[-1] == line
    assert console_output(config).count(line) == 1
    assert "Traceback" not in console_output(config)
    assert "received at" not in console_output(config)
    assert console_output(config, "stdout") == ""
    poll_until_empty(lambda: processes_of_session(process.pid))


def loads(process: subprocess.Popen[str], library: str) -> bool:
    """Whether a process has loaded a part of a library."""
    return library in Path(f"/proc/{process.pid}/maps").read_text()


def epochs(config: Path, where: str = "training/*") -> int:
    """The number of epochs in the histories below the output of a config."""
    found = config.parent.glob(f"out/{where}/history.jsonl")
    return sum(len(path.read_text().splitlines()) for path in found)


@pytest.mark.parametrize("which", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_a_job_during_imports(
    root: Path, config: Path, which: signal.Signals
) -> None:
    with job(root, "train", config) as process:
        interrupt(process, config, lambda: loads(process, "libarrow"), which, which)


def test_a_signal_ends_a_job_while_ray_starts(root: Path, config: Path) -> None:
    with job(root, "train", config) as process:
        interrupt(
            process, config,
            lambda: "gcs_server" in "".join(processes_of_session(process.pid).values()),
            signal.SIGINT, group=True,
        )  # fmt: skip


def test_a_signal_ends_each_step_of_a_pipeline_which_resumes(root: Path, config: Path) -> None:
    """Signals are sent during extraction, training and, after training, evaluation."""
    parts = lambda: len([*config.parent.glob("out/features/*/part-*.parquet")])  # noqa: E731
    with job(root, "pipeline", config) as process:
        interrupt(process, config, lambda: parts() >= 3, signal.SIGINT, group=True)
    made = parts()

    with job(root, "pipeline", config) as process:
        interrupt(process, config, lambda: epochs(config) >= 2, signal.SIGINT)
    trained = epochs(config)

    notes = lambda: [*config.parent.glob("out/training/*/checkpoint.json")]  # noqa: E731
    with job(root, "pipeline", config) as process:
        interrupt(process, config, notes, *[signal.SIGINT] * 3)
        continued = re.findall(r"resuming after epoch (\d+)$", console_output(config), re.MULTILINE)

    assert made < 57
    assert 2 <= trained <= int(continued[0]) < EPOCHS
    assert epochs(config) == EPOCHS
    with job(root, "pipeline", config) as process:
        assert process.wait(100) == 0, console_output(config)
    assert (config.parent / "out/evaluation/report.html").exists()


def test_a_signal_ends_a_search(root: Path, config: Path) -> None:
    with job(root, "tune", config) as process:
        interrupt(
            process, config, lambda: epochs(config, "search/*/trials/*") >= 2, signal.SIGTERM,
            group=True,
        )  # fmt: skip
