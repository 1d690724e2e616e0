"""The evaluation job: scores every corpus, then writes metrics.json and report.html."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from raysound import storage
from raysound.distributed.cluster import prometheus
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.session import on_ray, run_remote_all
from raysound.distributed.evaluation.console import metrics_table
from raysound.distributed.evaluation.copies import copy_metrics
from raysound.distributed.evaluation.embeddings import check_embeddings, embedding_metrics
from raysound.distributed.evaluation.examples import load_examples, load_pairs, page_capacity
from raysound.distributed.evaluation.input_checks import (
    check_corpora,
    check_features,
    clips_to_score,
)
from raysound.distributed.evaluation.measure import compute_metrics
from raysound.distributed.evaluation.real_side import classifier_identity
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import evaluated_run, split_clips
from raysound.errors import UserError
from raysound.evaluation.cas import read_scores
from raysound.evaluation.embedding_parts import EmbeddingSource
from raysound.evaluation.predictions import write_csv
from raysound.evaluation.reference_file import RealSide, check_reference, read_reference
from raysound.report.events import write_events
from raysound.report.page import REJECTS_SHOWN, Rejects, render
from raysound.report.parts import kind_of
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.history import read_history

logger = logging.getLogger(__name__)
# Rejects that are read at a time.
REJECT_BATCH = 8192
# Limit of reasons that are counted apart; those that differ only in numbers and paths are one.
MAX_REJECT_KINDS = 1000


class Inputs(NamedTuple):
    """The inputs of an evaluation.

    Attributes:
        run: the classifier's folder.
        classifier: its metadata.
        folders: of the features, by the corpus's name.
        labelled: the corpora whose clips have labels.
        real: the usable real clips with their split; None with `evaluation.reference`.
        sources: of further embeddings.
        side: the real side from `evaluation.reference`; None without it.
    """

    run: str
    classifier: ClassifierMetadata
    folders: dict[str, str]
    labelled: set[str]
    real: pa.Table | None
    sources: list[EmbeddingSource]
    side: RealSide | None


@on_ray
def evaluate(config: Config) -> dict[str, Any]:
    """Scores every corpus of a config, and writes `metrics.json` and `report.html`.

    The corpora must be extracted, and the classifier trained. Shards that are scored already are
    not scored again.

    Args:
        config: the experiment.

    Returns:
        The content of `OUTPUT/evaluation/metrics.json`, which
        `docs/metrics.schema.json` describes.

    Raises:
        UserError: features, classifier, an embedding's model or `evaluation.reference` are missing,
            or have other settings.
    """
    inputs = check_inputs(config, config.corpora.names)
    out = storage.join(config.output, "evaluation")
    with sole_writer(out):
        return write_report(config, *inputs, out)


def check_inputs(config: Config, corpora: Sequence[str]) -> Inputs:
    """Loads the inputs of an evaluation of some corpora, and checks that they fit together.

    Raises:
        UserError: features, classifier, an embedding's model or `evaluation.reference` are missing,
            or have other settings.
    """
    # Checked before the features, which may not exist if the settings differ.
    run = config.evaluation.checkpoint
    if run is not None:
        check_features(config, checkpoint.load_metadata(run), run)
    sources = check_embeddings(config)
    side = load_reference_side(config, sources)
    folders = {name: finished_features(name, config) for name in corpora}
    run = run or evaluated_run(config, folders["real"])
    classifier = checkpoint.load_metadata(run)
    real = split_clips(config, folders["real"]) if side is None else None
    labelled = check_corpora(folders, real, classifier, run)
    return Inputs(run, classifier, folders, labelled, real, sources, side)


def load_reference_side(config: Config, sources: Sequence[EmbeddingSource]) -> RealSide | None:
    """Reads the real side from `evaluation.reference`; returns None without it.

    Raises:
        UserError: it can't be read, or has another classifier, features or embeddings.
    """
    uri, run = config.evaluation.reference, config.evaluation.checkpoint
    if uri is None or run is None:
        return None
    classifier = checkpoint.load_metadata(run)
    check_features(config, classifier, run)
    side = read_reference(uri)
    expected = {
        "labels": classifier.labels,
        "feature_id": classifier.features.id,
        "split_digest": classifier.data["split_digest"],
        **classifier_identity(run, classifier),
    }
    digests = {source.name: source.digest for source in sources}
    check_reference(side, uri, expected, run, digests)
    return side


def write_report(
    config: Config,
    run: str,
    classifier: ClassifierMetadata,
    folders: dict[str, str],
    labelled: set[str],
    real: pa.Table | None,
    sources: list[EmbeddingSource],
    side: RealSide | None,
    out: str,
) -> dict[str, Any]:
    """Scores and measures the corpora, and writes metrics and report to a folder.

    Args:
        config: the experiment.
        run: see `Inputs`, as for the next arguments.
        classifier: see `Inputs`.
        folders: see `Inputs`.
        labelled: see `Inputs`.
        real: see `Inputs`.
        sources: see `Inputs`.
        side: see `Inputs`.
        out: the folder to write to.

    Returns:
        The content of `metrics.json`.
    """
    predictions = storage.join(out, "predictions")
    storage.delete(storage.join(out, "metrics.json"))
    # Older versions wrote this file.
    storage.delete(storage.join(out, "predictions.parquet"))
    score_corpora(folders, clips_to_score(real), run, config, predictions, side)
    metrics, _, selected, decreases = compute_metrics(
        config, run, classifier, folders, labelled, predictions, side
    )
    metrics["embeddings"], _ = embedding_metrics(
        config, sources, folders, out, metrics["reference"]["set_size"], side
    )
    if config.evaluation.reference is not None:
        metrics["reference"]["file"] = config.evaluation.reference.rpartition("/")[2]
    metrics["copies"] = copy_metrics(config, real, folders, out)
    metrics["cas"] = accuracy_scores(config, metrics["classifier"], folders)
    capacity = page_capacity(config)
    pairs = load_pairs(metrics["copies"], folders, config, capacity)
    examples = list(load_examples(folders, selected, config, capacity - 2 * len(pairs)))
    page = render(
        metrics,
        read_history(storage.join(run, "history.jsonl")),
        examples,
        {name: clips.cells for name, clips in selected.items()},
        [point for clips in selected.values() for point in clips.points],
        read_rejects(folders),
        config.to_yaml(),
        pairs,
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())
    storage.write_bytes(
        storage.join(out, "metrics.json"),
        json.dumps(metrics, indent=2, ensure_ascii=False, allow_nan=False).encode(),
    )
    storage.delete(storage.join(out, "csv"))
    if config.evaluation.csv:
        calls = [
            (storage.join(out, "csv", f"{name}.csv"), predictions, name, *decreases[name])
            for name in folders
        ]
        run_remote_all(write_csv, calls)
    if config.evaluation.tensorboard:
        write_events(metrics, storage.join(out, "tensorboard"))
    for line in metrics_table(metrics):
        logger.info("%s", line)
    for corpus, numbers in metrics["corpora"].items():
        value = numbers["accuracy"]["value"]
        if value is not None:
            prometheus.set_gauge("accuracy", value, experiment=config.name, corpus=corpus)
    return metrics


def corpus_digests(folders: dict[str, str]) -> dict[str, str]:
    """The digest of the clips of each corpus, by its name."""
    return {
        name: json.loads(storage.read_bytes(storage.join(folder, "summary.json")))["digest"]
        for name, folder in folders.items()
    }


def accuracy_scores(
    config: Config, classifier: dict[str, Any], folders: dict[str, str]
) -> dict[str, Any] | None:
    """The classification accuracy scores of the output; None without those of this classifier."""
    identity = {key: classifier[key] for key in ("run", "feature_id", "split_digest")}
    try:
        return read_scores(config.output, identity, corpus_digests(folders))
    except UserError as error:
        logger.info("note: %s: run jobs/cas.py again to show its scores in the report", error)
        return None


def read_rejects(folders: dict[str, str]) -> Rejects:
    """The rejected clips of every corpus: some of them, and the counts by reason."""
    shown: list[dict[str, str]] = []
    counts = Counter[tuple[str, str]]()
    for name, folder in folders.items():
        with storage.open_file(storage.join(folder, "rejects.parquet")) as opened:
            for batch in pq.ParquetFile(opened).iter_batches(REJECT_BATCH):
                for reason in batch["reason"].to_pylist():
                    kind = name, kind_of(reason)
                    is_counted = kind in counts or len(counts) < MAX_REJECT_KINDS
                    counts[kind if is_counted else (name, "other reasons")] += 1
                rows = batch.slice(0, max(0, REJECTS_SHOWN - len(shown)))
                shown += [{"corpus": name, **row} for row in rows.to_pylist()]
    return Rejects(shown, counts)
