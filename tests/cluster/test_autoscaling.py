"""A cluster that begins with a head alone and grows by itself, as on a cloud."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster.machines import Machines
from tests.cluster.test_cluster import ended

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]


@pytest.fixture(scope="module")
def machines(root: Path) -> Iterator[Machines]:
    """Up to two nodes for anything, and two with a label."""
    kind: dict[str, Any] = {"resources": {"CPU": 1}, "node_config": {}, "max_workers": 2}
    types = {"cpu": {**kind, "max_workers": 1}, "train": {**kind, "labels": {"pool": "train"}}}
    machines = Machines(root, {}, types)
    yield machines
    machines.end()


@pytest.fixture
def config(root: Path, tone_config: dict[str, Any]) -> Iterator[str]:
    """The tones, in the folder that is submitted."""
    tone_config["compute"] = {"shard_clips": 16}
    tone_config["training"] = {"epochs": 2, "batch_size": 8}
    path = root / "configs" / "growing-by-a-test.yaml"
    path.write_text(yaml.safe_dump(tone_config))
    yield f"configs/{path.name}"
    path.unlink()


def nodes(machines: Machines) -> list[dict[str, Any]]:
    """The living ones, but for the head."""
    dashboard = f"--address=http://127.0.0.1:{machines.dashboard}"
    alive = ["list", "nodes", dashboard, "--format=json", "--detail", "--filter=state=ALIVE"]
    console = ended(machines.ray(*alive))
    found = json.loads(console[console.index("[") :])
    return [node for node in found if not node["is_head_node"]]


def test_a_job_requests_the_nodes_it_needs(machines: Machines, config: str) -> None:
    """A head without a CPU refuses jobs, or waits for a node, and then for labelled ones."""
    refused = ended(machines.submit("refused", "python", "jobs/extract.py", config))
    assert nodes(machines) == []
    assert (
        "error: the cluster has no CPU: add a worker node, or, if it scales by itself, set how "
        "long to wait, as in compute.node_timeout_minutes=15"
    ) in refused, refused

    job = machines.submit(
        "grown", "python", "jobs/extract.py", config, "compute.node_timeout_minutes=2"
    )  # fmt: skip
    console = ended(job)
    assert job.returncode == 0, console
    assert "66 of 66 clips" in console

    job = machines.submit(
        "trained", "python", "jobs/train.py", config, "compute.node_timeout_minutes=2",
        "compute.workers=2", "compute.cpus_per_worker=1", "compute.labels={pool: train}",
        "compute.use_gpu=false",
    )  # fmt: skip
    console = ended(job)
    assert job.returncode == 0, console
    assert len(re.findall(r"^epoch +\d of 2", console, re.MULTILINE)) == 2
    labelled = [node for node in nodes(machines) if node["labels"].get("pool") == "train"]
    assert len(labelled) == 2
    assert {path.name for path in machines.folder.glob("[0-9]")} == {"1", "2", "3"}


def test_nodes_that_do_not_come_are_a_user_error(machines: Machines, config: str) -> None:
    """No node of this cluster has a GPU."""
    job = machines.submit(
        "never", "python", "jobs/pipeline.py", config,
        "compute.node_timeout_minutes=0.2", "compute.use_gpu=true",
    )  # fmt: skip
    console = ended(job)

    assert job.returncode == 1
    assert (
        "error: the cluster has not grown to 1 × 1 CPU and 1 GPU within "
        "compute.node_timeout_minutes, 0.2 minutes: `ray status` shows what it tried"
    ) in console, console
    assert "Traceback" not in console
