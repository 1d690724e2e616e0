"""A small full report, parts of which tests change."""

import io
from collections import Counter

import numpy as np
import soundfile

from raysound.metrics.anchors import sanity_checks
from raysound.metrics.classification import classification_report
from raysound.metrics.declarations import METRICS_SCHEMA
from raysound.metrics.fidelity import fidelity_report, per_class_fidelity, prepare
from raysound.metrics.intervals import proportion_estimate
from raysound.metrics.ranking import ranking
from raysound.report.copies import ShownPair, ShownWindow
from raysound.report.maps import MapPoint
from raysound.report.page import REJECTS_SHOWN, Rejects, render
from raysound.report.parts import Example, kind_of

LABELS = ["dog", "rain", "siren", "rooster"]
SIZE = 6
RNG = np.random.default_rng(0)
TRAIN_LABELS = np.arange(120) % 4
TRAIN = 4 * np.eye(4, SIZE)[TRAIN_LABELS] + RNG.normal(0, 1, (120, SIZE))
REFERENCE = prepare(TRAIN)


def tone() -> bytes:
    """One second of 440 Hz as FLAC."""
    file = io.BytesIO()
    wave = 0.3 * np.sin(2 * np.pi * 440 * np.arange(8000) / 8000)
    soundfile.write(file, wave, 8000, format="FLAC")
    return file.getvalue()


FLAC = tone()


def numbers(right, clips, labels, spread=1.0, copied=False, places=None):
    """Numbers about clips: the first `right` are predicted as asked, others as the next class.

    Their embeddings lie as wide around those of the training clips as `spread` says, or are theirs.
    """
    truth = np.arange(clips) % len(labels)
    predicted = np.where(np.arange(clips) < right, truth, (truth + 1) % len(labels))
    if copied:
        places = TRAIN[:clips]
    elif places is None:
        places = 4 * np.eye(4, SIZE)[truth % 4]
        places += np.random.default_rng(clips).normal(0, spread, (clips, SIZE))
    report = classification_report(truth, np.eye(len(labels))[predicted], labels, set_size=60)
    of_class = per_class_fidelity(
        places, truth, TRAIN, TRAIN_LABELS % len(labels), labels, set_sizes=[15] * len(labels)
    )
    for label, row in of_class.items():
        report["per_class"][label] |= row
    return report | fidelity_report(places, REFERENCE, seed=0, set_size=60)


def corpus(role, right, clips, labels=LABELS, rejected=0, spread=1.0):
    """A corpus of such clips."""
    found = {"role": role, "found": clips + rejected, "rejected": rejected}
    return found | numbers(right, clips, labels, spread)


def metrics_of(corpora, labels=LABELS, **changes):
    """A metrics.json of some corpora, with two anchors."""
    classifier = {
        "run": "cnn-1a2b3c4d",
        "model": "cnn",
        "labels": labels,
        "epoch": 3,
        "validation_accuracy": 0.97,
        "feature_id": "ab12cd34",
        "split_digest": "0011aabb",
        "train_clips": 120,
        "validation_clips": 40,
        "embedding_size": SIZE,
    }
    anchors = {
        "noise": {"role": "anchor", **numbers(15, 60, labels, 30.0)},
        "training_copy": {"role": "anchor", **numbers(60, 60, labels, copied=True)},
    }
    real = {name: row for name, row in corpora.items() if row["role"] == "real"}
    generated = {name: row for name, row in corpora.items() if row["role"] != "real"}
    return {
        "schema": METRICS_SCHEMA,
        "name": "demo",
        "classifier": classifier,
        "reference": {"split": "train", "clips": 120, "used": 120, "set_size": 60},
        "corpora": corpora,
        "anchors": anchors,
        "sanity": sanity_checks(anchors | {"real": next(iter(real.values()), {})}),
        "ranking": ranking(generated),
        "mismatch": [],
        "embeddings": {},
        "copies": None,
        "cas": None,
    } | changes


def metrics():
    """One real and three generated corpora, one of them without a usable clip."""
    return metrics_of(
        {
            "poor": corpus("generated", 20, 100, spread=3.0),
            "empty": corpus("generated", 0, 0, rejected=7),
            "real": corpus("real", 57, 60),
            "faithful": corpus("generated", 91, 100, rejected=3),
        }
    )


def history(epochs=5):
    """A training that went well."""
    return [
        {
            "epoch": epoch,
            "lr": 1e-3 / epoch,
            "train_loss": 2 / epoch,
            "train_accuracy": 1 - 0.8 / epoch,
            "validation_loss": 2.2 / epoch,
            "validation_accuracy": 0.95 - 0.8 / epoch,
            "seconds": 1.5,
        }
        for epoch in range(1, epochs + 1)
    ]


def example(**changes):
    """A clip to look at and to listen to."""
    fields = {
        "corpus": "faithful",
        "clip_id": "faithful/dog/0001.wav",
        "kind": "convincing",
        "label": "dog",
        "prediction": "dog",
        "probability": 0.913,
        "target_probability": 0.913,
        "nearest_train_clip_id": "real/dog/7.wav",
        "log_mel": np.linspace(-8, 2, 64 * 50, dtype=np.float32).reshape(64, 50),
        "audio": FLAC,
        "seconds_per_frame": 0.02,
    }
    return Example(**fields | changes)


def pair(clip_id, training_clip, similarity=0.95, lag=0.4, **changes):
    """A clip and its most similar training clip, as metrics.json has them."""
    named = {"clip_id": clip_id, "window": 0, "training_clip": training_clip, "training_window": 0}
    return named | {"similarity": similarity, "lag": lag} | changes


def copies_of(corpora, **changes):
    """Copies of some corpora: of each generated one a fifth, and twelve similar pairs."""
    found = {}
    for name, row in corpora.items():
        pairs = [
            pair(f"{name}/{n}.wav", f"real/{n}.wav", 0.95 - n / 20, 0.4 - n / 10)
            for n in range(min(10, row["clips"]))
        ]
        copied = 0 if row["role"] == "real" else row["clips"] // 5
        share = proportion_estimate(copied, row["clips"])
        found[name] = {"clips": row["clips"], "share": share, "pairs": pairs}
    return {
        "rate": 0.01,
        "threshold": {"value": 0.88, "clips": 120, "why": ""},
        "training": {"clips": 100, "of": 120, "windows": 100, "digest": "x"},
        "real_pairs": [pair("real/a.wav", "real/b.wav", 0.97, 0), pair("real/c.wav", "real/d.wav")],
        "corpora": found,
    } | changes


def shown_pair(corpus, rank, level=0.0):
    """Two windows to look at and to listen to."""
    log_mel = example().log_mel + np.float32(level)
    return ShownPair(corpus, rank, *[ShownWindow(log_mel, FLAC, 0.02)] * 2)


def cells_of(corpora):
    """Behind each cell of the confusions as many clips as it counts, at most 20 of them named."""
    return {
        name: {
            (row, column): (
                count,
                [(f"{name}/{row}/{n}.wav", 0.9 - n / 100) for n in range(min(count, 20))],
            )
            for row, counts in enumerate(numbers["confusion"])
            for column, count in enumerate(counts)
            if count
        }
        for name, numbers in corpora.items()
    }


def points_of(corpora, labels=LABELS, each=12):
    """Some clips of each scored corpus on the map."""
    rng = np.random.default_rng(1)
    return [
        MapPoint(name, labels[n % len(labels)], *rng.normal(n % len(labels), 1, 2), f"{name}/{n}")
        for name, numbers in corpora.items()
        for n in range(min(each, numbers["clips"]))
    ]


def rejects_of(*rows):
    """The first of some rejects, and all of them counted, as an evaluation does."""
    counts = Counter((row["corpus"], kind_of(row["reason"])) for row in rows)
    return Rejects(rows[:REJECTS_SHOWN], counts)


def page(**changes):
    """The page of a small full report, parts of it changed."""
    metrics_now = changes.get("metrics") or metrics()
    corpora, labels = metrics_now["corpora"], metrics_now["classifier"]["labels"]
    parts = {
        "metrics": metrics_now,
        "history": history(),
        "examples": [
            example(),
            example(corpus="real", prediction="rain", kind="hardest", nearest_train_clip_id=None),
        ],
        "cells": cells_of(corpora),
        "points": points_of(corpora, labels),
        "rejects": rejects_of(
            {"corpus": "faithful", "clip_id": "a.wav", "label": "dog", "reason": "silent"}
        ),
        "settings_yaml": "name: demo\n",
    }
    return render(**parts | changes)
