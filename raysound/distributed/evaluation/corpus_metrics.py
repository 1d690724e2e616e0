"""Ray tasks that compute the metrics of one corpus from its sums and a sample of its clips."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import ray
import ray.data

from raysound.distributed.cluster.failures import RETRIES
from raysound.evaluation.partial_sums import OTHERS, PartialSums, Plan, read_scored, sample
from raysound.evaluation.predictions import read_prediction_rows
from raysound.evaluation.selected import Selected, selected_clips
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.fidelity import mmd_kernels
from raysound.metrics.kernel import decreases
from raysound.metrics.mismatch import CorpusSound

# Number of clips in metrics.json and the report whose removal decreases MMD most.
WORST_CLIPS = 10


class ReferenceSet(NamedTuple):
    """The real clips that corpora are compared with.

    Attributes:
        reference: the real training clips, `RealClips`.
        set_size: see `corpus_report`.
        class_sizes: of each class, see `corpus_report`.
    """

    reference: ray.ObjectRef
    set_size: int
    class_sizes: list[int]


class CorpusMeasurements(NamedTuple):
    """The measurements of one corpus.

    Attributes:
        report: see `corpus_report`.
        sound: levels, durations, sample rates and spectra.
        selected: clips to show in the report.
        entries: a sample of the clips, `(n,)`.
        decreases: their `mmd_decrease`, `(n,)`, see `raysound.metrics.kernel.decreases`.
    """

    report: dict[str, Any]
    sound: CorpusSound
    selected: Selected
    entries: np.ndarray
    decreases: np.ndarray


def prepare_reference(clips: Scored) -> ray.ObjectRef:
    """Prepares clips as a reference, in a Ray task."""
    return ray.remote(max_retries=RETRIES)(real_clips).remote(clips)


def real_clips(clips: Scored) -> RealClips:
    """Runs in a Ray task: prepares clips as a reference."""
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
) -> CorpusMeasurements:
    """Runs in a Ray task, where numpy has one thread: computes all metrics of one corpus.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        sums: over its clips, by TRAIN and OTHERS; only OTHERS are measured.
        empty: sums over no clips.
        plan: of the sums.
        real: the reference clips.
        set_size: see `corpus_report`.
        class_sizes: of each class, see `corpus_report`.
        is_labelled: whether its clips have labels.
    """
    clip_sums = sums.get(OTHERS, empty)
    entries = sample(clip_sums.entries, plan)
    scored = read_scored(predictions, corpus, entries, plan)
    kernels = mmd_kernels(scored.first(PAIR_CLIPS).embedding, real.prepared)
    report = corpus_report(
        scored, real, plan.labels, set_size, class_sizes, totals=clip_sums.totals,
        is_labelled=is_labelled, kernels=kernels,
    )  # fmt: skip
    mmd_decreases = np.zeros(0)
    if kernels is not None and len(kernels.cross) > 2:
        mmd_decreases = decreases(kernels)
    decrease_entries = entries[: len(mmd_decreases)]
    report["worst_clips"] = worst_clips(predictions, corpus, decrease_entries, mmd_decreases)
    return CorpusMeasurements(
        report,
        sound_of_corpus(predictions, corpus, clip_sums, plan),
        selected_clips(predictions, corpus, clip_sums, plan, entries, scored, real),
        decrease_entries,
        mmd_decreases,
    )


def worst_clips(
    predictions: str, corpus: str, entries: np.ndarray, mmd_decreases: np.ndarray
) -> list[dict[str, Any]]:
    """The clips whose removal decreases the MMD of a corpus most, the largest decrease first.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        entries: of some clips, `(n,)`.
        mmd_decreases: of these clips, `(n,)`.
    """
    order = np.argsort(-mmd_decreases, kind="stable")[:WORST_CLIPS]
    worst = order[mmd_decreases[order] > 0]
    columns = ["clip_id", "label", "prediction", "nearest_train_clip_id"]
    parts, numbers = entries["part"][worst], entries["row"][worst]
    rows = read_prediction_rows(predictions, corpus, parts, numbers, columns).to_pylist()
    return [
        row | {"mmd_decrease": value}
        for row, value in zip(rows, mmd_decreases[worst].tolist(), strict=True)
    ]


def sound_of_corpus(predictions: str, corpus: str, sums: PartialSums, plan: Plan) -> CorpusSound:
    """The CorpusSound of some clips; levels and durations are those of a sample."""
    entries = sample(sums.entries, plan)[:PAIR_CLIPS]
    columns = ["level_db", "duration"]
    table = read_prediction_rows(predictions, corpus, entries["part"], entries["row"], columns)
    return CorpusSound(sums.sounds, table["level_db"].to_numpy(), table["duration"].to_numpy())
