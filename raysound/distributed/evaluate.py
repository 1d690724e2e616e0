"""The judge at work: every corpus scored, then metrics.json and report.html."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raysound import checkpoint, examples, features, storage
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.distributed.extract import finished_features
from raysound.distributed.judge import read_history, run_folder, split_clips, split_digest
from raysound.distributed.score import score_corpora
from raysound.metrics.classification import classification_report
from raysound.report.page import Example, render
from raysound.settings import Config
from raysound.sounds import open_sounds

logger = logging.getLogger(__name__)

METRICS_SCHEMA = 1


def evaluate(config: Config) -> str:
    """Scores every corpus of the config and writes the report. Returns the last line of the job."""
    # Settings that differ from the judge's are told before features that are missing for them.
    run = config.evaluation.checkpoint
    if run is not None:
        check_features(config, checkpoint.read_note(run), run)
    folders = {
        name: finished_features(name, config) for name in ("real", *config.corpora.generated)
    }
    run = run or run_folder(config, folders["real"])
    judge = checkpoint.read_note(run)
    real = split_clips(config, folders["real"])
    check_corpora(folders, real, judge, run)
    out = storage.join(config.output, "evaluation")
    predictions = storage.join(out, "predictions.parquet")
    storage.delete(storage.join(out, "metrics.json"))
    test = real.filter(pc.equal(real["split"], "test"))["clip_id"].combine_chunks()
    score_corpora(folders, test, run, config, predictions)
    metrics = measure(config, run, judge, folders, predictions)
    page = render(
        metrics,
        read_history(storage.join(run, "history.jsonl")),
        list(chosen_examples(folders, predictions, config)),
        list(rejects(folders)),
        config.to_yaml(),
    )
    storage.write_bytes(storage.join(out, "report.html"), page.encode())
    storage.write_bytes(
        storage.join(out, "metrics.json"),
        json.dumps(metrics, indent=2, ensure_ascii=False).encode(),
    )
    for line in table(metrics):
        logger.info("%s", line)
    return f"report: {storage.join(out, 'report.html')}"


def check_features(config: Config, judge: Checkpoint, run: str) -> None:
    """Raises UserError where the judge learned from other features than the config's."""
    ours, theirs = config.features.model_dump(), judge.features.model_dump()
    differing = [
        f"{key} {theirs[key]} there, {ours[key]} here" for key in ours if ours[key] != theirs[key]
    ]
    if differing:
        raise UserError(
            f"the judge in {run} hears features {judge.features.id}, the config makes "
            f"{config.features.id}: {'; '.join(differing)}"
        )


def check_corpora(folders: dict[str, str], real: pa.Table, judge: Checkpoint, run: str) -> None:
    """Raises UserError for a real split that is not the judge's, or a class it never learned."""
    if split_digest(real) != judge.data["split_digest"]:
        raise UserError(
            f"the real corpus is split otherwise than when the judge in {run} was trained: it may "
            "have learned clips that would now test it; train it again with jobs/train.py"
        )
    for name, folder in folders.items():
        unknown = set(features.usable_clips(folder)["label"].to_pylist()) - set(judge.labels)
        if unknown:
            raise UserError(
                f"{name} has classes that the judge never learned: {', '.join(sorted(unknown))}; "
                f"it knows {', '.join(judge.labels)}"
            )


def measure(
    config: Config, run: str, judge: Checkpoint, folders: dict[str, str], predictions: str
) -> dict[str, Any]:
    """The content of metrics.json."""
    corpora: dict[str, Any] = {}
    for name, folder in folders.items():
        rows = corpus_predictions(predictions, name, ["label", "probabilities"])
        if name == "real" and len(rows) == 0:
            raise UserError("the real corpus has no usable test clip: the judge can't be judged")
        truth = np.searchsorted(judge.labels, rows["label"].to_pylist())
        flat = rows["probabilities"].combine_chunks().flatten().to_numpy()
        summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
        corpora[name] = {
            "role": "real" if name == "real" else "generated",
            "found": summary["found"],
            "rejected": summary["rejected"],
            **classification_report(
                truth, flat.reshape(len(rows), len(judge.labels)), judge.labels
            ),
        }
    return {
        "schema": METRICS_SCHEMA,
        "name": config.name,
        "judge": {
            "run": run.rpartition("/")[2],
            "model": judge.model,
            "labels": judge.labels,
            "epoch": judge.metrics["epoch"],
            "validation_accuracy": judge.metrics["validation_accuracy"],
            "feature_id": judge.features.id,
            "train_clips": judge.data["train"],
            "validation_clips": judge.data["validation"],
        },
        "corpora": corpora,
    }


def corpus_predictions(predictions: str, corpus: str, columns: list[str]) -> pa.Table:
    """Some columns of one corpus's predictions."""
    with storage.open_file(predictions) as file:
        return pq.read_table(file, columns=columns, filters=[("corpus", "=", corpus)])


def chosen_examples(folders: dict[str, str], predictions: str, config: Config) -> Iterator[Example]:
    """The clips that the report shows."""
    for name, folder in folders.items():
        rows = corpus_predictions(
            predictions, name, ["clip_id", "label", "prediction", "probability"]
        )
        shown = rows.take(examples.choose(rows, config.evaluation.examples))
        manifest = storage.read_table(
            storage.join(folder, "manifest.parquet"), ["clip_id", "path", "offset", "size"]
        )
        clips = manifest.take(pc.index_in(shown["clip_id"], manifest["clip_id"].combine_chunks()))
        for row, sound in zip(shown.to_pylist(), open_sounds(clips), strict=True):
            example = examples.load(name, row, sound, config.features)
            if example is not None:
                yield example


def rejects(folders: dict[str, str]) -> Iterator[dict[str, str]]:
    """Every rejected clip of every corpus."""
    for name, folder in folders.items():
        for row in storage.read_table(storage.join(folder, "rejects.parquet")).to_pylist():
            yield {"corpus": name, **row}


def table(metrics: dict[str, Any]) -> Iterator[str]:
    """The corpora and their scores as lines of text."""
    width = max(len(name) for name in metrics["corpora"]) + len(" (test)")
    yield f"{'corpus':<{width}}  clips  rejected  accuracy  95 % interval   top-3"
    for name, corpus in metrics["corpora"].items():
        shown = f"{name} (test)" if corpus["role"] == "real" else name
        if not corpus["clips"]:
            yield f"{shown:<{width}}  {0:5d}  {corpus['rejected']:8d}"
            continue
        accuracy, top = corpus["accuracy"], corpus["top_3"]
        yield (
            f"{shown:<{width}}  {corpus['clips']:5d}  {corpus['rejected']:8d}  "
            f"{accuracy['value']:7.1%}   {accuracy['low']:6.1%} – {accuracy['high']:6.1%}  "
            f"{top['value']:6.1%}"
        )
