"""The training job: one classifier, or one for each fold and seed and how they do."""

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
from raysound.corpora.checks import folds_of
from raysound.corpora.manifest_parts import read_manifest
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.cluster.failures import RETRIES, translate_ray_errors
from raysound.distributed.cluster.placement import max_concurrent_trainings
from raysound.distributed.cluster.session import cancel_running, on_ray
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.feature_loading import fits_in_store
from raysound.distributed.training.runs import (
    run_folder,
    split_clips,
)
from raysound.distributed.training.trainer import (
    check_clips,
    train_classifier,
    train_run,
    training_shown,
)
from raysound.errors import UserError
from raysound.evaluation.predictions import read_predictions
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.cross_validation import by_number, summarise
from raysound.wording import counted

logger = logging.getLogger(__name__)


class Variant(NamedTuple):
    """One classifier of several.

    Attributes:
        fold: that tests it; None where the config's own split does.
        seed: of its training.
        config: of this classifier alone.
        name: what it is called in the log.
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
        UserError: features that are missing, clips that no classifier can be trained on, or a loss
            that is not finite.
    """
    real_corpus(config)
    return cross_validate(config) if config.training.trains_several else train_classifier(config)


def cross_validate(config: Config) -> str:
    """Trains a classifier for each fold and seed, tests each on its test clips, and sums up.

    As many are trained at a time as the cluster has room for.

    Returns:
        The file of the sums: `training/cross-validation-<model>-<hash>.json`.
    """
    folder = finished_features("real", config)
    classifiers = list(variants(config, folder))
    for classifier in {classifier.fold: classifier for classifier in classifiers}.values():
        # Splits that fail are reported now, not after hours of the other folds' training.
        split_clips(classifier.config, folder)
    results = trained_together(classifiers, folder)
    summary = summarise(results)
    name = f"{config.model.name}-{digest({'runs': [row['run'] for row in results]})}"
    uri = storage.join(config.output, "training", f"cross-validation-{name}.json")
    storage.write_bytes(uri, json.dumps(summary, indent=2).encode())
    return uri


def variants(config: Config, folder: str) -> Iterator[Variant]:
    """The classifiers to be trained, fold by fold.

    Raises:
        UserError: the corpus has no folds, or just one.
    """
    folds: list[str | None] = [None]
    if config.training.folds == "all":
        manifest = read_manifest(folder, ["fold"])
        folds = [*sorted(folds_of(manifest), key=by_number)]
    for fold in folds:
        for seed in range(config.training.seed, config.training.seed + config.training.seeds):
            tree = config.model_dump()
            tree["training"] |= {"folds": None, "seeds": 1, "seed": seed}
            if fold is not None:
                tree["corpora"]["real"]["split"] |= {"test_folds": [fold], "validation_folds": []}
            name = f"seed {seed}" if fold is None else f"fold {fold}, seed {seed}"
            yield Variant(fold, seed, Config.model_validate(tree), name)


def trained_together(classifiers: list[Variant], folder: str) -> list[dict[str, Any]]:
    """Trains each classifier in a Ray task and tests it; the results are in the order given."""
    together = min(
        max_concurrent_trainings(classifiers[0].config, is_streamed=False), len(classifiers)
    )
    if not fits_in_store(folder, together):
        together = min(max_concurrent_trainings(classifiers[0].config, is_streamed=True), together)
    options = {key: value for key, value in os.environ.items() if key.startswith("RAY_TRAIN_")}
    task = ray.remote(
        num_cpus=0, max_retries=RETRIES, runtime_env={"env_vars": options} if options else None
    )(train_run)
    waiting = [*classifiers]
    running: dict[ray.ObjectRef, tuple[Variant, str, ExitStack]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with ExitStack() as stack:
        while waiting or running:
            while waiting and len(running) < together:
                classifier = waiting.pop(0)
                clips = split_clips(classifier.config, folder)
                run = run_folder(classifier.config, folder, clips)
                block = stack.enter_context(ExitStack())
                block.enter_context(sole_writer(run))
                if checkpoint.is_complete(run):
                    logger.info("%s: %s is trained already", classifier.name, run)
                    block.close()
                    rows[classifier.name] = fold_row(classifier, run, folder)
                    continue
                check_clips(classifier.config, clips)
                block.enter_context(
                    training_shown(classifier.config, folder, clips, run, classifier.name, together)
                )
                call = task.remote(classifier.config, folder, clips, run, together)
                stack.callback(cancel_running, [call])
                running[call] = (classifier, run, block)
            for call in ray.wait([*running])[0] if running else ():
                classifier, run, block = running.pop(call)
                with translate_ray_errors(f"the training {classifier.name}"):
                    ray.get(call)
                block.close()
                rows[classifier.name] = fold_row(classifier, run, folder)
    return [rows[classifier.name] for classifier in classifiers]


def fold_row(classifier: Variant, run: str, folder: str) -> dict[str, Any]:
    """One classifier's row of the sums: how it does on its test clips."""
    split = split_clips(classifier.config, folder)
    test = split.filter(pc.equal(split["split"], "test"))
    if not len(test):
        raise UserError("no test clip: name corpora.real.split.test_folds, or raise test_fraction")
    predictions = storage.join(run, "predictions")
    score_corpora({"real": folder}, test, run, classifier.config, predictions)
    clips = right = 0
    for rows in read_predictions(predictions, "real", ["label", "prediction"]):
        clips += len(rows)
        right += pc.sum(pc.equal(rows["label"], rows["prediction"])).as_py() or 0
    logger.info(
        "%s: %.1f %% of %s", classifier.name, 100 * right / clips, counted(clips, "test clip")
    )
    return {
        "fold": classifier.fold,
        "seed": classifier.seed,
        "clips": clips,
        "right": right,
        "accuracy": right / clips,
        "run": run,
    }
