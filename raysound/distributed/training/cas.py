"""Classification accuracy scores: classifiers trained on generated clips, tested on real ones."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound import storage
from raysound.corpora.checks import check_classes, check_clips
from raysound.distributed.cluster.session import run_remote_all
from raysound.distributed.evaluation.evaluate import corpus_digests
from raysound.distributed.evaluation.input_checks import (
    check_corpora,
    check_features,
    usable_labels,
)
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import seed_variants, split_clips
from raysound.distributed.training.trainer import train_classifier, write_ensemble
from raysound.errors import UserError
from raysound.evaluation.cas import CAS_SCHEMA, clips_by_class, match_class_counts
from raysound.evaluation.predictions import read_predictions
from raysound.metrics.intervals import paired_difference, paired_p_value, proportion_estimate
from raysound.metrics.significance import holm, significant
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.training import checkpoint

logger = logging.getLogger(__name__)


def cas(config: Config) -> str:
    """Trains on each generated corpus and on as many real clips, and tests both on real clips.

    Returns:
        The last line of the job.

    Raises:
        UserError: there is no generated corpus, no real test clip, or too few classes in common.
    """
    real_corpus(config)
    names = list(config.corpora.generated)
    if not names:
        raise UserError("the config has no corpora.generated to train on")
    folders = {name: finished_features(name, config) for name in ("real", *names)}
    real = split_clips(config, folders["real"])
    test = real.filter(pc.equal(real["split"], "test"))
    if not len(test):
        raise UserError("no real test clip: name corpora.real.split.test_folds")
    # Errors are reported before the first training, not after hours.
    usable = run_remote_all(usable_labels, [(folder,) for folder in folders.values()])
    labels = dict(zip(folders, usable, strict=True))
    check_classes(labels)
    for name in [name for name in names if not labels[name]]:
        logger.info("%s is left out: its clips have no labels", name)
        names.remove(name)
        del folders[name]
    if not names:
        raise UserError("no generated corpus has labels: a classifier can't be trained on them")
    sides = {}
    for name in names:
        generated = split_clips(generated_split(config), folders[name])
        check_clips(generated_split(config), generated, name)
        sides[name] = match_class_counts(real, generated)
        for side, corpus in zip(sides[name], ("real", name), strict=True):
            check_clips(generated_split(config), side, corpus)
    classifier = config.evaluation.checkpoint or train_on_real(config)
    metadata = checkpoint.load_metadata(classifier)
    check_features(config, metadata, classifier)
    check_corpora(folders, real, metadata, classifier)
    predictions = score_run(folders, test, classifier, config)
    calls = [(predictions, name) for name in folders]
    accuracies = dict(zip(folders, run_remote_all(accuracy_on_test, calls), strict=True))
    rows = {
        name: score_row(name, sides[name], config, folders["real"], test)
        | {"real_to_generated": accuracies[name]}
        for name in names
    }
    for row in rows.values():
        row["missing_classes"] = sorted({*metadata.labels} - {*row["clips_by_class"]})
    adjusted = holm([row["p_value"] for row in rows.values()])
    for row, p in zip(rows.values(), adjusted, strict=True):
        row |= {"p_adjusted": p, "significant": significant(p)}
    result = {
        "schema": CAS_SCHEMA,
        "name": config.name,
        "classifier": {
            "run": run_name(classifier),
            "feature_id": metadata.features.id,
            "split_digest": metadata.data["split_digest"],
            "train_clips": metadata.data["train"],
            **accuracies["real"],
        },
        "corpora": corpus_digests(folders),
        "test_clips": len(test),
        "generated": rows,
    }
    uri = storage.join(config.output, "cas", "cas.json")
    storage.write_bytes(uri, json.dumps(result, indent=2, ensure_ascii=False).encode())
    for line in score_table(result):
        logger.info("%s", line)
    if storage.exists(storage.join(config.output, "evaluation", "report.html")):
        logger.info("run jobs/evaluate.py again to show these scores in the report")
    return f"classification accuracy scores: {uri}"


def train_on_real(config: Config) -> str:
    """Trains the classifier of the evaluation: with several seeds, their ensemble."""
    variants = [single_classifier(variant) for variant in seed_variants(config)]
    if len(variants) == 1:
        return train_classifier(variants[0], "real")
    runs = [train_classifier(one, f"real, seed {one.training.seed}") for one in variants]
    return write_ensemble(config.output, runs)


def score_row(
    name: str,
    sides: tuple[pa.Table, pa.Table],
    config: Config,
    folder: str,
    test: pa.Table,
) -> dict[str, Any]:
    """Trains and tests both classifiers of one generator.

    Args:
        name: of the generated corpus.
        sides: the real and the generated clips to train on.
        config: the experiment.
        folder: of the real features.
        test: the real test clips.
    """
    real, generated = sides
    tests = test.filter(pc.is_in(test["label"], pc.unique(real["label"].combine_chunks())))
    runs = {
        "real": train_classifier(
            single_classifier(config), f"real clips, as many as {name}", clips=real
        ),
        "generated": train_classifier(
            single_classifier(config), name, corpus=name, clips=generated
        ),
    }
    predictions = [
        score_run({"real": folder}, tests, runs[side], config) for side in ("real", "generated")
    ]
    correct = paired_correct(*map(read_test_predictions, predictions))
    real_to_real, generated_to_real = run_remote_all(
        accuracy_on_test, [(uri, "real") for uri in predictions]
    )
    return {
        "runs": {side: run_name(run) for side, run in runs.items()},
        "train_clips": pc.sum(pc.equal(real["split"], "train")).as_py(),
        "validation_clips": pc.sum(pc.equal(real["split"], "validation")).as_py(),
        "test_clips": len(tests),
        "clips_by_class": clips_by_class(real),
        "real_to_real": real_to_real,
        "generated_to_real": generated_to_real,
        "lost": accuracy_loss(*correct),
        "p_value": paired_p_value(*correct),
    }


def run_name(run: str) -> str:
    """The last part of a run folder."""
    return run.rstrip("/").rpartition("/")[2]


def single_classifier(config: Config) -> Config:
    """The config without folds and seeds, for one classifier."""
    tree = config.model_dump()
    tree["training"] |= {"folds": None, "seeds": 1}
    return Config.model_validate(tree)


def generated_split(config: Config) -> Config:
    """The config of one classifier of generated clips, none of which are held out for tests."""
    tree = single_classifier(config).model_dump()
    tree["corpora"]["real"]["split"] |= {
        "test_folds": [],
        "validation_folds": [],
        "test_fraction": 0,
    }
    if not config.training.needs_validation:
        tree["corpora"]["real"]["split"]["validation_fraction"] = 0
    return Config.model_validate(tree)


def score_run(folders: dict[str, str], test: pa.Table, run: str, config: Config) -> str:
    """Scores some corpora, only the test clips of `real`, and returns the predictions' folder."""
    predictions = storage.join(config.output, "cas", "predictions", run_name(run))
    score_corpora(folders, test, run, config, predictions)
    return predictions


def read_test_predictions(predictions: str) -> pa.Table:
    """Predictions of the real test clips, for `paired_correct`."""
    columns = ["clip_id", "label", "prediction"]
    return pa.concat_tables(read_predictions(predictions, "real", columns))


def paired_correct(first: pa.Table, second: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """Whether two classifiers predicted each clip correctly, in the order of the first table."""
    second = second.take(pc.index_in(first["clip_id"], second["clip_id"].combine_chunks()))
    correct = [pc.equal(rows["label"], rows["prediction"]).to_numpy() for rows in (first, second)]
    return correct[0], correct[1]


def accuracy_loss(real: np.ndarray, generated: np.ndarray) -> dict[str, Any]:
    """The accuracy lost by training on generated clips, with its confidence interval."""
    difference = paired_difference(real, generated)
    # The adjusted p-value decides on significance.
    del difference["significant"]
    return difference


def accuracy_on_test(predictions: str, corpus: str) -> dict[str, Any]:
    """Runs in a Ray task: accuracy on the clips of a corpus, in total and per label."""
    clips, right = Counter[str](), Counter[str]()
    for rows in read_predictions(predictions, corpus, ["label", "prediction"]):
        clips.update(rows["label"].to_pylist())
        is_right = pc.equal(rows["label"], rows["prediction"])
        right.update(rows["label"].filter(is_right).to_pylist())
    return {
        "accuracy": proportion_estimate(right.total(), clips.total()),
        "per_class": {
            label: proportion_estimate(right[label], clips[label]) for label in sorted(clips)
        },
    }


def score_table(result: dict[str, Any]) -> Iterator[str]:
    """The scores as lines of text."""
    classifier, rows = result["classifier"], result["generated"]
    width = max(map(len, ("trained on", *rows)))
    yield (
        f"{'trained on':<{width}}   clips  tested on real     on as many real    lost"
        "                     p   real → generated"
    )

    def cell(measure: dict[str, Any]) -> str:
        return f"{measure['value']:6.1%} ({measure['low']:.0%}–{measure['high']:.0%})"

    yield f"{'real':<{width}}  {classifier['train_clips']:6d}  {cell(classifier['accuracy'])}"
    for name, row in rows.items():
        difference = row["lost"]
        interval = f"({difference['low']:+.0%} to {difference['high']:+.0%})"
        p = "<0.001" if row["p_adjusted"] < 0.001 else f"{row['p_adjusted']:6.3f}"
        yield (
            f"{name:<{width}}  {row['train_clips']:6d}  "
            f"{cell(row['generated_to_real']['accuracy']):<17}  "
            f"{cell(row['real_to_real']['accuracy']):<17}  "
            f"{difference['value']:+6.1%} {interval:<15}  {p}  "
            f"{cell(row['real_to_generated']['accuracy'])}"
        )
    for name, row in rows.items():
        if row["missing_classes"]:
            yield (
                f"note: {name} has no clip to train on of {', '.join(row['missing_classes'])}: "
                f"compared on the other {len(row['clips_by_class'])} classes, "
                f"{row['test_clips']} of {result['test_clips']} test clips"
            )
