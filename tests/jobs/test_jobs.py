"""Runs jobs from the command line, and checks exit codes, output and files."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

JOBS = ["synthesize", "extract", "train", "tune", "evaluate", "cas", "pipeline"]


def run(root: Path, job: str, *arguments: str, timeout: int = 100) -> subprocess.CompletedProcess:
    """Runs `python jobs/JOB.py ARGUMENTS` in the project's folder."""
    return subprocess.run(
        [sys.executable, f"jobs/{job}.py", *arguments],
        cwd=root, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "RAY_AUTH_MODE": "token"},
    )  # fmt: skip


@pytest.mark.parametrize("job", JOBS)
def test_a_user_error_is_one_line_and_exit_code_2(root: Path, job: str) -> None:
    done = run(root, job, "configs/demo.yaml", "features.n_mel=64")

    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines()[-1] == (
        "error: configs/demo.yaml: unknown key 'features.n_mel'; did you mean 'features.n_mels'?"
    )
    assert "Traceback" not in done.stderr


def test_a_comparison_with_a_missing_file_is_a_user_error(root: Path, tmp_path: Path) -> None:
    done = run(root, "compare", str(tmp_path / "a.json"), str(tmp_path / "b.json"))
    bare = run(root, "compare")

    assert done.returncode == bare.returncode == 2
    assert done.stderr == (
        f"error: there is no {tmp_path}/a.json: give the metrics.json that jobs/evaluate.py wrote\n"
    )
    assert "usage: raysound compare OLD" in bare.stdout


def test_a_job_without_arguments_prints_its_usage(root: Path) -> None:
    asked, bare = run(root, "extract", "--help"), run(root, "extract")

    assert asked.returncode == 0
    assert "usage: raysound extract CONFIG [key=value ...]" in bare.stdout
    assert bare.returncode == 2
    assert asked.stdout.startswith(bare.stdout)
    assert "  features.hop_length " in asked.stdout


def test_a_missing_corpus_is_reported_with_its_path(root: Path, tmp_path: Path) -> None:
    done = run(root, "extract", "configs/seed.yaml", f"output={tmp_path}", "corpora.real.path=/no")

    assert done.returncode == 2
    assert "error: /no: no such folder" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_local_cluster_requires_the_token(root: Path) -> None:
    """Ray's token is on by default."""
    code = (
        "import os, ray\n"
        "from raysound.distributed.cluster.session import ray_session\n"
        "from raysound.settings.compute import ComputeSettings\n"
        "with ray_session(ComputeSettings(num_cpus=1)):\n"
        "    assert ray.is_initialized()\n"
        "    print(os.environ['RAY_AUTH_MODE'])\n"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RAY_AUTH_MODE"}

    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=root, capture_output=True, text=True, timeout=100, check=False, env=environment,
    )  # fmt: skip

    assert done.stdout == "token\n", done.stderr


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_config_that_init_wrote_runs_the_pipeline(
    root: Path, tmp_path: Path, tones: dict[str, Path]
) -> None:
    """It runs in any folder, without editing."""

    def raysound(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "raysound.cli", *words],
            cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
            env={**os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": str(root)},
        )  # fmt: skip

    written = raysound("init", str(tones["real"].parent), "tones.yaml")
    assert written.returncode == 0, written.stderr
    _, *command = written.stdout.splitlines()[-1].split()
    done = raysound(*command, "training.epochs=2", "compute.use_gpu=false")

    assert done.returncode == 0, done.stderr
    report = tmp_path / "runs/tones/evaluation/report.html"
    assert done.stdout.splitlines()[-1] == f"report: {report}"
    metrics = json.loads(report.with_name("metrics.json").read_text())
    assert {"real", "good", "bad"} <= {*metrics["corpora"]}


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_demo_ranks_the_good_generator_first(root: Path, tmp_path: Path) -> None:
    """Runs configs/demo.yaml with another output folder."""
    made = tmp_path / "made"
    places = [
        f"output={tmp_path / 'out'}",
        f"synthesis.formula.output={made}",
        f"corpora.real.path={made / 'real'}",
        *(f"corpora.generated.{name}={made / name}" for name in ("faithful", "noisy", "confused")),
    ]

    done = run(root, "pipeline", "configs/demo.yaml", *places, timeout=800)

    assert done.returncode == 0, done.stderr
    assert done.stderr.count("\nepoch ") == 28
    assert "\nfaithful " in done.stderr, "the table"
    report = tmp_path / "out" / "evaluation" / "report.html"
    assert done.stdout.splitlines()[-1] == f"report: {report}"
    assert "<audio" in report.read_text()
    metrics = json.loads(report.with_name("metrics.json").read_text())
    accuracy = {name: corpus["accuracy"] for name, corpus in metrics["corpora"].items()}
    assert accuracy["real"]["value"] >= 0.93
    assert accuracy["faithful"]["low"] > accuracy["noisy"]["high"]
    assert accuracy["faithful"]["low"] > accuracy["confused"]["high"]
    parts = sorted(report.with_name("predictions").glob("*/part-????????.parquet"))
    predictions = [part.read_bytes() for part in parts]
    scored = sum(corpus["clips"] for corpus in metrics["corpora"].values())
    rows = sum(pq.read_metadata(part).num_rows for part in parts)
    assert rows == scored + metrics["reference"]["used"]
    assert [check for check in metrics["sanity"] if check["passed"] is False] == []
    skipped_checks = [check for check in metrics["sanity"] if check["passed"] is None]
    # With too few clips there is no interval, so a random difference can't be excluded.
    assert {check["metric"] for check in skipped_checks} <= {"frechet_distance"}
    assert {check["expected"] for check in skipped_checks} <= {"at most"}
    assert metrics["ranking"]["order"] == ["faithful", "confused", "noisy"]

    again = run(root, "evaluate", "configs/demo.yaml", *places)

    assert again.returncode == 0, again.stderr
    assert json.loads(report.with_name("metrics.json").read_text()) == metrics
    assert [part.read_bytes() for part in parts] == predictions

    numbers = str(report.with_name("metrics.json"))
    compared = run(root, "compare", numbers, numbers)

    assert compared.returncode == 0, compared.stderr
    *lines, note = compared.stdout.splitlines()[1:]
    assert len(lines) > 30
    others = [line for line in lines if not line.endswith("no significant difference")]
    assert {line.split()[1] for line in others} == {"frechet_distance"}
    assert all("clips: 128 dimensions need 512 for an interval" in line for line in others)
    assert "Holm's method for the" in note


@pytest.mark.slow
@pytest.mark.esc10
@pytest.mark.timeout(900)
def test_the_full_pipeline_runs_on_real_sounds(root: Path, esc10: Path, tmp_path: Path) -> None:
    """Uses all 400 clips of ESC-10, with fewer frames and epochs than configs/esc10.yaml."""
    wavs = tmp_path / "esc10"
    subprocess.run(
        [sys.executable, esc10 / "to_wav.py", wavs], check=True, timeout=120, capture_output=True
    )

    done = run(
        root, "pipeline", "configs/esc10.yaml", f"output={tmp_path / 'out'}",
        f"corpora.real.path={wavs}", f"corpora.generated.griffin_lim={tmp_path / 'gl'}",
        f"synthesis.griffin_lim.output={tmp_path / 'gl'}", "synthesis.griffin_lim.iterations=8",
        "features.hop_length=2205", "features.n_fft=4096", "model.name=cnn", "training.epochs=10",
        "training.ema_decay=null", "training.augment.mixup=0",
        timeout=800,
    )  # fmt: skip

    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "out" / "evaluation" / "metrics.json").read_text())
    real, generated = metrics["corpora"]["real"], metrics["corpora"]["griffin_lim"]
    assert (real["found"], real["rejected"], real["clips"]) == (400, 0, 80)
    assert (generated["found"], generated["clips"]) == (80, 80)
    assert all(row["clips"] == 8 for row in real["per_class"].values())
    assert real["accuracy"]["low"] > 0.3, "ten classes: chance is 0.1"
    assert "real: clip lengths: 10 % ≤ 5.0" in done.stderr
