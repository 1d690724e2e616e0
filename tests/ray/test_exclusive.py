"""Two jobs do not write to one folder at a time."""

from pathlib import Path
from typing import Any

import pytest

from raysound.distributed.cluster.exclusive import named_actor, sole_writer
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.synthesize import synthesize
from raysound.distributed.training.runs import run_folder
from raysound.distributed.training.train import train
from raysound.errors import UserError
from raysound.features.parquet import folder as feature_folder
from raysound.lock import locked
from raysound.settings.loading import from_tree

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


@pytest.mark.parametrize("job", [extract, train, evaluate, synthesize])
def test_a_folder_that_another_job_writes_to_is_refused(
    job: Any, trained: dict[str, Any], tmp_path: Path
) -> None:
    config = from_tree(
        {**trained["tree"], "synthesis": {"formula": {"output": str(tmp_path)}}}, "test"
    )
    real = feature_folder(config.output, "real", config.features)
    folder = {
        extract: feature_folder(config.output, "bad", config.features),
        train: run_folder(config, real),
        evaluate: f"{config.output}/evaluation",
        synthesize: f"{tmp_path}/real",
    }[job]
    before = {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")}

    # As another process: this one's own lock would let the job pass.
    with locked(folder), pytest.raises(UserError, match=f"another job is at work on {folder} "):
        job(config)

    assert {path: path.stat().st_mtime_ns for path in Path(folder).rglob("*")} == before


def test_a_uri_that_another_job_of_the_cluster_writes_to_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "of a cluster")
    folder = "s3://sounds/run"
    with sole_writer(folder), sole_writer(folder):
        # As another job of the cluster would.
        with pytest.raises(UserError) as refused, named_actor(folder):
            pass
        with named_actor(f"{folder}-2"):
            pass

    assert str(refused.value).startswith(f"another job is at work on {folder} (of this cluster): ")
