"""The classifier at work: every corpus scored, then metrics.json and report.html."""

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
from raysound.distributed.evaluation.examples import chosen_examples, chosen_pairs, windows_of_page
from raysound.distributed.evaluation.input_checks import (
    check_corpora,
    check_features,
    clips_to_score,
)
from raysound.distributed.evaluation.measure import compute_metrics
from raysound.distributed.evaluation.real_side import classifier_identity
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import (
    run_folder,
    split_clips,
)
from raysound.errors import UserError
from raysound.evaluation.cas import read_scores
from raysound.evaluation.embedding_parts import EmbeddingSource
from raysound.evaluation.predictions import write_csv
from raysound.evaluation.reference_file import RealSide, check_reference, read_reference
from raysound.report.events import write_events
from raysound.report.page import (
    REJECTS_SHOWN,
    Rejects,
    render,
)
from raysound.report.parts import kind_of
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.history import read_history

logger = logging.getLogger(__name__)
# Rows of a table of rejects that are read at a time.
REJECTS_TOGETHER = 8192
# Of reasons that differ in more than numbers and paths.
MOST_KINDS = 1000


class Inputs(NamedTuple):
    """What an evaluation begins with.

    Attributes:
        run: the classifier's folder.
        classifier: its checkpoint.
        folders: of the features, by the corpus's name.
        labelled: the corpora whose clips have labels.
        real: the usable real clips with their split; None where `evaluation.reference` is given.
        sources: of other embeddings.
        side: the real side that `evaluation.reference` holds; None without it.
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
        `raysound/report/metrics.schema.json` describes.

    Raises:
        UserError: features, classifier, an embedding's model or `evaluation.reference` are missing,
            or are of other settings.
    """
    inputs = checked_inputs(config, config.corpora.names)
    out = storage.join(config.output, "evaluation")
    with sole_writer(out):
        return write_report(config, *inputs, out)


def checked_inputs(config: Config, corpora: Sequence[str]) -> Inputs:
    """Finds what an evaluation of some corpora begins with, and checks that it fits together.

    Raises:
        UserError: features, classifier, an embedding's model or `evaluation.reference` are missing,
            or are of other settings.
    """
    # Settings that differ from the classifier's are reported first: their features may be missing.
    run = config.evaluation.checkpoint
    if run is not None:
        check_features(config, checkpoint.load_metadata(run), run)
    sources = check_embeddings(config)
    side = published_side(config, sources)
    folders = {name: finished_features(name, config) for name in corpora}
    run = run or run_folder(config, folders["real"])
    classifier = checkpoint.load_metadata(run)
    real = split_clips(config, folders["real"]) if side is None else None
    labelled = check_corpora(folders, real, classifier, run)
    return Inputs(run, classifier, folders, labelled, real, sources, side)


def published_side(config: Config, sources: Sequence[EmbeddingSource]) -> RealSide | None:
    """The real side that `evaluation.reference` holds; None without it.

    Raises:
        UserError: it can't be read, or is of another classifier, or of other features or
            embeddings than the config's.
    """
    uri, run = config.evaluation.reference, config.evaluation.checkpoint
    if uri is None or run is None:
        return None
    classifier = checkpoint.load_metadata(run)
    check_features(config, classifier, run)
    side = read_reference(uri)
    known = {
        "labels": classifier.labels,
        "feature_id": classifier.features.id,
        "split_digest": classifier.data["split_digest"],
        **classifier_identity(run, classifier),
    }
    check_reference(side, uri, known, run, {one.name: one.digest for one in sources})
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
    """Scores the corpora, measures them, and writes it all to a folder.

    Args:
        config: the experiment.
        run: the classifier's folder.
        classifier: its checkpoint.
        folders: of the features, by the corpus's name.
        labelled: the corpora whose clips have labels.
        real: the usable real clips with their split; None where there is a `side`.
        sources: of other embeddings.
        side: the real side, where `evaluation.reference` gives it.
        out: the folder to write to.

    Returns:
        The content of `metrics.json`.
    """
    predictions = storage.join(out, "predictions")
    storage.delete(storage.join(out, "metrics.json"))
    # Of a version that wrote one file.
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
    room = windows_of_page(config)
    pairs = chosen_pairs(metrics["copies"], folders, config, room)
    examples = list(chosen_examples(folders, selected, config, room - 2 * len(pairs)))
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
    """What stands for the clips of each corpus, by its name."""
    return {
        name: json.loads(storage.read_bytes(storage.join(folder, "summary.json")))["digest"]
        for name, folder in folders.items()
    }


def accuracy_scores(
    config: Config, classifier: dict[str, Any], folders: dict[str, str]
) -> dict[str, Any] | None:
    """The output's classification accuracy scores; None without those of this classifier."""
    same = {key: classifier[key] for key in ("run", "feature_id", "split_digest")}
    try:
        return read_scores(config.output, same, corpus_digests(folders))
    except UserError as error:
        logger.info("note: %s: run jobs/cas.py again to show its scores in the report", error)
        return None


def read_rejects(folders: dict[str, str]) -> Rejects:
    """The rejected clips of every corpus: some of them, and how many of each kind."""
    shown: list[dict[str, str]] = []
    counts = Counter[tuple[str, str]]()
    for name, folder in folders.items():
        with storage.open_file(storage.join(folder, "rejects.parquet")) as opened:
            for batch in pq.ParquetFile(opened).iter_batches(REJECTS_TOGETHER):
                for reason in batch["reason"].to_pylist():
                    kind = name, kind_of(reason)
                    known = kind in counts or len(counts) < MOST_KINDS
                    counts[kind if known else (name, "other reasons")] += 1
                left = batch.slice(0, max(0, REJECTS_SHOWN - len(shown)))
                shown += [{"corpus": name, **row} for row in left.to_pylist()]
    return Rejects(shown, counts)
