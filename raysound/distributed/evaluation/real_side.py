"""The real side of an evaluation: the real row, the anchors and the samples to compare with."""

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
    Against,
    Measured,
    prepare_clips,
    sound_of_corpus,
)
from raysound.distributed.evaluation.score import on_gpus, score_made
from raysound.evaluation.part_scoring import file_sha256, json_digest
from raysound.evaluation.partial_sums import (
    OTHERS,
    TRAIN,
    PartialSums,
    Plan,
    read_scored,
    sample,
    scored_of,
)
from raysound.evaluation.predictions import (
    read_prediction_rows,
)
from raysound.evaluation.reference_file import RealSide
from raysound.metrics.anchors import anchors_of_real, split_in_halves
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import PAIR_CLIPS, SET_CLIPS
from raysound.metrics.mismatch import CorpusSound, merge_sounds
from raysound.settings.schema import Config
from raysound.training.checkpoint import WEIGHTS, ClassifierMetadata

# Clips of noise and of silence: one is much like the other, and a large classifier takes its time.
MADE_CLIPS = 100


class DrawnReal(NamedTuple):
    """Samples of the real clips.

    Attributes:
        train: at most PAIR_CLIPS training clips.
        test: at most PAIR_CLIPS test clips.
        entries: of the training clips.
        of_train: sums over all training clips.
        against: the training clips as a reference.
    """

    train: Scored
    test: Scored
    entries: np.ndarray
    of_train: PartialSums
    against: Against


def draw_real(sums: ray.ObjectRef, empty: PartialSums, plan: Plan, predictions: str) -> DrawnReal:
    """The real clips that samples are drawn from.

    Args:
        sums: over the real clips.
        empty: sums over no clips.
        plan: of the sums.
        predictions: the folder of all corpora.
    """
    with translate_ray_errors("summing up the predictions"):
        of_real = ray.get(sums)
    of_train, of_test = (of_real.get(name, empty) for name in (TRAIN, OTHERS))
    drawn, of_tests = (sample(one.entries, plan)[:PAIR_CLIPS] for one in (of_train, of_test))
    train, test = (read_scored(predictions, "real", one, plan) for one in (drawn, of_tests))
    set_size = min(of_test.classification.clips, SET_CLIPS)
    of_class = of_test.classification.confusion(len(plan.labels)).sum(axis=1)
    class_sizes = np.minimum(of_class, plan.limit.of_class).tolist()
    against = Against(prepare_clips(train), set_size, class_sizes)
    return DrawnReal(train, test, drawn, of_train, against)


def measure_real(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folder: str,
    predictions: str,
    plan: Plan,
    drawn: DrawnReal,
    measured: Measured,
) -> RealSide:
    """The real side, its embeddings left out.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its checkpoint.
        folder: of the real features.
        predictions: the folder of all corpora.
        plan: of the sums.
        drawn: from the real clips.
        measured: all numbers about the real test clips.
    """
    labels, train, of_train = classifier.labels, drawn.train, drawn.of_train
    real, set_size, class_sizes = drawn.against
    anchors = made_anchors(run, drawn.test, labels, config)
    anchors |= anchors_of_real(drawn.test, train, set_size)
    references = dict.fromkeys(anchors, real)
    half, other = split_in_halves(train)
    if len(other.truth) > 1:
        anchors["real_halves"] = half
        references["real_halves"] = prepare_clips(other)
    calls = [
        (ray.put(anchors[name]), labels, references[name], set_size, class_sizes)
        for name in anchors
    ]
    reports = run_remote_all(measure_anchor, calls)
    entries = drawn.entries
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
        sound=merge_sound(sound_of_corpus(predictions, "real", of_train, plan), measured.sound),
        embeddings={},
        identity=classifier_identity(run, classifier),
    )


def corpus_row(role: str, folder: str, measured: Measured) -> dict[str, Any]:
    """The row of a corpus in metrics.json.

    Args:
        role: `real` or `generated`.
        folder: of its features.
        measured: all numbers about its clips.
    """
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    return {
        "role": role,
        "found": summary["found"],
        "rejected": summary["rejected"],
        **measured.report,
    }


def classifier_identity(run: str, classifier: ClassifierMetadata) -> dict[str, str]:
    """`RealSide.classifier` of the classifier in a folder."""
    return {
        "weights_sha256": file_sha256(storage.join(run, WEIGHTS)),
        "normalisation": json_digest(classifier.normalisation.__dict__),
    }


def measure_anchor(
    clips: Scored, labels: list[str], real: RealClips, set_size: int, class_sizes: list[int]
) -> dict[str, Any]:
    """Runs in a Ray task: all numbers about one anchor."""
    return corpus_report(clips, real, labels, set_size, class_sizes)


def made_anchors(run: str, test: Scored, labels: list[str], config: Config) -> dict[str, Scored]:
    """Noise and silence, each clip asked to be what a real test clip is."""
    kinds = ("noise", "silence")
    asked = [labels[truth] for truth in test.truth[:MADE_CLIPS].tolist()]
    calls = [(run, kind, asked, config.evaluation.batch_size) for kind in kinds]
    made = run_remote_all(score_made, calls, num_gpus=1 if on_gpus(config) else 0)
    return {kind: scored_of(table, labels) for kind, table in zip(kinds, made, strict=True)}


def merge_sound(train: CorpusSound, test: CorpusSound) -> CorpusSound:
    """How the real clips sound, those that trained and the others."""
    return CorpusSound(
        merge_sounds([train.sums, test.sums]),
        np.concatenate([train.level_db, test.level_db]),
        np.concatenate([train.duration, test.duration]),
    )
