"""Evaluations as jobs: killed in mid-scoring, and on clusters of several sizes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import yaml

from raysound.distributed.cluster.failures import RETRIES
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import finished_features
from raysound.evaluation.predictions import COMPARED, PREDICTIONS, read_predictions
from raysound.settings.loading import from_tree
from tests.processes import console_output, job, poll, poll_until_empty, processes_of_session

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
CLIPS_OF_A_CLASS = 250


@pytest.fixture(scope="module")
def config(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """An evaluation of a corpus of hundreds of shards, extracted but not scored."""
    folder = tmp_path_factory.mktemp("many")
    for label in ("high", "low", "mid"):
        (folder / "many" / label).mkdir(parents=True)
        sounds = sorted((tones["good"] / label).iterdir())
        for number in range(CLIPS_OF_A_CLASS):
            shutil.copy(sounds[number % len(sounds)], folder / "many" / label / f"{number:03d}.wav")
    tree = trained["tree"] | {
        "output": str(folder / "out"),
        "corpora": {
            "real": trained["tree"]["corpora"]["real"],
            "generated": {"many": str(folder / "many")},
        },
        "evaluation": {"checkpoint": trained["run"], "examples": 0, "batch_size": 1},
        "compute": {"workers": 1, "shard_clips": 3, "use_gpu": False, "num_cpus": 2},
    }
    extract(from_tree(tree, "test"))
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


WITH_ACTORS = """
import sys
import ray
from ray.data import DataContext
from raysound.distributed.evaluation.score import score_parts, list_parts
from raysound.evaluation.part_scoring import Identity, classifier_digest
run, predictions, name, folder = sys.argv[1:]
ray.init(num_cpus=2, num_gpus=1, include_dashboard=False)
DataContext.get_current().enable_progress_bars = False
identity = Identity(classifier_digest(run), 64, "")
parts = list_parts({name: folder}, predictions)
rows = list(score_parts(parts, run, identity, ray.put(None), None, gpus=1, device="cpu"))
assert {row["todo"] for row in rows} == {"score"}, rows
print(sum(row["clips"] for row in rows))
"""


def test_actors_write_the_same_predictions_as_fused_tasks(
    root: Path, trained: dict[str, Any], tmp_path: Path
) -> None:
    """Ray gets a GPU resource that this machine may lack; the classifier runs on the CPU."""
    run, folder = trained["run"], finished_features("good", trained["config"])
    command = [sys.executable, "-c", WITH_ACTORS, run, str(tmp_path), "good", folder]
    environment = {**os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "token"}
    environment.pop("RAY_ADDRESS", None)

    done = subprocess.run(
        command, cwd=root, env=environment, timeout=150, capture_output=True, text=True, check=False
    )

    assert done.stdout.splitlines()[-1:] == ["24"], done.stderr
    fused = f"{trained['config'].output}/evaluation/predictions"
    columns = [name for name in PREDICTIONS.names if name not in COMPARED]
    theirs, ours = (
        pa.concat_tables(read_predictions(out, "good", columns)) for out in (str(tmp_path), fused)
    )
    assert theirs.equals(ours)


def evaluated(root: Path, config: Path, *overrides: str) -> bytes:
    """What metrics.json holds once the job is done."""
    with job(root, "evaluate", config, *overrides) as process:
        assert process.wait(150) == 0, console_output(config)
    return (config.parent / "out/evaluation/metrics.json").read_bytes()


def times(config: Path, corpus: str) -> dict[str, int]:
    """When each part of the predictions of a corpus was written."""
    folder = config.parent / "out/evaluation/predictions" / corpus
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def test_metrics_are_bitwise_equal_for_any_number_of_workers(root: Path, config: Path) -> None:
    found = []
    for cpus in (1, 2, 7):
        shutil.rmtree(config.parent / "out/evaluation", ignore_errors=True)
        found.append(evaluated(root, config, f"compute.num_cpus={cpus}"))

    assert found[0] == found[1] == found[2]
    assert json.loads(found[0])["corpora"]["many"]["clips"] == 3 * CLIPS_OF_A_CLASS


def test_a_killed_scoring_job_resumes_with_the_missing_parts(root: Path, config: Path) -> None:
    """Existing parts are not written again, and the metrics equal those of an uninterrupted job."""
    shutil.rmtree(config.parent / "out/evaluation", ignore_errors=True)
    whole = evaluated(root, config)
    shutil.rmtree(config.parent / "out/evaluation")
    parts = CLIPS_OF_A_CLASS

    with job(root, "evaluate", config) as killed:

        def begun() -> bool:
            assert killed.poll() is None, console_output(config)
            return len(times(config, "many")) >= 3

        poll(begun, 120, "three parts")
        killed.kill()
        killed.wait(10)
    # Its workers end the part they are at, at most; Ray's agents may stay a while longer.
    poll_until_empty(
        lambda: [
            title
            for title in processes_of_session(killed.pid).values()
            if title.startswith("ray::Map")
        ]
    )
    left = times(config, "many")
    assert 3 <= len(left) < parts, "killed too late to test anything"

    again = evaluated(root, config)

    now = times(config, "many")
    assert len(now) == parts
    assert {name: now[name] for name in left} == left
    assert again == whole
    assert f"{parts - len(left)} parts scored" in console_output(config)
    assert not list((config.parent / "out").rglob("*.tmp"))


# In every process that finds it in PYTHONPATH: what writes some part is killed, so many times.
DEADLY_PART = """
import os, signal
replace = os.replace
def deadly(source, target, *more, **named):
    marks = {folder!r}
    if str(target).endswith("many/part-00000003.parquet") and len(os.listdir(marks)) < {times}:
        os.mkdir(os.path.join(marks, str(os.getpid())))
        os.kill(os.getpid(), signal.SIGKILL)
    replace(source, target, *more, **named)
os.replace = deadly
"""


@pytest.mark.parametrize(("deaths", "code"), [(1, 0), (99, 2)])
def test_a_process_that_dies_while_scoring_is_retried_a_limited_number_of_times(
    root: Path, config: Path, tmp_path: Path, deaths: int, code: int
) -> None:
    """A single death has no effect; repeated deaths end the job with a user error."""
    shutil.rmtree(config.parent / "out/evaluation", ignore_errors=True)
    (tmp_path / "marks").mkdir()
    trap = DEADLY_PART.format(folder=str(tmp_path / "marks"), times=deaths)
    (tmp_path / "sitecustomize.py").write_text(trap)
    environment = {
        **os.environ, "RAY_AUTH_MODE": "token", "PYTHONPATH": f"{tmp_path}{os.pathsep}{root}",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)

    done = subprocess.run(
        [sys.executable, "jobs/evaluate.py", str(config)],
        cwd=root, env=environment, timeout=200, capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert done.returncode == code, done.stderr
    died = len(list((tmp_path / "marks").iterdir()))
    if code:
        assert died == 1 + RETRIES
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert re.match(r"error: scoring \w+, part \d+ or a later one, failed: its pro", line)
        assert line.endswith("; the same command continues")
        assert "Traceback" not in done.stderr
    else:
        assert died == 1
        assert len(times(config, "many")) == CLIPS_OF_A_CLASS
