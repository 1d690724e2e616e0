"""Every number of metrics.json, a corpus or anchor a task."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from raysound import features, storage
from raysound.checkpoint import Checkpoint
from raysound.distributed.score import on_gpus, score_made
from raysound.distributed.session import run_remote_all
from raysound.metrics.anchors import anchors_of_real, halves, sanity
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import METRICS_SCHEMA, SET_CLIPS
from raysound.metrics.mismatch import mismatches
from raysound.metrics.ranking import ranking
from raysound.predictions import of_corpus, read_scored, read_sound, scored_of
from raysound.settings import Config

# Clips of noise and of silence: one is much like the other, and a large judge takes its time.
MADE_CLIPS = 100


def measure(
    config: Config,
    run: str,
    judge: Checkpoint,
    folders: dict[str, str],
    predictions: str,
    index: pa.Table,
) -> dict[str, Any]:
    """The content of metrics.json."""
    labels = judge.labels
    clips = {name: of_corpus(index, name) for name in folders}
    clips["real"] = of_corpus(index, "real", "test")
    train = read_scored(predictions, of_corpus(index, "real", "train"), labels)
    test = read_scored(predictions, clips["real"], labels)
    real = RealClips.of(train)
    set_size = min(len(test.drawn), SET_CLIPS)
    sizes = set_size, np.bincount(test.truth, minlength=len(labels)).tolist()

    anchors = made_anchors(run, clips["real"]["label"].to_pylist(), labels, config)
    anchors |= anchors_of_real(test, train, set_size)
    against = dict.fromkeys(anchors, real)
    half, other = halves(train)
    if len(other.truth) > 1:
        anchors["real_halves"], against["real_halves"] = half, RealClips.of(other)
    kept = ray.put(real)
    reports = iter(
        run_remote_all(
            report_of,
            [
                *((predictions, rows, labels, [kept], *sizes) for rows in clips.values()),
                *(
                    (None, anchors[name], labels, [ray.put(against[name])], *sizes)
                    for name in anchors
                ),
            ],
        )
    )
    corpora = {}
    for name, folder in folders.items():
        summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
        corpora[name] = {
            "role": "real" if name == "real" else "generated",
            "found": summary["found"],
            "rejected": summary["rejected"],
            **next(reports),
        }
    anchor_rows = {name: {"role": "anchor", **next(reports)} for name in anchors}
    return {
        "schema": METRICS_SCHEMA,
        "name": config.name,
        "judge": {
            "run": run.rpartition("/")[2],
            "model": judge.model,
            "labels": labels,
            "epoch": judge.metrics["epoch"],
            "validation_accuracy": judge.metrics["validation_accuracy"],
            "feature_id": judge.features.id,
            "split_digest": judge.data["split_digest"],
            "train_clips": judge.data["train"],
            "validation_clips": judge.data["validation"],
            "embedding_size": int(train.embedding.shape[1]),
        },
        "reference": {
            "split": "train",
            "clips": judge.data["train"],
            "used": len(train.truth),
            "set_size": set_size,
        },
        "corpora": corpora,
        "anchors": anchor_rows,
        "sanity": sanity({"real": corpora["real"], **anchor_rows}),
        "ranking": ranking(
            {name: row for name, row in corpora.items() if row["role"] == "generated"}
        ),
        "mismatch": all_mismatches(judge, predictions, of_corpus(index, "real"), clips),
    }


def report_of(
    predictions: str | None,
    clips: pa.Table | Scored,
    labels: list[str],
    against: list[ray.ObjectRef],
    set_size: int,
    class_sizes: list[int],
) -> dict[str, Any]:
    """Runs in a Ray task, which gives numpy one thread: all numbers about one corpus.

    Args:
        predictions: where the clips' probabilities and embeddings lie; None where they are given.
        clips: rows of the index, or what the judge made of them.
        labels: class names in the order of the probabilities.
        against: the real clips that they are compared with.
        set_size: see `corpus_report`.
        class_sizes: the same of each class.
    """
    scored = clips if predictions is None else read_scored(predictions, clips, labels)
    return corpus_report(scored, ray.get(against[0]), labels, set_size, class_sizes)


def made_anchors(
    run: str, asked: list[str], labels: list[str], config: Config
) -> dict[str, Scored]:
    """Noise and silence, each clip asked to be what a real test clip is."""
    kinds = ("noise", "silence")
    # Drawn: packed corpora lie class by class.
    drawn = np.random.default_rng(0).permutation(len(asked))[:MADE_CLIPS]
    some = [asked[place] for place in np.sort(drawn)]
    calls = [(run, kind, some, config.evaluation.batch_size) for kind in kinds]
    made = run_remote_all(score_made, calls, num_gpus=1 if on_gpus(config) else 0)
    return {kind: scored_of(table, labels) for kind, table in zip(kinds, made, strict=True)}


def all_mismatches(
    judge: Checkpoint, predictions: str, real: pa.Table, clips: dict[str, pa.Table]
) -> list[dict[str, Any]]:
    """What sets each generated corpus apart from the real one."""
    ours, edges = read_sound(predictions, real), features.band_edges(judge.features)
    return [
        row
        for name, rows in clips.items()
        if name != "real"
        for row in mismatches(
            name,
            read_sound(predictions, rows),
            ours,
            judge.features.sample_rate,
            judge.features.clip_length,
            edges,
        )
    ]
