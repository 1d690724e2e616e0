"""What an evaluation of many clips takes: seconds of each step, memory of each process.

python benchmarks/evaluation.py --clips 10000 100000 1000000 [--classes 50]

Makes log-mels up: 5,000 training and 2,000 test clips of `real`, the rest in three generated
corpora of growing noise. They are small, (16, 16), so that a cnn scores a million in minutes; its
last layer is set to the nearest class centre. Then a process of its own scores, measures and
writes the page as jobs/evaluate.py does. Prints a markdown table: the peak of the driver's own
memory (RssAnon, without what it shares) and of the largest worker. `taskset -c 0,1` leaves it two
cores.
"""

import argparse
import json
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from memory import run_watched

from raysound import storage
from raysound.features import parquet
from raysound.models import build
from raysound.settings.features import FeatureSettings
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.inference import Normalisation, score

ROOT = Path(__file__).resolve().parents[1]
SETTINGS = FeatureSettings(
    clip_length=0.15, sample_rate=8000, hop_length=80, n_fft=256, n_mels=16, f_max=4000
)
SHAPE = (SETTINGS.n_mels, SETTINGS.n_frames)
SHARD_CLIPS = 256
NOISE = {"real": 0.5, "first": 0.55, "second": 0.8, "third": 1.5}


def patterns(classes: int) -> np.ndarray:
    """A log-mel for each class, `(classes, *SHAPE)`."""
    return np.random.default_rng(0).normal(-5, 1, (classes, *SHAPE)).astype(np.float32)


def write_shard(folder: str, corpus: str, index: int, clips: int, classes: int) -> None:
    """One shard of made-up log-mels."""
    rng = np.random.default_rng([index, *corpus.encode()])
    truth = rng.integers(classes, size=clips)
    noise = NOISE[corpus] * rng.standard_normal((clips, *SHAPE), np.float32)
    rows = pa.table(
        {
            "clip_id": [f"{corpus}/{index:06d}/{n:03d}.wav" for n in range(clips)],
            "window": pa.array([0] * clips, pa.int32()),
            "label": [f"class {label:03d}" for label in truth],
            **dict.fromkeys(("fold", "split", "group"), pa.nulls(clips, pa.string())),
            "duration": [SETTINGS.clip_length] * clips,
            "sample_rate": pa.array([SETTINGS.sample_rate] * clips, pa.int32()),
        }
    )
    with parquet.shard_writer(storage.join(folder, parquet.shard_name(index)), SETTINGS) as shard:
        shard.add(rows, patterns(classes)[truth] + noise)
        digest = f"{corpus}-{index}"
        shard.finish(
            parquet.Shard(
                digest, clips, clips, clips, SETTINGS.clip_length * clips, shard.statistics
            )
        )


def write_corpus(folder: str, corpus: str, clips: int, classes: int) -> None:
    """A finished feature folder, but for its manifest's paths."""
    counts = [min(SHARD_CLIPS, clips - start) for start in range(0, clips, SHARD_CLIPS)]
    # Processes that have loaded no thread of ours.
    with ProcessPoolExecutor(2, get_context("spawn")) as pool:
        calls = [
            pool.submit(write_shard, folder, corpus, index, count, classes)
            for index, count in enumerate(counts)
        ]
        for call in calls:
            call.result()
    storage.write_table(f"{folder}/rejects.parquet", parquet.REJECT_SCHEMA.empty_table())
    summary = {"found": clips, "rejected": 0, "digest": f"{corpus}-{clips}"}
    storage.write_bytes(f"{folder}/summary.json", json.dumps(summary).encode())


def write_classifier(run: str, classes: int) -> None:
    """A cnn that was not trained, but tells the classes by their centres in its embedding."""
    torch.manual_seed(0)
    model, norm = build("cnn", classes).eval(), Normalisation((-5.0,) * 16, (1.0,) * 16)
    rng = np.random.default_rng(1)
    noisy = patterns(classes).repeat(20, axis=0)
    noisy = noisy + NOISE["real"] * rng.standard_normal(noisy.shape, np.float32)
    centres = score(model, norm, noisy, 64)[1].reshape(classes, 20, -1).mean(axis=1)
    spread = centres.std()
    with torch.no_grad():
        weights = torch.from_numpy(centres / spread**2)
        model.fc2.weight.copy_(weights)
        model.fc2.bias.copy_(-(torch.from_numpy(centres) * weights).sum(1) / 2)
    labels = [f"class {label:03d}" for label in range(classes)]
    note = ClassifierMetadata(
        model="cnn", labels=labels, features=SETTINGS, normalisation=norm, training={},
        metrics={"epoch": 1, "validation_accuracy": None},
        data={"train": 5000, "validation": 0, "test": 2000, "split_digest": ""}, versions={},
    )  # fmt: skip
    checkpoint.save(run, model.state_dict(), note)


def names_of_real() -> pa.Table:
    """The real clips: 5,000 that train and 2,000 that test."""
    names = [f"real/{n // SHARD_CLIPS:06d}/{n % SHARD_CLIPS:03d}.wav" for n in range(7000)]
    return pa.table({"clip_id": names, "split": ["train"] * 5000 + ["test"] * 2000})


def config_of(folder: str) -> Config:
    """An evaluation without sounds to hear."""
    tree = {
        "name": "benchmark", "output": folder, "features": SETTINGS.model_dump(),
        "corpora": {"real": {"path": folder}, "generated": dict.fromkeys([*NOISE][1:], folder)},
        "evaluation": {"checkpoint": f"{folder}/run", "examples": 0},
        "model": {"name": "cnn"},
    }  # fmt: skip
    return from_tree(tree, "benchmark")


def evaluate(folder: str) -> None:
    """Runs in a process of its own: prints the seconds of each step as JSON."""
    from raysound.distributed.cluster.session import ray_session
    from raysound.distributed.evaluation.evaluate import read_rejects
    from raysound.distributed.evaluation.measure import compute_metrics
    from raysound.distributed.evaluation.score import score_corpora
    from raysound.report.page import render

    config, run = config_of(folder), f"{folder}/run"
    folders = {name: f"{folder}/features/{name}" for name in NOISE}
    predictions = f"{folder}/evaluation/predictions"
    with ray_session(config.compute):
        times = [time.perf_counter()]
        for _ in range(2):
            score_corpora(folders, names_of_real(), run, config, predictions)
            times.append(time.perf_counter())
        note = checkpoint.load_metadata(run)
        metrics, _, selected, _ = compute_metrics(
            config, run, note, folders, {*folders}, predictions
        )
        times.append(time.perf_counter())
        points = [point for clips in selected.values() for point in clips.points]
        cells = {name: clips.cells for name, clips in selected.items()}
        page = render(
            metrics | {"cas": None, "copies": None, "embeddings": {}},
            [],
            [],
            cells,
            points,
            read_rejects(folders),
            config.to_yaml(),
        )
        times.append(time.perf_counter())
    seconds = np.diff(times).round(1).tolist()
    accuracy = {name: row["accuracy"]["value"] for name, row in metrics["corpora"].items()}
    print(json.dumps({"seconds": seconds, "page": len(page.encode()), "accuracy": accuracy}))


def watched(folder: str) -> tuple[dict, dict]:
    """What `evaluate` printed, and the peaks of memory."""
    peaks = run_watched([sys.executable, __file__, "--evaluate", folder], Path(folder), ROOT)
    return json.loads(Path(folder, "out").read_text().splitlines()[-1]), peaks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--classes", type=int, default=50)
    parser.add_argument("--evaluate", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.evaluate:
        evaluate(given.evaluate)
        return
    print("| clips | scoring, s | again, s | metrics, s | page, s | page, MB | driver, MB |"
          " largest worker, MB |")  # fmt: skip
    print("|---|---|---|---|---|---|---|---|")
    for clips in given.clips:
        with tempfile.TemporaryDirectory() as folder:
            write_classifier(f"{folder}/run", given.classes)
            for corpus in NOISE:
                count = 7000 if corpus == "real" else (clips - 7000) // 3
                write_corpus(f"{folder}/features/{corpus}", corpus, count, given.classes)
            found, peaks = watched(folder)
            driver, worker = (peaks[name, "RssAnon"] for name in ("driver", "worker"))
            steps = " | ".join(f"{seconds:.1f}" for seconds in found["seconds"])
            print(
                f"| {clips:,} | {steps} | {found['page'] / 1e6:.1f} | "
                f"{driver / 1e6:.0f} | {worker / 1e6:.0f} |",
                flush=True,
            )
            print(found["accuracy"], file=sys.stderr)


if __name__ == "__main__":
    main()
