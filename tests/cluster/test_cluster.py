"""Jobs submitted to a head and two workers on machines of their own, some of which die."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any

import boto3
import pyarrow.parquet as pq
import pytest
import yaml
from moto.server import ThreadedMotoServer

from tests.cluster.machines import US, Machine, Machines, may_make_namespaces
from tests.conftest import RATE, write_tones
from tests.processes import poll, poll_until_empty

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
EPOCHS = 6
CLIPS_PER_CLASS = 120
SHARD_CLIPS = 6
STORE = "s3://submitted"
# Prints the actors and placement groups that a cluster still has, but for Ray's own coordinator: a
# detached actor without resources, one for each cluster.
# Ray's own actors, whose names begin with an underscore, belong to the cluster. Ray's cleaner of an
# interrupted training removes its placement group, but calls exit_actor in a thread, and stays.
ALIVE = (
    "from ray.util.state import list_actors, list_placement_groups\n"
    "for actor in list_actors(detail=True):\n"
    "    own = actor.class_name.startswith('_') or actor.class_name == 'PlacementGroupCleaner'\n"
    "    if actor.state != 'DEAD' and not own:\n"
    "        print('actor', actor.actor_id, actor.class_name, actor.state, actor.name)\n"
    "for group in list_placement_groups():\n"
    "    if group.state != 'REMOVED':\n"
    "        print('placement group', group.placement_group_id, group.name)\n"
)


@pytest.fixture(scope="module")
def object_store() -> Iterator[dict[str, str]]:
    """The environment that leads to an S3 server, which machines reach over their network."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    address = "0.0.0.0" if may_make_namespaces() else "127.0.0.1"
    server = ThreadedMotoServer(address, 0, verbose=False)
    server.start()
    port = server.get_host_and_port()[1]
    keys = {
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": token_hex(),
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{port}",
        region_name="us-east-1",
        aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
    ).create_bucket(Bucket=STORE.removeprefix("s3://"))
    there = US if address == "0.0.0.0" else address
    yield {**keys, "AWS_ENDPOINT_URL": f"http://{there}:{port}"}
    server.stop()


@pytest.fixture(scope="module")
def machines(root: Path, object_store: dict[str, str]) -> Iterator[Machines]:
    """A head and two workers."""
    machines = Machines(root, object_store)
    try:
        machines.add_worker()
        machines.add_worker()
        yield machines
    finally:
        machines.end()


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory, root: Path) -> Iterator[dict[str, Any]]:
    """A config in the folder that is submitted, over a folder that all machines share."""
    folder = tmp_path_factory.mktemp("shared")
    write_tones(folder / "real", CLIPS_PER_CLASS, 0.01, 0)
    write_tones(folder / "good", 10, 0.01, 1)
    write_tones(folder / "bad", 10, 3.0, 2)
    (folder / "bad" / "high" / "broken.wav").write_bytes(b"no sound at all")
    tree = {
        "name": "submitted",
        "output": str(folder / "out"),
        "corpora": {
            "real": {"path": str(folder / "real")},
            "generated": {"good": str(folder / "good"), "bad": str(folder / "bad")},
        },
        # Many frames of long transforms: a shard takes a while.
        "features": {
            "clip_length": 0.5, "sample_rate": RATE, "hop_length": 20, "n_fft": 4096,
            "n_mels": 32, "f_min": 0, "f_max": RATE / 2,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": EPOCHS, "batch_size": 8, "scheduler": {"name": "CosineAnnealingLR"}},
        # A worker on each machine, talking over the network between them.
        "compute": {"workers": 2, "cpus_per_worker": 0.5, "placement": "STRICT_SPREAD",
                    "shard_clips": SHARD_CLIPS},
        # A relative place, of corpora that are made by then: jobs that make none don't mind.
        "synthesis": {"formula": {"output": "data/made"}},
    }  # fmt: skip
    config = root / "configs" / "submitted-by-a-test.yaml"
    config.write_text(yaml.safe_dump(tree))
    yield {"folder": folder, "config": f"configs/{config.name}", "out": folder / "out"}
    config.unlink()


def ended(job: subprocess.Popen[str], seconds: float = 200) -> str:
    """What a submission printed until its end."""
    try:
        console, _ = job.communicate(timeout=seconds)
    finally:
        job.kill()
    return console


def shards_of(out: Path) -> list[Path]:
    """The finished shards of the real corpus."""
    return sorted(out.glob("features/real-*/part-*.parquet"))


def clips_in(shards: list[Path]) -> Counter[str]:
    return Counter(
        clip_id
        for shard in shards
        for clip_id in pq.read_table(shard, columns=["clip_id"])["clip_id"].to_pylist()
    )


def machine_of(machines: Machines, title: str) -> Machine | None:
    """A worker on which a process with such a title runs."""
    for worker in machines.workers.values():
        if any(shown.startswith(title) for shown in worker.processes().values()):
            return worker
    return None


def test_connections_without_the_token_are_refused(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    """Connections without the token, or with another one, fail, and no port is open to all."""
    job = ["job", "submit", "--working-dir", ".", "--", "python", "-c", "print('let in')"]

    without = machines.ray(*job, RAY_AUTH_MODE="disabled")
    wrong = machines.ray(*job, RAY_AUTH_TOKEN="f" * 64, RAY_AUTH_TOKEN_PATH="")

    for stranger in (without, wrong):
        console = ended(stranger)
        assert stranger.returncode != 0
        assert "authentication" in console.lower()
        assert "let in" not in console.replace("print('let in')", "")
    jobs = machines.ray("job", "list")
    assert "let in" not in ended(jobs), "nothing of theirs was taken"
    assert jobs.returncode == 0
    if machines.apart:
        # The dashboard's port, from another machine of the same network.
        outside = f"http://{machines.head.address}:{machines.dashboard}/api/version"
        with pytest.raises(urllib.error.URLError):
            urllib.request.urlopen(outside, timeout=10)


@pytest.mark.parametrize(
    "token",
    [
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "f" * 64, "RAY_AUTH_TOKEN_PATH": ""},
        {"RAY_AUTH_TOKEN_PATH": "/no/token"},
    ],
)
def test_a_job_without_the_token_says_in_one_line_what_to_set(
    machines: Machines, experiment: dict[str, Any], token: dict[str, str]
) -> None:
    done = subprocess.run(
        machines.head.inside(sys.executable, "jobs/extract.py", experiment["config"]),
        cwd=machines.root, capture_output=True, text=True, timeout=100, check=False,
        # Ray would ask twenty times.
        env={
            **machines.environment, "RAY_ADDRESS": machines.gcs, "RAY_NUM_REDIS_GET_RETRIES": "2",
            **token,
        },
    )  # fmt: skip

    assert done.returncode == 2
    assert done.stderr == (
        f"error: RAY_ADDRESS={machines.gcs}: the cluster and this job must agree on a token: set "
        "RAY_AUTH_MODE=token and RAY_AUTH_TOKEN (or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) as "
        "on the cluster, or RAY_AUTH_MODE=disabled where it has none\n"
    )


def test_only_its_owner_can_read_a_token(root: Path, tmp_path: Path) -> None:
    """Runs the command of docs/cluster.md in a temporary home."""
    page = (root / "docs" / "cluster.md").read_text()
    (command,) = {*re.findall(r"^    (mkdir -p ~/\.ray .*)$", page, re.MULTILINE)}
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    home = {**os.environ, "HOME": str(tmp_path), "PATH": path}
    home.pop("RAY_AUTH_TOKEN_PATH", None)

    subprocess.run(["sh", "-c", command], env=home, check=True, timeout=60, capture_output=True)

    token = tmp_path / ".ray" / "auth_token"
    assert len(token.read_text()) >= 32
    assert token.stat().st_mode & 0o077 == 0


def test_extraction_survives_the_loss_of_a_machine(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    """The job is stopped and submitted again; then one of two workers dies."""
    out = experiment["out"]
    command = ["python", "jobs/extract.py", experiment["config"]]

    first = machines.submit("extract-1", *command)
    poll(lambda: len(shards_of(out)) >= 4, 100, "shards")
    stop = machines.ray("job", "stop", "extract-1")
    console = ended(first)
    ended(stop)
    assert stop.returncode == 0
    assert "stopped; the same command continues" in console, console
    assert "Traceback" not in console
    log_text = ended(machines.ray("job", "logs", "--follow", "extract-1"))
    assert "stopped; the same command continues" in log_text
    assert "Job 'extract-1' was stopped" in ended(machines.ray("job", "status", "extract-1"))
    before = {shard: shard.stat().st_mtime_ns for shard in shards_of(out)}
    assert 4 <= len(before) < 3 * CLIPS_PER_CLASS // SHARD_CLIPS, "it had not come to its end"

    second = machines.submit("extract-2", *command)
    poll(lambda: len(shards_of(out)) >= len(before) + 3, 150, "more shards")
    victim = poll(partial(machine_of, machines, "ray::ReadWindow"), 60, "a shard being extracted")
    machines.kill(victim)
    machines.add_worker(pool="new")
    console = ended(second)

    assert second.returncode == 0, console
    assert f"features: {out}/features" in console
    shards = shards_of(out)
    assert {shard: shard.stat().st_mtime_ns for shard in before} == before, "made once"
    assert len(shards) == 3 * CLIPS_PER_CLASS // SHARD_CLIPS
    clips = clips_in(shards)
    assert len(clips) == 3 * CLIPS_PER_CLASS
    assert set(clips.values()) == {1}
    summary = json.loads((shards[0].parent / "summary.json").read_text())
    assert (summary["found"], summary["rejected"]) == (3 * CLIPS_PER_CLASS, 0)


def test_prometheus_metrics_and_logs_are_available(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    """Reads the head's metrics while a job runs, and the logs of its tasks."""
    page = f"http://{machines.head.address}:{machines.metrics}/metrics"
    out = experiment["folder"] / "seen"
    command = ["python", "jobs/extract.py", experiment["config"], f"output={out}"]

    def read() -> dict[str, float]:
        with urllib.request.urlopen(page, timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = (re.match(r'ray_raysound_(\w+)\{.*corpus="real".*\} (\S+)', line) for line in lines)
        return {match[1]: float(match[2]) for match in found if match}

    job = machines.submit("seen", *command)
    seen = poll(lambda: (now := read()).get("clips_total", 0) > 0 and now, 100, "clips counted")
    console = ended(job)

    assert job.returncode == 0, console
    assert 0 < seen["clips_total"] <= 3 * CLIPS_PER_CLASS
    assert seen["audio_hours_total"] == pytest.approx(seen["clips_total"] * 0.5 / 3600)
    logs = [path.read_text() for path in machines.folder.rglob("logs/worker-*.err")]
    log_text = r"WARNING job \w+ .*/bad-\w+/part-\d+\.parquet: high/broken\.wav rejected: "
    assert any(re.search(log_text, text) for text in logs)


def test_training_survives_the_loss_of_a_machine(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    """One of two machines dies during training, and another replaces it."""
    out = experiment["out"]

    def epochs() -> int:
        found = [*out.glob("training/*/history.jsonl")]
        return len(found[0].read_text().splitlines()) if found else 0

    assert len(machines.workers) == 2
    job = machines.submit("train", "python", "jobs/train.py", experiment["config"])
    poll(lambda: epochs() >= 2, 150, "two epochs")
    trained_on = [
        worker
        for worker in machines.workers.values()
        if any(title.startswith("ray::RayTrainWorker") for title in worker.processes().values())
    ]
    at_death = epochs()
    machines.kill(trained_on[0])
    machines.add_worker()
    console = ended(job)

    assert len(trained_on) == 2
    assert at_death < EPOCHS
    assert job.returncode == 0, console
    assert re.findall(r"^epoch +(\d+) of", console, re.MULTILINE) == [
        str(epoch) for epoch in range(1, EPOCHS + 1)
    ], console
    (note,) = out.glob("training/*/checkpoint.json")
    assert f"checkpoint: {note.parent}" in console
    assert epochs() == EPOCHS


def alive(machines: Machines) -> set[str]:
    """The cluster's actors and placement groups, a line each."""
    asked = subprocess.run(
        machines.head.inside(sys.executable, "-c", ALIVE),
        capture_output=True, text=True, timeout=60, check=True,
        env={**machines.environment, "RAY_ADDRESS": machines.gcs},
    )  # fmt: skip
    return {*asked.stdout.splitlines()}


def test_an_interrupted_job_leaves_nothing_on_the_cluster(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    """After Ctrl-C in a driver that was not submitted, no actor or placement group remains."""
    out = experiment["out"]
    before = {*out.glob("training/*/history.jsonl")}
    others = alive(machines)
    with (machines.folder / "driver.log").open("w") as log:
        driver = subprocess.Popen(
            machines.head.inside(
                sys.executable, "jobs/train.py", experiment["config"], "training.seed=1"
            ),
            cwd=machines.root, stdout=log, stderr=log,
            env={**machines.environment, "RAY_ADDRESS": machines.gcs},
        )  # fmt: skip
    console = Path(log.name).read_text
    try:
        poll(lambda: {*out.glob("training/*/history.jsonl")} - before, 100, "an epoch")
        driver.send_signal(signal.SIGINT)
        assert driver.wait(30) == 130, console()
    finally:
        driver.kill()
        driver.wait(10)

    assert console().splitlines()[-1] == "interrupted; the same command continues"
    assert "Traceback" not in console()

    poll_until_empty(lambda: alive(machines) - others)
    for machine in (machines.head, *machines.workers.values()):
        titles = machine.processes().values()
        # Ray keeps its list of trainings, and the dashboard has a process TrainHead.
        assert not [title for title in titles if re.match("ray::(?!TrainStateActor).*Train", title)]


def test_the_report_can_be_read(machines: Machines, experiment: dict[str, Any]) -> None:
    out = experiment["out"]

    job = machines.submit("evaluate", "python", "jobs/evaluate.py", experiment["config"])
    console = ended(job)

    assert job.returncode == 0, console
    assert f"report: {out}/evaluation/report.html" in console
    metrics = json.loads((out / "evaluation" / "metrics.json").read_text())
    accuracy = {name: corpus["accuracy"]["value"] for name, corpus in metrics["corpora"].items()}
    assert accuracy["real"] > 0.8
    assert accuracy["good"] > accuracy["bad"]
    assert metrics["corpora"]["bad"]["rejected"] == 1
    assert "<audio" in (out / "evaluation" / "report.html").read_text()


def test_a_user_error_fails_the_submission(machines: Machines, experiment: dict[str, Any]) -> None:
    """There is one line, and the exit codes of job and submission are set."""
    config = experiment["config"]

    typo = machines.submit("typo", "python", "jobs/extract.py", config, "features.n_mel=64")
    inside = machines.submit("inside", "python", "jobs/extract.py", config, "output=runs/here")
    # Where corpora would be made matters to whoever makes them, and to nobody else.
    made = machines.submit(
        "made", "python", "jobs/synthesize.py", "configs/demo.yaml",
        *(f"{key}={experiment['folder']}/{key}" for key in ("output", "corpora.real.path")),
        "corpora.generated={}",
    )  # fmt: skip
    console, kept, deleted = ended(typo), ended(inside), ended(made)

    for job in (typo, inside, made):
        assert job.returncode == 1
    assert "error: synthesis.formula.output is in the folder that was uploaded" in deleted
    assert "unknown key 'features.n_mel'; did you mean 'features.n_mels'?" in console
    assert "driver_exit_code=2" in ended(machines.ray("job", "list"))
    assert (
        "error: output is in the folder that was uploaded with this job, which Ray deletes when "
        "the job ends: set a path that all nodes share, or a URI such as output=s3://bucket/here"
    ) in kept
    assert "Traceback" not in console + kept


def test_an_output_folder_that_is_not_shared_is_refused(
    machines: Machines, experiment: dict[str, Any]
) -> None:
    if not machines.apart:
        pytest.skip("machines without namespaces of their own share all folders")
    alone = machines.folder / "apart" / "out"
    command = ["python", "jobs/extract.py", experiment["config"], f"output={alone}"]

    job = machines.submit("alone", *command)
    console = ended(job)

    assert job.returncode == 1
    assert (
        f"error: {alone} is not the same folder on every node of the cluster (10.77.0." in console
    )


def test_labels_select_the_machine(machines: Machines, experiment: dict[str, Any]) -> None:
    """For an unknown label, the error lists the labels of all nodes."""
    command = ["python", "jobs/train.py", experiment["config"], "compute.labels={pool: elsewhere}"]

    job = machines.submit("labels", *command, "training.epochs=1")
    console = ended(job)

    assert job.returncode == 1
    assert (
        "error: no node has the labels of compute.labels, pool: elsewhere; nodes have pool: new"
    ) in console, console


def test_jobs_run_from_store_to_store(
    machines: Machines, experiment: dict[str, Any], object_store: dict[str, str]
) -> None:
    """Input and output are on an S3 server; no access key is in files or logs."""
    shared, secret = experiment["folder"], object_store["AWS_SECRET_ACCESS_KEY"]
    client = boto3.client(
        "s3",
        endpoint_url=re.sub(r"//[^:]+", "//127.0.0.1", object_store["AWS_ENDPOINT_URL"]),
        region_name="us-east-1",
        aws_access_key_id=object_store["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=secret,
    )
    for corpus in ("real", "good", "bad"):
        # A sixth of the real clips is enough here.
        for wav in sorted((shared / corpus).rglob("*[05].wav")):
            client.upload_file(str(wav), "submitted", wav.relative_to(shared).as_posix())

    job = machines.submit(
        "store", "python", "jobs/pipeline.py", experiment["config"],
        f"output={STORE}/out", f"corpora.real.path={STORE}/real",
        f"corpora.generated.good={STORE}/good", f"corpora.generated.bad={STORE}/bad",
        "features.hop_length=160", "synthesis.formula=null",
    )  # fmt: skip
    console = ended(job, 300)

    assert job.returncode == 0, console
    assert f"report: {STORE}/out/evaluation/report.html" in console
    found = client.list_objects_v2(Bucket=STORE.removeprefix("s3://"), Prefix="out/")["Contents"]
    read = {
        entry["Key"]: client.get_object(Bucket=STORE.removeprefix("s3://"), Key=entry["Key"])[
            "Body"
        ].read()
        for entry in found
    }
    metrics = json.loads(read["out/evaluation/metrics.json"])
    assert metrics["corpora"]["real"]["found"] == 3 * CLIPS_PER_CLASS // 5
    for text in (console.encode(), *read.values()):
        assert secret.encode() not in text
    logs = [path for path in machines.folder.rglob("*") if path.is_file()]
    assert logs
    log_text = [path for path in logs if secret.encode() in path.read_bytes()]
    assert not log_text, "a key in Ray's own files"
