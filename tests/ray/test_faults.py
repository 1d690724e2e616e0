"""Processes die: of a clip, of the user's impatience, with their machine. No clip may be lost."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
import yaml

from raysound.corpora.manifest_parts import read_index
from raysound.features import parquet
from tests.processes import poll
from tests.traps.sitecustomize import trapped

CLIPS, SHARD_CLIPS, KILLS = 1500, 32, 10
TARGETS = ("driver", "worker", "node")
# The job with less patience: a decoder that hangs is ended after so many seconds.
IMPATIENT = (
    "import sys\n"
    "from raysound.distributed.extraction import pipeline as extraction_pipeline\n"
    "from raysound.job import run_job\n"
    "extraction_pipeline.TIMEOUT = 5.0\n"
    "run_job('raysound.distributed.extraction.extract:extract', '')\n"
)


@pytest.fixture(scope="module", autouse=True)
def cluster() -> None:
    """In place of the cluster of this folder: what is killed here is started here."""


def write_config(folder: Path, clips: Path, shard_clips: int, **settings: Any) -> Path:
    tree = {
        "name": "faults",
        "output": str(folder / "out"),
        "corpora": {"real": {"path": str(clips)}},
        "features": settings,
        "compute": {"shard_clips": shard_clips, "num_cpus": 2},
    }
    path = folder / "faults.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def feature_folder(config: Path) -> Path:
    (folder,) = filter(Path.is_dir, (config.parent / "out" / "features").iterdir())
    return folder


def clips_written(folder: Path) -> Counter[str]:
    """How often each clip stands in the shards."""
    return Counter(
        clip_id
        for uri in parquet.shard_uris(str(folder))
        for clip_id in pq.read_table(uri, columns=["clip_id"])["clip_id"].to_pylist()
    )


def rejects_of(folder: Path) -> dict[str, str]:
    rows = pq.read_table(folder / "rejects.parquet").to_pylist()
    return {row["clip_id"]: row["reason"] for row in rows}


def left_behind(folder: Path) -> list[str]:
    """What only a run that goes on may leave there: all but a manifest, shards and sums."""
    index = read_index(str(folder))
    assert index is not None
    known = {folder / "manifest" / "_index.json", *(folder / name for name, _ in index.parts)}
    return [
        path.name
        for path in folder.rglob("*")
        if path.is_file() and (path.suffix == ".tmp" or path.parent != folder) and path not in known
    ]


@pytest.fixture
def wavs(tmp_path: Path) -> dict[str, Path]:
    """Twelve clips of two classes, which make three shards."""
    wavs = {}
    for index in range(12):
        name = f"{('cat', 'dog')[index % 2]}/{index}.wav"
        wav = wavs[name] = tmp_path / "clips" / name
        wav.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(wav, 0.1 * np.random.default_rng(index).standard_normal(2000), 8000)
    return wavs


def extract_with_traps(root: Path, tmp_path: Path, *job: str) -> subprocess.CompletedProcess[str]:
    """Runs the job where tests/traps strike: in Ray's workers and in their children."""
    config = write_config(
        tmp_path, tmp_path / "clips", 4,
        clip_length=0.25, sample_rate=8000, hop_length=80, n_fft=256, n_mels=20, f_max=4000,
    )  # fmt: skip
    return subprocess.run(
        [sys.executable, *job, str(config)],
        cwd=root, capture_output=True, text=True, timeout=280, check=False,
        env={
            **os.environ,
            "RAY_AUTH_MODE": "token",
            "PYTHONPATH": os.pathsep.join([str(root / "tests" / "traps"), str(root)]),
        },
    )  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_clips_that_crash_the_process_are_rejected(
    root: Path, tmp_path: Path, wavs: dict[str, Path]
) -> None:
    """Two such clips are in one shard."""
    names = [*wavs]
    deadly = [names[1], names[3]]
    for name in deadly:
        wavs[name].write_bytes(trapped(wavs[name].read_bytes(), "SIGSEGV"))

    done = extract_with_traps(root, tmp_path, "jobs/extract.py")

    assert done.returncode == 0, done.stderr
    folder = feature_folder(tmp_path / "faults.yaml")
    assert rejects_of(folder) == dict.fromkeys(deadly, "decoding it killed the process (SIGSEGV)")
    assert clips_written(folder) == {name: 1 for name in wavs if name not in deadly}
    assert left_behind(folder) == []
    assert "2 × decoding it killed the process (SIGSEGV)" in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_only_the_clip_that_hangs_the_decoder_is_rejected(
    root: Path, tmp_path: Path, wavs: dict[str, Path]
) -> None:
    hanging = [*wavs][7]
    wavs[hanging].write_bytes(trapped(wavs[hanging].read_bytes(), "hang"))

    done = extract_with_traps(root, tmp_path, "-c", IMPATIENT)

    assert done.returncode == 0, done.stderr
    folder = feature_folder(tmp_path / "faults.yaml")
    assert rejects_of(folder) == {hanging: "decoding it took longer than 5 s"}
    assert clips_written(folder) == {name: 1 for name in wavs if name != hanging}
    assert left_behind(folder) == []


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_process_that_dies_repeatedly_in_a_shard_is_a_user_error(
    root: Path, tmp_path: Path, wavs: dict[str, Path]
) -> None:
    """No clip is rejected, because none of them alone crashes the process."""
    unlucky = next(iter(wavs))
    sound = wavs[unlucky].read_bytes()
    wavs[unlucky].write_bytes(trapped(sound, "shard"))

    done = extract_with_traps(root, tmp_path, "jobs/extract.py")

    assert done.returncode == 2, done.stderr
    # Ray tells of its dead workers there.
    assert "raysound" not in done.stdout
    assert "Traceback" not in done.stderr
    assert "died 4 times, though none of its clips alone crashes it" in done.stderr.splitlines()[-1]
    folder = feature_folder(tmp_path / "faults.yaml")
    assert not (folder / "summary.json").exists()
    wavs[unlucky].write_bytes(sound)
    done = extract_with_traps(root, tmp_path, "jobs/extract.py")
    assert done.returncode == 0, done.stderr
    assert clips_written(folder) == dict.fromkeys(wavs, 1)
    assert rejects_of(folder) == {}
    assert left_behind(folder) == []


class ThreeNodes:
    """tests/ray/three_nodes.py as a process, with Ray's files and token of its own."""

    def __init__(self) -> None:
        # Short: the names of sockets below it have to fit into 107 bytes.
        self.folder = tempfile.mkdtemp(prefix="rs", dir="/tmp")
        self.environment = {
            **os.environ,
            "RAY_TMPDIR": self.folder,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": "0123456789abcdef" * 4,
            # Dead nodes are noticed after three seconds, not after fifteen.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        self.log = open(Path(self.folder) / "log", "w")  # noqa: SIM115 - as long as the process
        self.process = subprocess.Popen(
            [sys.executable, Path(__file__).with_name("three_nodes.py")],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log, text=True,
            env=self.environment,
        )  # fmt: skip
        self.listen()

    def listen(self) -> None:
        """Takes a line of news."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, Path(self.log.name).read_text()
        news = json.loads(line)
        self.address, self.raylets = news["address"], news["raylets"]

    def replace(self, raylet: int) -> None:
        """Kills a node and adds another."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{raylet}\n")
        self.process.stdin.flush()
        self.listen()

    def task_processes(self) -> dict[int, int]:
        """Process ids of the workers that are making a shard now, each with its raylet's."""
        table = subprocess.run(
            ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
        ).stdout
        rows = [line.split(None, 2) for line in table.splitlines()]
        return {
            int(row[0]): int(row[1])
            for row in rows
            if int(row[1]) in self.raylets
            and row[2:]
            and row[2].startswith("ray::")
            and "Window" in row[2]
        }

    def end(self) -> None:
        """Ends all of it."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(60)
        finally:
            self.process.kill()
            self.log.close()
            shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def nodes() -> Iterator[ThreeNodes]:
    """A cluster of three nodes; Ray can't know it by itself."""
    nodes = ThreeNodes()
    yield nodes
    nodes.end()


@pytest.fixture
def many_clips(tmp_path: Path) -> Path:
    """Links to a few sounds: it is their number that counts."""
    folder = tmp_path / "clips"
    (folder / "dog").mkdir(parents=True)
    (folder / "cat").mkdir()
    for index in range(CLIPS):
        sound = tmp_path / f"{index % 10}.wav"
        if not sound.exists():
            noise = 0.1 * np.random.default_rng(index).standard_normal(24000)
            soundfile.write(sound, noise, 8000)
        os.link(sound, folder / ("cat" if index % 2 else "dog") / f"{index}.wav")
    return folder


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_ten_kills_lose_no_clip_and_no_finished_shard(
    root: Path, tmp_path: Path, nodes: ThreeNodes, many_clips: Path
) -> None:
    """Driver, worker and node are killed in turn, at random times of a fixed seed."""
    config = write_config(
        tmp_path, many_clips, SHARD_CLIPS, clip_length=3.0, n_fft=8192, hop_length=220, n_mels=40
    )
    rng = random.Random(0)
    shards = -(-CLIPS // SHARD_CLIPS)
    moments = sorted(rng.sample(range(1, shards - 4), KILLS))
    out, log = tmp_path / "out", tmp_path / "job.log"
    finished: dict[Path, int] = {}

    def start_job() -> subprocess.Popen[bytes]:
        with log.open("a") as file:
            return subprocess.Popen(
                [sys.executable, "jobs/extract.py", str(config)],
                cwd=root, stdout=file, stderr=file,
                env={**nodes.environment, "RAY_ADDRESS": nodes.address},
            )  # fmt: skip

    def shards_there() -> dict[Path, int]:
        """When each was written, in ns."""
        return {part: part.stat().st_mtime_ns for part in out.glob("features/*/part-*.parquet")}

    def targets(job: subprocess.Popen[bytes], wanted: int, target: str) -> list[int]:
        """Process ids of what may be killed, once so many shards are there and more are made."""
        assert job.poll() is None, log.read_text()
        if len(shards_there()) < wanted:
            return []
        tasks = nodes.task_processes()
        if target == "node":
            # A driver dies with its node; it had its turn.
            return sorted({*tasks.values()} & {*nodes.raylets[1:]})
        return [job.pid] if target == "driver" and tasks else sorted(tasks)

    job = start_job()
    try:
        for number, moment in enumerate(moments):
            # One more shard at least than at the last kill: the run is on its feet again.
            target = TARGETS[number % len(TARGETS)]
            wanted = max(moment, len(finished) + 1)
            process = rng.choice(poll(partial(targets, job, wanted, target), 300, "shards"))
            finished = shards_there()
            if target == "node":
                nodes.replace(process)
            else:
                os.kill(process, signal.SIGKILL)
            if target == "driver":
                job.wait(10)
                job = start_job()
            now = shards_there()
            assert {part: now[part] for part in finished} == finished
        assert job.wait(120) == 0, log.read_text()
    finally:
        job.kill()
        job.wait(10)

    now = shards_there()
    assert {part: now[part] for part in finished} == finished
    assert len(now) == shards
    folder = feature_folder(config)
    names = [str(wav.relative_to(many_clips)) for wav in many_clips.rglob("*.wav")]
    assert clips_written(folder) == dict.fromkeys(names, 1)
    assert rejects_of(folder) == {}
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["found"], summary["written"], summary["rejected"]) == (CLIPS, CLIPS, 0)
    assert (summary["windows"], summary["shards"]) == (CLIPS, shards)
    assert left_behind(folder) == []
