"""Ray tasks that compute the metrics of one corpus from its sums and a sample of its clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data

from raysound.distributed.cluster.failures import RETRIES
from raysound.evaluation.partial_sums import (
    OTHERS,
    PartialSums,
    Plan,
    read_scored,
    sample,
)
from raysound.evaluation.predictions import (
    read_prediction_rows,
)
from raysound.evaluation.selected import Selected, selected_clips
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.fidelity import mmd_kernels
from raysound.metrics.kernel import decreases
from raysound.metrics.mismatch import CorpusSound

# Clips without which MMD decreases most that metrics.json and the report list.
WORST_CLIPS = 10


class Against(NamedTuple):
    """What corpora are compared with.

    Attributes:
        reference: the real training clips, `RealClips`.
        set_size: see `corpus_report`.
        class_sizes: the same of each class.
    """

    reference: ray.ObjectRef
    set_size: int
    class_sizes: list[int]


class Measured(NamedTuple):
    """What a task says of one corpus.

    Attributes:
        report: see `corpus_report`.
        sound: how its clips sound.
        selected: clips to show in the report.
        decreases: `clip_id` of a sample of its clips, and `mmd_decrease`, see `decreases`.
    """

    report: dict[str, Any]
    sound: CorpusSound
    selected: Selected
    entries: np.ndarray
    decreases: np.ndarray


def prepare_clips(clips: Scored) -> ray.ObjectRef:
    """Some clips as `RealClips`, computed in a task."""
    return ray.remote(max_retries=RETRIES)(real_clips).remote(clips)


def real_clips(clips: Scored) -> RealClips:
    """Runs in a Ray task: some clips as a reference."""
    return RealClips.of(clips)


def measure_corpus(
    predictions: str,
    corpus: str,
    sums: dict[str, PartialSums],
    empty: PartialSums,
    plan: Plan,
    real: RealClips,
    set_size: int,
    class_sizes: list[int],
    is_labelled: bool,
) -> Measured:
    """Runs in a Ray task, which gives numpy one thread: all numbers about one corpus.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        sums: over its clips, by TRAIN and OTHERS; those of OTHERS count.
        empty: sums over no clips.
        plan: that they were made by.
        real: the real clips that they are compared with.
        set_size: see `corpus_report`.
        class_sizes: the same of each class.
        is_labelled: whether its clips have labels.
    """
    own = sums.get(OTHERS, empty)
    drawn = sample(own.entries, plan)
    scored = read_scored(predictions, corpus, drawn, plan)
    kernels = mmd_kernels(scored.first(PAIR_CLIPS).embedding, real.prepared)
    report = corpus_report(
        scored, real, plan.labels, set_size, class_sizes, totals=own.totals,
        is_labelled=is_labelled, kernels=kernels,
    )  # fmt: skip
    falls = decreases(kernels) if kernels is not None and len(kernels.cross) > 2 else np.zeros(0)
    drawn_with = drawn[: len(falls)]
    report["worst_clips"] = worst_clips(predictions, corpus, drawn_with, falls)
    shown = selected_clips(predictions, corpus, own, plan, drawn, scored, real)
    return Measured(
        report, sound_of_corpus(predictions, corpus, own, plan), shown, drawn_with, falls
    )


def worst_clips(
    predictions: str, corpus: str, entries: np.ndarray, falls: np.ndarray
) -> list[dict[str, Any]]:
    """The clips without which the MMD of a corpus decreases most, the largest decrease first.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        entries: of some clips, `(n,)`.
        falls: see `decreases`, `(n,)`.
    """
    order = np.argsort(-falls, kind="stable")[:WORST_CLIPS]
    worst = order[falls[order] > 0]
    columns = ["clip_id", "label", "prediction", "nearest_train_clip_id"]
    some = entries[worst]
    rows = read_prediction_rows(predictions, corpus, some["part"], some["row"], columns).to_pylist()
    return [
        row | {"mmd_decrease": value}
        for row, value in zip(rows, falls[worst].tolist(), strict=True)
    ]


def sound_of_corpus(predictions: str, corpus: str, sums: PartialSums, plan: Plan) -> CorpusSound:
    """How the clips of some sums sound; medians are those of a sample."""
    drawn = sample(sums.entries, plan)[:PAIR_CLIPS]
    columns = ["level_db", "duration"]
    table = read_prediction_rows(predictions, corpus, drawn["part"], drawn["row"], columns)
    return CorpusSound(sums.sounds, table["level_db"].to_numpy(), table["duration"].to_numpy())
