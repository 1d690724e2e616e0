"""The training job: one classifier, or a cross-validation over folds and seeds."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pyarrow.compute as pc
import ray

from raysound import storage
from raysound.corpora.checks import check_clips, folds_of
from raysound.corpora.manifest_parts import read_manifest
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.failures import RETRIES, translate_ray_errors
from raysound.distributed.cluster.placement import max_concurrent_trainings
from raysound.distributed.cluster.session import cancel_running, on_ray
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.feature_loading import fits_in_store
from raysound.distributed.training.runs import run_folder, seed_variants, split_clips
from raysound.distributed.training.trainer import (
    log_training,
    train_classifier,
    train_run,
    write_ensemble,
)
from raysound.errors import UserError
from raysound.evaluation.predictions import read_predictions
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.cross_validation import natural_sort_key, summarise
from raysound.wording import counted

logger = logging.getLogger(__name__)


class Variant(NamedTuple):
    """One classifier of a cross-validation.

    Attributes:
        fold: the test fold; None for the config's own split.
        seed: of its training.
        config: for this classifier.
        name: in the log.
    """

    fold: str | None
    seed: int
    config: Config
    name: str


@on_ray
def train(config: Config) -> str:
    """Trains the classifier on the real corpus, or one for each fold and seed.

    The corpus must be extracted. A finished training is not repeated; one that was interrupted
    resumes after its last completed epoch.

    Args:
        config: the experiment.

    Returns:
        The run folder of the classifier, a path or URI, which `Classifier.load` reads. With
        `training.folds` or `training.seeds` the JSON file of the cross-validation, which names the
        run folder of each classifier.

    Raises:
        UserError: features are missing, the clips can't be trained on, or the loss is not finite.
    """
    real_corpus(config)
    return cross_validate(config) if config.training.trains_several else train_classifier(config)


def cross_validate(config: Config) -> str:
    """Trains a classifier for each fold and seed, and tests each on its test clips.

    The cluster's resources limit how many are trained at a time.

    Returns:
        The file of the summary: `training/cross-validation-<model>-<hash>.json`.
    """
    folder = finished_features("real", config)
    classifiers = list(variants(config, folder))
    for classifier in {classifier.fold: classifier for classifier in classifiers}.values():
        # Invalid splits are reported before any training, not after hours.
        split_clips(classifier.config, folder)
    results = train_variants(classifiers, folder)
    summary = summarise(results, combine_seeds(classifiers, results, folder))
    name = f"{config.model.name}-{digest({'runs': [row['run'] for row in results]})}"
    uri = storage.join(config.output, "training", f"cross-validation-{name}.json")
    storage.write_bytes(uri, json.dumps(summary, indent=2).encode())
    return uri


def variants(config: Config, folder: str) -> Iterator[Variant]:
    """The classifiers to train, fold by fold.

    Raises:
        UserError: the corpus has no folds, or only one.
    """
    folds: list[str | None] = [None]
    if config.training.folds == "all":
        manifest = read_manifest(folder, ["fold"])
        folds = [*sorted(folds_of(manifest), key=natural_sort_key)]
    for fold in folds:
        for variant in seed_variants(config):
            seed, tree = variant.training.seed, variant.model_dump()
            tree["training"]["folds"] = None
            if fold is not None:
                tree["corpora"]["real"]["split"] |= {"test_folds": [fold], "validation_folds": []}
            name = f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"
            yield Variant(fold, seed, Config.model_validate(tree), name)


def train_variants(classifiers: list[Variant], folder: str) -> list[dict[str, Any]]:
    """Trains each classifier in a Ray task and tests it; returns the results in order."""
    concurrent = min(
        max_concurrent_trainings(classifiers[0].config, is_streamed=False), len(classifiers)
    )
    if not fits_in_store(folder, concurrent):
        concurrent = min(
            max_concurrent_trainings(classifiers[0].config, is_streamed=True), concurrent
        )
    options = {key: value for key, value in os.environ.items() if key.startswith("RAY_TRAIN_")}
    task = ray.remote(
        num_cpus=0, max_retries=RETRIES, runtime_env={"env_vars": options} if options else None
    )(train_run)
    waiting = [*classifiers]
    running: dict[ray.ObjectRef, tuple[Variant, str, ExitStack]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < concurrent:
                classifier = waiting.pop(0)
                clips = split_clips(classifier.config, folder)
                run = run_folder(classifier.config, folder, clips)
                block = stack.enter_context(ExitStack())
                block.enter_context(sole_writer(run))
                if checkpoint.is_complete(run):
                    logger.info("%s: %s is trained already", classifier.name, run)
                    block.close()
                    rows[classifier.name] = score_variant(classifier, run, folder)
                    continue
                check_clips(classifier.config, clips)
                block.enter_context(
                    log_training(classifier.config, folder, clips, run, classifier.name, concurrent)
                )
                call = task.remote(classifier.config, folder, clips, run, concurrent)
                stack.callback(cancel_running, [call])
                running[call] = (classifier, run, block)
            for call in ray.wait([*running])[0] if running else ():
                classifier, run, block = running.pop(call)
                with translate_ray_errors(f"the training {classifier.name}"):
                    ray.get(call)
                block.close()
                rows[classifier.name] = score_variant(classifier, run, folder)
    return [rows[classifier.name] for classifier in classifiers]


def combine_seeds(
    classifiers: list[Variant], results: list[dict[str, Any]], folder: str
) -> list[dict[str, Any]]:
    """Writes and tests the ensemble of the seeds of each fold; returns no row for one seed."""
    rows = []
    for fold in dict.fromkeys(classifier.fold for classifier in classifiers):
        runs = [row["run"] for row in results if row["fold"] == fold]
        if len(runs) == 1:
            continue
        variant = next(classifier for classifier in classifiers if classifier.fold == fold)
        run = write_ensemble(variant.config.output, runs)
        name = "ensemble" if fold is None else f"fold {fold}, ensemble"
        with sole_writer(run):
            rows.append(score_variant(variant._replace(name=name), run, folder))
    return rows


def score_variant(classifier: Variant, run: str, folder: str) -> dict[str, Any]:
    """Scores a classifier's test clips; returns its row of the summary."""
    split = split_clips(classifier.config, folder)
    test = split.filter(pc.equal(split["split"], "test"))
    if not len(test):
        raise UserError("no test clip: set corpora.real.split.test_folds, or raise test_fraction")
    predictions = storage.join(run, "predictions")
    score_corpora({"real": folder}, test, run, classifier.config, predictions)
    clips = correct = 0
    for rows in read_predictions(predictions, "real", ["label", "prediction"]):
        clips += len(rows)
        correct += pc.sum(pc.equal(rows["label"], rows["prediction"])).as_py() or 0
    logger.info(
        "%s: %.1f %% of %s", classifier.name, 100 * correct / clips, counted(clips, "test clip")
    )
    return {
        "fold": classifier.fold,
        "seed": classifier.seed,
        "clips": clips,
        "right": correct,
        "accuracy": correct / clips,
        "run": run,
    }
