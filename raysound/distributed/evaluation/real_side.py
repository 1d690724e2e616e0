"""The real side of an evaluation: the real row, the anchors and the reference set."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data

from raysound import storage
from raysound.distributed.cluster.failures import translate_ray_errors
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.evaluation.corpus_metrics import (
    CorpusMeasurements,
    ReferenceSet,
    prepare_reference,
    sound_of_corpus,
)
from raysound.distributed.evaluation.score import score_anchor, should_use_gpus
from raysound.evaluation.part_scoring import file_sha256, json_digest
from raysound.evaluation.partial_sums import (
    OTHERS,
    TRAIN,
    PartialSums,
    Plan,
    read_scored,
    sample,
    to_scored,
)
from raysound.evaluation.predictions import read_prediction_rows
from raysound.evaluation.reference_file import RealSide
from raysound.metrics.anchors import anchors_of_real, split_in_halves
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import PAIR_CLIPS, SET_CLIPS
from raysound.metrics.mismatch import CorpusSound, merge_sounds
from raysound.settings.schema import Config
from raysound.training.checkpoint import WEIGHTS, ClassifierMetadata

# Clips of noise and of silence. They differ little, and a large classifier is slow.
ANCHOR_CLIPS = 100


class RealSample(NamedTuple):
    """Samples of the real clips.

    Attributes:
        train: at most PAIR_CLIPS training clips.
        test: at most PAIR_CLIPS test clips.
        entries: of the training clips.
        train_sums: over all training clips.
        references: the training clips as a reference set.
    """

    train: Scored
    test: Scored
    entries: np.ndarray
    train_sums: PartialSums
    references: ReferenceSet


def sample_real(
    sums: ray.ObjectRef, empty: PartialSums, plan: Plan, predictions: str
) -> RealSample:
    """Samples the real clips.

    Args:
        sums: over the real clips.
        empty: sums over no clips.
        plan: of the sums.
        predictions: the folder of all corpora.
    """
    with translate_ray_errors("summing up the predictions"):
        real_sums = ray.get(sums)
    train_sums, test_sums = (real_sums.get(name, empty) for name in (TRAIN, OTHERS))
    entries = [sample(part.entries, plan)[:PAIR_CLIPS] for part in (train_sums, test_sums)]
    train, test = (read_scored(predictions, "real", part, plan) for part in entries)
    set_size = min(test_sums.classification.clips, SET_CLIPS)
    class_counts = test_sums.classification.confusion(len(plan.labels)).sum(axis=1)
    class_sizes = np.minimum(class_counts, plan.limit.per_class).tolist()
    references = ReferenceSet(prepare_reference(train), set_size, class_sizes)
    return RealSample(train, test, entries[0], train_sums, references)


def measure_real(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folder: str,
    predictions: str,
    plan: Plan,
    real: RealSample,
    measured: CorpusMeasurements,
) -> RealSide:
    """Computes the real side, without embeddings.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its metadata.
        folder: of the real features.
        predictions: the folder of all corpora.
        plan: of the sums.
        real: samples of the real clips.
        measured: of the real test clips.
    """
    labels, train = classifier.labels, real.train
    training_clips, set_size, class_sizes = real.references
    anchors = score_anchors(run, real.test, labels, config)
    anchors |= anchors_of_real(real.test, train, set_size)
    references = dict.fromkeys(anchors, training_clips)
    first, second = split_in_halves(train)
    if len(second.truth) > 1:
        anchors["real_halves"] = first
        references["real_halves"] = prepare_reference(second)
    calls = [
        (ray.put(anchors[name]), labels, references[name], set_size, class_sizes)
        for name in anchors
    ]
    reports = run_remote_all(measure_anchor, calls)
    entries = real.entries
    names = read_prediction_rows(predictions, "real", entries["part"], entries["row"], ["clip_id"])[
        "clip_id"
    ]
    return RealSide(
        classifier={
            "run": run.rpartition("/")[2],
            "model": classifier.model,
            "labels": labels,
            "epoch": classifier.metrics["epoch"],
            "validation_accuracy": classifier.metrics["validation_accuracy"],
            "feature_id": classifier.features.id,
            "split_digest": classifier.data["split_digest"],
            "train_clips": classifier.data["train"],
            "validation_clips": classifier.data["validation"],
            "embedding_size": plan.embedding_size,
        },
        reference={
            "split": "train",
            "clips": classifier.data["train"],
            "used": len(train.truth),
            "set_size": set_size,
        },
        clip_ids=names.to_pylist(),
        training=train,
        class_sizes=class_sizes,
        row=corpus_row("real", folder, measured),
        anchors={
            name: {"role": "anchor", **report}
            for name, report in zip(anchors, reports, strict=True)
        },
        sound=merge_sound(
            sound_of_corpus(predictions, "real", real.train_sums, plan), measured.sound
        ),
        embeddings={},
        identity=classifier_identity(run, classifier),
    )


def corpus_row(role: str, folder: str, measured: CorpusMeasurements) -> dict[str, Any]:
    """The row of a corpus in metrics.json.

    Args:
        role: `real` or `generated`.
        folder: of its features.
        measured: of its clips.
    """
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    return {
        "role": role,
        "found": summary["found"],
        "rejected": summary["rejected"],
        **measured.report,
    }


def classifier_identity(run: str, classifier: ClassifierMetadata) -> dict[str, str]:
    """`RealSide.identity` of the classifier in a folder."""
    return {
        "weights_sha256": file_sha256(storage.join(run, WEIGHTS)),
        "normalisation": json_digest(classifier.normalisation.__dict__),
    }


def measure_anchor(
    clips: Scored, labels: list[str], real: RealClips, set_size: int, class_sizes: list[int]
) -> dict[str, Any]:
    """Runs in a Ray task: computes all metrics of one anchor."""
    return corpus_report(clips, real, labels, set_size, class_sizes)


def score_anchors(run: str, test: Scored, labels: list[str], config: Config) -> dict[str, Scored]:
    """Scores noise and silence, with the labels of real test clips."""
    kinds = ("noise", "silence")
    targets = [labels[truth] for truth in test.truth[:ANCHOR_CLIPS].tolist()]
    calls = [(run, kind, targets, config.evaluation.batch_size) for kind in kinds]
    tables = run_remote_all(score_anchor, calls, num_gpus=1 if should_use_gpus(config) else 0)
    return {kind: to_scored(table, labels) for kind, table in zip(kinds, tables, strict=True)}


def merge_sound(train: CorpusSound, test: CorpusSound) -> CorpusSound:
    """The CorpusSound of training and test clips together."""
    return CorpusSound(
        merge_sounds([train.sums, test.sums]),
        np.concatenate([train.level_db, test.level_db]),
        np.concatenate([train.duration, test.duration]),
    )
