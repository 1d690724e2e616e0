"""Runs benchmarks/gpu.sh on a CPU with small data."""

import os
import re
import subprocess
from pathlib import Path

import pytest

from benchmarks.gpu_folds import fitting_epochs
from benchmarks.training import peak_tflops


def run(root: Path, out: Path, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        ["bash", "benchmarks/gpu.sh", "--smoke", *arguments],
        cwd=root, capture_output=True, text=True, timeout=1100, check=False,
        env={**os.environ, "OUT": str(out)},
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_every_step_runs_on_a_cpu_and_writes_its_table(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path)

    assert done.returncode == 0, done.stdout + done.stderr
    ended = re.findall(r"^== (\w+): (.+) after \d+ s$", done.stderr, re.MULTILINE)
    assert ended == [(step, "ok") for step in ("machine", "training", "tests", "folds")]
    assert (tmp_path / "gpu.log").stat().st_size > 0
    results = (tmp_path / "gpu.md").read_text()
    for row in (
        r"\| torch \| 2\.",
        r"\| raysound, features streamed from Parquet \| \d",
        r"\| bfloat16 \| \d",
        r"\| all on \| \d",
        r"\| `tests/gpu/test_search\.py::\w+` \| PASSED \|",
        r"\| `tests/gpu/test_scoring\.py::\w+.*` \| SKIPPED \|",
        r"\| 2 \| \d+\.\d% \| 20 \|",
        r"mean \d+\.\d%, standard deviation over folds",
        r"\| folds \| ok \| \d+ \|",
    ):
        assert re.search(f"^{row}", results, re.MULTILINE), row


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_a_failing_step_sets_the_exit_code_and_stops_no_other_step(
    root: Path, tmp_path: Path
) -> None:
    done = run(root, tmp_path, "--steps", "training,folds", "--model", "nosuch")

    assert done.returncode == 1
    ended = re.findall(r"^== (\w+): (.+) after \d+ s$", done.stderr, re.MULTILINE)
    assert ended == [("training", "failed with 1"), ("folds", "ok")]
    assert "'nosuch'" in (tmp_path / "gpu.log").read_text()
    assert "This step is not complete: failed with 1" in (tmp_path / "gpu.md").read_text()


def test_a_step_without_time_left_is_reported_and_fails(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, "--minutes", "0", "--steps", "machine")

    assert done.returncode == 1
    assert re.search(r"^== machine: out of time after \d+ s$", done.stderr, re.MULTILINE)
    assert "| machine | out of time |" in (tmp_path / "gpu.md").read_text()


def test_an_unknown_option_is_a_usage_error(root: Path, tmp_path: Path) -> None:
    done = run(root, tmp_path, "--nosuch")

    assert done.returncode == 2
    assert done.stderr.startswith("Measures and tests raysound on a host with one GPU")


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989.0),
        ("NVIDIA H100 PCIe", 756.0),
        ("NVIDIA H200", 989.0),
        ("NVIDIA A100-SXM4-80GB", 312.0),
        ("NVIDIA L4", 121.0),
        ("NVIDIA L40S", None),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
    ],
)
def test_peaks_match_whole_words_of_the_device_name(name: str, tflops: float | None) -> None:
    """An L40S is not an L4, and a MIG part does not have the peak of the GPU."""
    assert peak_tflops(name) == tflops


def test_the_epochs_fit_the_time_and_never_exceed_the_recipe() -> None:
    """225 s are 45 s per fold: 15 s are fixed, and 30 s are enough for 60 epochs of 0.5 s."""
    assert fitting_epochs(250, folds=5, fixed=15, epoch=0.5, most=120) == 60
    assert fitting_epochs(2500, folds=5, fixed=15, epoch=0.5, most=120) == 120
    assert fitting_epochs(10, folds=5, fixed=15, epoch=0.5, most=120) == 1
