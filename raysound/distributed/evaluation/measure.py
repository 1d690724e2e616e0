"""Computes metrics.json: sums over the parts of all corpora, then metrics by corpus."""

from __future__ import annotations

from typing import Any

import numpy as np

from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.evaluation.corpus_metrics import (
    ReferenceSet,
    measure_corpus,
    prepare_reference,
)
from raysound.distributed.evaluation.corpus_sums import sum_corpora
from raysound.distributed.evaluation.real_side import corpus_row, measure_real, sample_real
from raysound.evaluation.partial_sums import Plan, empty_sums
from raysound.evaluation.predictions import embedding_size
from raysound.evaluation.reference_file import RealSide
from raysound.evaluation.selected import Selected
from raysound.features.bands import band_edges
from raysound.metrics.anchors import sanity_checks
from raysound.metrics.declarations import METRICS_SCHEMA
from raysound.metrics.mismatch import CorpusSound, mismatches
from raysound.metrics.ranking import ranking
from raysound.metrics.selection import limits
from raysound.settings.schema import Config
from raysound.training.checkpoint import ClassifierMetadata


def compute_metrics(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folders: dict[str, str],
    labelled: set[str],
    predictions: str,
    side: RealSide | None = None,
) -> tuple[dict[str, Any], RealSide, dict[str, Selected], dict[str, tuple[np.ndarray, np.ndarray]]]:
    """Computes all metrics.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its metadata.
        folders: of the features, by the corpus's name; `real` is among them unless `side` is given.
        labelled: the corpora whose clips have labels.
        predictions: the folder of all corpora.
        side: the real side; None to compute it.

    Returns:
        The content of metrics.json; the real side without embeddings; by corpus, the clips to show
        in the report; by corpus, `entries` and `decreases` of `CorpusMeasurements`.
    """
    labels = classifier.labels
    size = embedding_size(predictions, "real") if side is None else side.training.embedding.shape[1]
    plan = Plan(
        labels, classifier.features.clip_length, size,
        limits(len(labels), size, config.evaluation.examples),
    )  # fmt: skip
    sums = sum_corpora([*folders], predictions, plan)
    empty = empty_sums(classifier.features.n_mels)
    real = sample_real(sums["real"], empty, plan, predictions) if side is None else None
    if real is not None:
        references = real.references
    else:
        assert side is not None
        references = ReferenceSet(prepare_reference(side.training), side.set_size, side.class_sizes)
    calls = [
        (predictions, name, sums[name], empty, plan, *references, name in labelled)
        for name in folders
    ]
    measured = dict(zip(folders, run_remote_all(measure_corpus, calls), strict=True))
    if real is not None:
        side = measure_real(
            config, run, classifier, folders["real"], predictions, plan, real, measured["real"]
        )
    assert side is not None
    generated = [name for name in folders if name != "real"]
    rows = {name: corpus_row("generated", folders[name], measured[name]) for name in generated}
    metrics = {
        "schema": METRICS_SCHEMA,
        "name": config.name,
        "classifier": side.classifier,
        "reference": dict(side.reference),
        "corpora": {"real": side.row, **rows},
        "anchors": side.anchors,
        "sanity": sanity_checks({"real": side.row, **side.anchors}),
        "ranking": ranking(rows),
        "mismatch": all_mismatches(
            classifier, {name: measured[name].sound for name in generated}, side.sound
        ),
    }
    selected = {name: row.selected for name, row in measured.items()}
    decreases = {name: (row.entries, row.decreases) for name, row in measured.items()}
    return metrics, side, selected, decreases


def all_mismatches(
    classifier: ClassifierMetadata, sounds: dict[str, CorpusSound], real: CorpusSound
) -> list[dict[str, Any]]:
    """Differences in sound between each generated corpus and all real clips."""
    edges = band_edges(classifier.features)
    normalised = classifier.features.loudness is not None
    return [
        row
        for name, sound in sounds.items()
        for row in mismatches(name, sound, real, classifier.features.sample_rate, edges, normalised)
    ]
