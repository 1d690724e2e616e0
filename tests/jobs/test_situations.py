"""Errors if Ray can't start or its cluster is gone: one line and exit code 2."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from raysound.distributed.cluster import connect

# The job with a shorter timeout.
IMPATIENT = (
    "from raysound.distributed.cluster import connect\n"
    "from raysound.job import run_job\n"
    "connect.JOIN_SECONDS = 3.0\n"
    "run_job('raysound.distributed.extraction.extract:extract', '')\n"
)
# The start of Ray fails with one of its own errors after some of its daemons have started.
STUMBLES = (
    "from ray._private.node import Node\n"
    "import ray\n"
    "from raysound.distributed.cluster.connect import connect\n"
    "from tests.processes import processes_below\n"
    "import os\n"
    "start = Node.start_ray_processes\n"
    "failures = int(os.environ['FAILURES'])\n"
    "def stumble(self):\n"
    "    global failures\n"
    "    failures -= 1\n"
    "    if failures >= 0:\n"
    "        raise Exception('The current node timed out during startup.\\nAnd more.')\n"
    "    start(self)\n"
    "Node.start_ray_processes = stumble\n"
    "connect(1)\n"
    "print(ray.cluster_resources()['CPU'])\n"
    "below = processes_below(os.getpid()).values()\n"
    "print(sum('gcs_server' in line and 'defunct' not in line for line in below))\n"
)


@pytest.fixture
def mute() -> Iterator[str]:
    """The address of a server that never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def extract(root: Path, *command: str, **environment: str) -> str:
    """Runs a job that must fail with one line, and returns the line."""
    config = ["configs/demo.yaml", "output=/tmp/never-written"]
    done = subprocess.run(
        [sys.executable, *(command or ["jobs/extract.py"]), *config],
        cwd=root, capture_output=True, text=True, timeout=100, check=False,
        env={**os.environ, **environment},
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    return line


def test_an_unreachable_cluster_is_a_user_error(root: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"

    line = extract(root, RAY_ADDRESS=address)

    assert line == (
        f"error: no Ray cluster answers at RAY_ADDRESS={address} (Connection refused): start it, "
        "or unset RAY_ADDRESS to use this machine"
    )


def test_a_server_that_is_not_a_cluster_is_a_user_error_in_time(root: Path, mute: str) -> None:
    """Ray itself would retry for many minutes."""
    line = extract(root, "-c", IMPATIENT, RAY_ADDRESS=mute)

    assert line == (
        f"error: no Ray cluster answers at RAY_ADDRESS={mute} within 3 s: start it, or unset "
        "RAY_ADDRESS to use this machine"
    )
    assert connect.ANSWER_SECONDS + connect.JOIN_SECONDS <= 60


@pytest.mark.parametrize("variable", ["HOME", "RAY_TMPDIR"])
def test_a_folder_that_ray_can_not_write_to_is_a_user_error(root: Path, variable: str) -> None:
    line = extract(root, **{variable: "/dev/null/below", "RAY_AUTH_MODE": "token"})

    assert re.fullmatch(
        r"error: Ray can't start: \[Errno 20\] Not a directory: '/dev/null/below\S*'; it writes to "
        r"/tmp/ray .*RAY_TMPDIR.*RAY_AUTH_TOKEN_PATH.*",
        line,
    )


@pytest.mark.slow
def test_a_failed_start_of_ray_is_retried(root: Path, tmp_path: Path) -> None:
    """The number of retries is limited, and no process of a failed start remains."""

    def run(failures: int) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-c", STUMBLES],
            cwd=root, capture_output=True, text=True, timeout=100, check=False,
            env={**os.environ, "RAY_AUTH_MODE": "token", "FAILURES": str(failures)},
        )  # fmt: skip

    twice, always = run(2), run(connect.START_ATTEMPTS)

    assert twice.returncode == 0, twice.stderr
    assert twice.stdout == "1.0\n1\n"
    assert twice.stderr.count("Ray did not start (The current node timed out during startup.)") == 2
    assert always.stderr.splitlines()[-1] == (
        "raysound.errors.UserError: Ray did not start in 3 attempts; the last error: The current "
        "node timed out during startup.; its log files are in /tmp/ray/session_latest/logs"
    )


@pytest.mark.slow
def test_a_task_that_is_killed_for_memory_each_time_ends_the_job(
    root: Path, tone_config: dict[str, object], tmp_path: Path
) -> None:
    """Ray's memory monitor kills the task: its threshold is set to 1 % of the memory."""
    config = tmp_path / "memory.yaml"
    config.write_text(yaml.safe_dump(tone_config))

    done = subprocess.run(
        [sys.executable, "jobs/extract.py", str(config)],
        cwd=root, capture_output=True, text=True, timeout=110, check=False,
        env={
            **os.environ, "RAY_AUTH_MODE": "token", "RAY_memory_usage_threshold": "0.01",
            "RAY_memory_monitor_refresh_ms": "100",
        },
    )  # fmt: skip

    assert done.returncode == 2, done.stderr
    line = done.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert "ran out of memory: lower compute.num_cpus" in line
    assert "Traceback" not in done.stderr
