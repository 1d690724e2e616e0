"""The files that start clusters: right by the schemas of those who read them, and closed."""

import copy
import json
import re
import shlex
import zipfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.util import prepare_config, validate_config

from raysound.settings.loading import load

LAUNCHED = ["cluster.yaml", "cluster-own-machines.yaml"]
# The parts of a walk that ask a cluster to grow, by GPUs too.
GROWS = ["compute.node_timeout_minutes=15", "compute.use_gpu=true"]
# Of an upload; 512 MiB are Ray's own limit.
MOST_BYTES = 2 << 20


@pytest.fixture
def manifest(root: Path) -> dict[str, Any]:
    """The RayJob."""
    tree: dict[str, Any] = yaml.safe_load((root / "cluster-kuberay.yaml").read_text())
    return tree


@pytest.fixture
def rayjob(root: Path) -> jsonschema.Draft202012Validator:
    """KubeRay's schema."""
    schema = json.loads((root / "tests" / "kuberay-rayjob-v1.schema.json").read_text())
    return jsonschema.Draft202012Validator(schema)


def tree_of(root: Path, name: str) -> dict[str, Any]:
    tree: dict[str, Any] = yaml.safe_load((root / name).read_text())
    return tree


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_takes_the_file(root: Path, name: str) -> None:
    validate_config(prepare_config(tree_of(root, name)))


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_launcher_refuses_a_misspelt_key(root: Path, name: str) -> None:
    with pytest.raises(Exception, match="idle_timeout_minute"):
        validate_config(prepare_config({**tree_of(root, name), "idle_timeout_minute": 5}))


@pytest.mark.parametrize("name", LAUNCHED)
def test_every_node_starts_closed(root: Path, name: str) -> None:
    """The token on, the dashboard on loopback, a head that leaves work to others."""
    tree = tree_of(root, name)
    (head,) = (line for line in tree["head_start_ray_commands"] if "ray start" in line)
    (worker,) = (line for line in tree["worker_start_ray_commands"] if "ray start" in line)
    for command in (head, worker):
        assert "RAY_AUTH_MODE=token" in command
        assert "chmod 600 ~/.ray/auth_token" in command
    assert "--dashboard-host=127.0.0.1" in head
    assert "--num-cpus=0" in head
    assert tree["file_mounts"] == {"/home/ray/.ray/auth_token": "~/.ray/auth_token"}
    assert "0.0.0.0" not in (root / name).read_text()


@pytest.mark.parametrize("name", LAUNCHED)
def test_the_token_is_made_before_the_machines(root: Path, name: str) -> None:
    """The launcher copies it, and jobs are submitted with it."""
    text = (root / name).read_text()
    page = (root / "docs" / "cluster.md").read_text().partition("## Ray's launcher")[2]
    for walk in (text, page):
        made = walk.index("get-auth-token --generate")
        assert made < walk.index("export RAY_AUTH_MODE=token") < walk.index("ray up cluster")


def test_nodes_have_a_system_that_the_image_runs_on(root: Path) -> None:
    """Ray's own AMI has too old a driver for torch, and Docker may not be ssh's user's to call."""
    tree = tree_of(root, "cluster.yaml")
    for kind in tree["available_node_types"].values():
        assert kind["node_config"]["ImageId"].startswith("ami-")
        (disk,) = kind["node_config"]["BlockDeviceMappings"]
        assert disk["Ebs"]["VolumeSize"] == 256
    assert prepare_config(tree)["initialization_commands"] == [
        "sudo usermod -aG docker $USER",
        "sleep 12",
    ]


def test_the_head_can_log_in_on_machines_one_owns(root: Path) -> None:
    """On AWS the launcher makes a key; here it hands the head the one that is named."""
    auth = tree_of(root, "cluster-own-machines.yaml")["auth"]
    assert auth["ssh_private_key"] == "~/.ssh/id_ed25519"


def test_nodes_come_and_go_with_the_work(root: Path) -> None:
    types = tree_of(root, "cluster.yaml")["available_node_types"]
    assert types["head"]["resources"] == {"CPU": 0}
    for name in ("cpu", "gpu"):
        assert types[name]["min_workers"] == 0
        assert types[name]["labels"] == {"pool": name}
        assert types[name]["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"}
    assert types["gpu"]["resources"]["GPU"] == 1
    assert "GPU" not in types["cpu"]["resources"]


def test_kuberay_takes_the_manifest(
    manifest: dict[str, Any], rayjob: jsonschema.Draft202012Validator
) -> None:
    rayjob.validate(manifest)


@pytest.mark.parametrize(
    ("where", "key"),
    [
        (["spec"], "shutdownAfterJobFinish"),
        (["spec", "rayClusterSpec"], "authOption"),
        (["spec", "rayClusterSpec", "workerGroupSpecs", 0], "minReplica"),
        (["spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0], "envs"),
    ],
)
def test_a_misspelt_key_of_the_manifest_is_found(
    manifest: dict[str, Any], rayjob: jsonschema.Draft202012Validator, where: list[Any], key: str
) -> None:
    wrong = inner = copy.deepcopy(manifest)
    for step in where:
        inner = inner[step]
    inner[key] = {}
    with pytest.raises(jsonschema.ValidationError, match=key):
        rayjob.validate(wrong)


def test_the_manifest_has_the_same_roles(manifest: dict[str, Any]) -> None:
    cluster = manifest["spec"]["rayClusterSpec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert {group["groupName"]: group["minReplicas"] for group in cluster["workerGroupSpecs"]} == {
        "cpu": 0, "gpu": 0,
    }  # fmt: skip


def test_the_manifests_command_is_one_that_the_job_takes(
    root: Path, manifest: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    python, job, config, *overrides = shlex.split(manifest["spec"]["entrypoint"])
    monkeypatch.chdir(root)
    assert (python, Path(job).exists()) == ("python", True)
    assert load(config, overrides).output.startswith("s3://")


def test_walks_on_clusters_that_grow_ask_for_gpus(root: Path, manifest: dict[str, Any]) -> None:
    """`auto` takes GPUs that are there, and there are none at first."""
    header = (root / "cluster.yaml").read_text()
    page = (root / "docs" / "cluster.md").read_text()
    (by_header,) = re.findall(r"^#       (output=\S+ .*)$", header, re.MULTILINE)
    (by_page,) = re.findall(r"^    ray job submit --address .*$", page, re.MULTILINE)
    for command in (by_header, by_page, manifest["spec"]["entrypoint"]):
        assert command.split()[-2:] == GROWS
    assert load(str(root / "configs" / "esc10.yaml"), GROWS).compute.use_gpu is True


def test_the_image_gets_gpus_a_compiler_and_the_token(root: Path) -> None:
    text = (root / "Dockerfile").read_text()
    environment = dict(
        setting.split("=")
        for line in re.findall(r"^ENV (.+)$", text, re.MULTILINE)
        for setting in line.split()
    )
    assert environment == {
        "NVIDIA_VISIBLE_DEVICES": "all",
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "RAY_AUTH_MODE": "token",
    }
    assert re.search(r"^RUN .*apt-get install .*\bg\+\+ ", text, re.MULTILINE)


def test_pods_see_the_gpus_they_asked_for(manifest: dict[str, Any]) -> None:
    """The image asks for all; a pod that asks for none takes that back."""
    cluster = manifest["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        none = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in container.get("env", [])
        assert none != ("nvidia.com/gpu" in container["resources"]["limits"])


def test_one_version_of_ray_stands_everywhere(root: Path, manifest: dict[str, Any]) -> None:
    """constraints.txt, the image, the manifest, and what is installed here."""
    (pinned,) = re.findall(r"^ray==(\S+)$", (root / "constraints.txt").read_text(), re.MULTILINE)
    (base,) = re.findall(r"^FROM (\S+)$", (root / "Dockerfile").read_text(), re.MULTILINE)
    assert base == f"rayproject/ray:{pinned}-py311-cpu"
    assert manifest["spec"]["rayClusterSpec"]["rayVersion"] == pinned == version("ray")


def test_one_image_stands_everywhere(root: Path) -> None:
    named = {
        name: set(re.findall(r"registry\.example\.com/\S+", (root / name).read_text()))
        for name in ["Dockerfile", "cluster-kuberay.yaml", *LAUNCHED]
    }
    (project,) = re.findall(r'^version = "(.+)"', (root / "pyproject.toml").read_text(), re.M)
    assert set(map(frozenset, named.values())) == {
        frozenset({f"registry.example.com/raysound:{project}"})
    }


def test_no_file_holds_a_key(root: Path) -> None:
    for name in ["cluster-kuberay.yaml", "Dockerfile", *LAUNCHED]:
        lines = (root / name).read_text().splitlines()
        settings = [line for line in lines if not line.lstrip().startswith("#")]
        assert not re.search(r"AWS_SECRET|AKIA|password", "\n".join(settings))


def test_what_is_submitted_is_small(root: Path, tmp_path: Path) -> None:
    """Jobs, library and configs; no tests, pictures, sounds or environments."""
    package = tmp_path / "package.zip"
    create_package(str(root), package, include_gitignore=True)

    names = zipfile.ZipFile(package).namelist()
    assert package.stat().st_size < MOST_BYTES
    assert {"jobs/extract.py", "raysound/storage.py", "configs/demo.yaml"} <= set(names)
    assert "raysound/report/report.html.jinja" in names
    left = {name.partition("/")[0] for name in names}
    assert not left & {"tests", "docs", "benchmarks", "data", "runs", ".venv", ".git"}
