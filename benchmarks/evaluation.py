"""How long the numbers of many predictions take, and how large their page is.

python benchmarks/evaluation.py [--clips 100000] [--classes 50]

Made-up predictions of three corpora with embeddings of 512 numbers, 5,000 training and 2,000 test
clips; an untrained resnetish18 hears noise and silence. `taskset -c 0,1` leaves it two cores.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raysound import checkpoint, storage
from raysound.audio import encode
from raysound.checkpoint import Checkpoint
from raysound.config import from_tree
from raysound.distributed.evaluate import confusion_clips, map_points
from raysound.distributed.measure import measure
from raysound.distributed.session import ray_session
from raysound.models import build
from raysound.predictions import PREDICTIONS, of_corpus, read_index
from raysound.report.page import Example, render
from raysound.scoring import Normalisation

SIZE, BLOCK = 512, 5000


def predictions(
    corpus: str, split: str | None, clips: int, labels: list[str], spread: float, n_mels: int
) -> Iterator[pa.Table]:
    """Blocks of made-up predictions: classes apart, clips around them, a judge mostly right."""
    rng = np.random.default_rng(len(corpus) + clips)
    centres = np.random.default_rng(0).normal(0, 1, (len(labels), SIZE)).astype(np.float32)
    for start in range(0, clips, BLOCK):
        count = min(BLOCK, clips - start)
        truth = rng.integers(len(labels), size=count)
        logits = rng.normal(0, 1, (count, len(labels)))
        logits[np.arange(count), truth] += 6 / spread
        probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        heard = probabilities.argmax(axis=1)
        embedding = centres[truth] + spread * rng.normal(0, 1, (count, SIZE)).astype(np.float32)
        yield pa.table(
            {
                "corpus": [corpus] * count,
                "clip_id": [f"{corpus}/{split}/{start + n:06d}.wav" for n in range(count)],
                "split": pa.array([split] * count, pa.string()),
                "label": [labels[index] for index in truth],
                "prediction": [labels[index] for index in heard],
                "probability": probabilities.max(axis=1),
                "asked_probability": probabilities[np.arange(count), truth],
                "windows": [1] * count,
                "sample_rate": [44100] * count,
                "duration": [5.0] * count,
                "level": rng.normal(-30, 3, count),
                "sounding": [1.0] * count,
                "realism": rng.uniform(0, 2, count),
                "nearest": ["real/train/000000.wav"] * count,
                "probabilities": list(probabilities),
                "embedding": list(embedding),
                "spectrum": list(rng.normal(-8, 1, (count, n_mels))),
            }
        ).cast(PREDICTIONS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clips", type=int, default=100_000)
    parser.add_argument("--classes", type=int, default=50)
    given = parser.parse_args()
    labels = [f"class {index:02d}" for index in range(given.classes)]
    with tempfile.TemporaryDirectory() as folder:
        names = ["first", "second", "third"]
        generated = dict.fromkeys(names, folder)
        config = from_tree(
            {
                "name": "benchmark",
                "output": folder,
                "corpora": {"real": {"path": folder}, "generated": generated},
            },
            "benchmark",
        )
        run, uri = f"{folder}/run", f"{folder}/predictions.parquet"
        n_mels = config.features.n_mels
        judge = Checkpoint(
            model="resnetish18", labels=labels, features=config.features,
            normalisation=Normalisation((-8.0,) * n_mels, (2.0,) * n_mels), training={},
            metrics={"epoch": 1, "validation_accuracy": None},
            data={"train": 5000, "validation": 0, "test": 2000, "split_digest": ""}, versions={},
        )  # fmt: skip
        checkpoint.save(run, build(judge.model, len(labels)).state_dict(), judge)
        each = (given.clips - 2000) // 3
        with pq.ParquetWriter(uri, PREDICTIONS) as writer:
            for corpus, split, clips, spread in (
                ("real", "train", 5000, 1.0), ("real", "test", 2000, 1.1),
                ("first", None, each, 1.2), ("second", None, each, 2.0), ("third", None, each, 3.0),
            ):  # fmt: skip
                for block in predictions(corpus, split, clips, labels, spread, n_mels):
                    writer.write_table(block)
        folders = {}
        for name in ("real", *names):
            folders[name] = f"{folder}/{name}"
            summary = json.dumps({"found": each, "rejected": 0})
            storage.write_bytes(f"{folders[name]}/summary.json", summary.encode())
        with ray_session(config.compute):
            start = time.perf_counter()
            index = read_index(uri)
            metrics = measure(config, run, judge, folders, uri, index)
            measured = time.perf_counter() - start
        shown = {
            name: of_corpus(index, name, "test" if name == "real" else None) for name in folders
        }
        noise = np.random.default_rng(0).normal(0, 0.2, config.features.clip_samples)
        flac = encode(noise.astype(np.float32), 44100, "FLAC")
        log_mel = np.random.default_rng(0).normal(-8, 2, (n_mels, config.features.n_frames))
        # As many as the report takes in, and of the sound that compresses least.
        most = int(config.evaluation.examples_megabytes * 1e6 / (noise.size * 8 / 3) / len(folders))
        examples = [
            Example(
                name, f"{name}/{n}.wav", "hardest", labels[0], labels[1], 0.9, 0.1, None,
                log_mel.astype(np.float32), flac, 0.01,
            )
            for name in folders for n in range(most)
        ]  # fmt: skip
        start = time.perf_counter()
        page = render(
            metrics,
            [],
            examples,
            {name: confusion_clips(rows, labels) for name, rows in shown.items()},
            list(map_points(uri, index, shown)),
            [],
            config.to_yaml(),
        )
        drawn = time.perf_counter() - start
    anchors = len(metrics["anchors"])
    print(f"{given.clips:,} predictions, {given.classes} classes, {SIZE} numbers an embedding")
    print(f"metrics of {len(folders)} corpora and {anchors} anchors  {measured:6.1f} s")
    print(f"page                                {drawn:6.1f} s")
    print(f"page                                {len(page.encode()) / 1e6:6.1f} MB")
    without = len(page.encode()) - sum(len(example.audio) * 4 / 3 for example in examples)
    print(f"page without sounds                 {without / 1e6:6.1f} MB")


if __name__ == "__main__":
    main()
