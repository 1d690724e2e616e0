"""Evaluations as jobs: killed in mid-scoring, and on clusters of several sizes."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from raysound.config import from_tree
from raysound.distributed.extract import extract
from tests.processes import job, poll, poll_until_empty, processes_of_session, said

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
        "compute": {"workers": 1, "shard_clips": 3, "use_gpu": False, "local_cpus": 2},
    }
    extract(from_tree(tree, "test"))
    path = folder / "many.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def evaluated(root: Path, config: Path, *overrides: str) -> bytes:
    """What metrics.json holds once the job is done."""
    with job(root, "evaluate", config, *overrides) as process:
        assert process.wait(150) == 0, said(config)
    return (config.parent / "out/evaluation/metrics.json").read_bytes()


def times(config: Path, corpus: str) -> dict[str, int]:
    """When each part of the predictions of a corpus was written."""
    folder = config.parent / "out/evaluation/predictions" / corpus
    return {path.name: path.stat().st_mtime_ns for path in folder.glob("part-*.parquet")}


def test_the_metrics_are_the_same_bits_for_any_number_of_workers(root: Path, config: Path) -> None:
    found = []
    for cpus in (1, 2, 7):
        shutil.rmtree(config.parent / "out/evaluation", ignore_errors=True)
        found.append(evaluated(root, config, f"compute.local_cpus={cpus}"))

    assert found[0] == found[1] == found[2]
    assert json.loads(found[0])["corpora"]["many"]["clips"] == 3 * CLIPS_OF_A_CLASS


def test_a_job_killed_in_mid_scoring_goes_on_with_the_parts_that_lack(
    root: Path, config: Path
) -> None:
    """Every part that was there keeps its file, and the numbers are those of one whole job."""
    shutil.rmtree(config.parent / "out/evaluation", ignore_errors=True)
    whole = evaluated(root, config)
    shutil.rmtree(config.parent / "out/evaluation")
    parts = CLIPS_OF_A_CLASS

    with job(root, "evaluate", config) as killed:

        def begun() -> bool:
            assert killed.poll() is None, said(config)
            return len(times(config, "many")) >= 3

        poll(begun, 120, "three parts")
        killed.kill()
        killed.wait(10)
    # Its workers end the part they are at, at most; Ray's agents may stay a while longer.
    poll_until_empty(
        lambda: {title for title in processes_of_session(killed.pid).values() if title.startswith("ray::Map")}
    )
    left = times(config, "many")
    assert 3 <= len(left) < parts, "killed too late to test anything"

    again = evaluated(root, config)

    now = times(config, "many")
    assert len(now) == parts
    assert {name: now[name] for name in left} == left
    assert again == whole
    assert f"{parts - len(left)} parts scored" in said(config)
    assert not list((config.parent / "out").rglob("*.tmp"))
