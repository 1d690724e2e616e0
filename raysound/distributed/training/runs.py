"""Run folders, named by a digest of the clips, split, model and training settings."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence

import pyarrow as pa

from raysound import storage
from raysound.corpora.manifest_parts import read_manifest
from raysound.corpora.split import assign_split
from raysound.features import parquet
from raysound.models import build
from raysound.settings.fields import digest
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.training import checkpoint

logger = logging.getLogger(__name__)


def split_clips(config: Config, folder: str) -> pa.Table:
    """The usable clips of a corpus, split by `corpora.real.split`.

    Raises:
        UserError: they can't be split in this way.
    """
    manifest = read_manifest(folder)
    return parquet.without_rejects(assign_split(manifest, real_corpus(config).split), folder)


def split_digest(clips: pa.Table) -> str:
    """A digest of which clips are for training, validation and test."""
    return digest(clips.select(["clip_id", "label", "split"]).sort_by("clip_id").to_pydict())


def run_folder(config: Config, folder: str, clips: pa.Table | None = None) -> str:
    """The folder of this config's classifier.

    Args:
        config: the experiment.
        folder: of the training features.
        clips: with their `label` and `split`; None for all, split as the config says.
    """
    clips = split_clips(config, folder) if clips is None else clips
    summary = json.loads(storage.read_bytes(storage.join(folder, "summary.json")))
    identity = {
        "features": config.features.id,
        # Includes the clips' sizes and times, so that replaced recordings get another classifier.
        "corpus": summary["digest"],
        "split": split_digest(clips),
        "model": model_identity(config),
        "training": config.training.model_dump(exclude={"folds", "seeds"}),
    }
    run = f"{config.model.name}-{digest(identity)}"
    return storage.join(config.output, "training", run)


def ensemble_folder(output: str, runs: Sequence[str]) -> str:
    """The folder of the ensemble of some classifiers, by the names of their folders."""
    names = [run.rpartition("/")[2] for run in runs]
    name = f"ensemble-{names[0].rpartition('-')[0]}-{digest({'runs': names})}"
    return storage.join(output, "training", name)


def evaluated_run(config: Config, folder: str) -> str:
    """The folder of the classifier that an evaluation uses: with several seeds, their ensemble."""
    clips = split_clips(config, folder)
    runs = [run_folder(variant, folder, clips) for variant in seed_variants(config)]
    return runs[0] if len(runs) == 1 else ensemble_folder(config.output, runs)


def seed_variants(config: Config) -> list[Config]:
    """A config for each seed of the training."""
    variants = []
    for seed in range(config.training.seed, config.training.seed + config.training.seeds):
        tree = config.model_dump()
        tree["training"] |= {"seeds": 1, "seed": seed}
        variants.append(Config.model_validate(tree))
    return variants


def model_identity(config: Config) -> dict[str, str]:
    """The model's settings, with a digest of the file of weights in place of its name."""
    identity = config.model.model_dump(exclude_none=True)
    if config.model.weights is not None:
        content = checkpoint.read_weights_file(config.model.weights)
        identity["weights"] = hashlib.sha256(content).hexdigest()
    return identity


def log_weights(config: Config, classes: int) -> None:
    """Logs which of the initial weights fit the model."""
    uri = config.model.weights
    if uri is not None:
        model = build(config.model.name, classes)
        found, missing = checkpoint.matching_weights(model, checkpoint.read_weights(uri), uri)
        untrained = f"; not loaded: {', '.join(missing)}" if missing else ""
        logger.info("%d tensors loaded from %s%s", len(found), uri, untrained)
