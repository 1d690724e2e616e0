"""Checkpoints of a trained classifier: weights as safetensors, metadata as JSON."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import safetensors.torch
import torch
from torch import Tensor

from raysound import storage
from raysound.errors import UserError
from raysound.models import EmbeddingClassifier, build
from raysound.models.combined import Ensemble, MeanOfCrops
from raysound.settings.features import FeatureSettings
from raysound.training.inference import Normalisation
from raysound.training.loop import TrainState

WEIGHTS = "model.safetensors"
METADATA_FILE = "checkpoint.json"
PROGRESS = "progress.pt"


@dataclass(frozen=True)
class ClassifierMetadata:
    """Content of `checkpoint.json`.

    Attributes:
        model: name in `raysound.models.MODELS`.
        labels: class names in the order of the logits.
        features: feature settings of the training data.
        normalisation: normalisation of the training set.
        training: training settings, including the seed.
        metrics: metrics of the epoch of the checkpoint.
        data: number of clips per split, and the digest of the split.
        versions: versions of the packages used for training.
        members: number of classifiers in an ensemble; 1 for a single one.
    """

    model: str
    labels: list[str]
    features: FeatureSettings
    normalisation: Normalisation
    training: dict[str, Any]
    metrics: dict[str, float | None]
    data: dict[str, Any]
    versions: dict[str, str]
    members: int = 1


def read_weights(uri: str) -> dict[str, Tensor]:
    """Reads tensors by name from a safetensors file or a PyTorch state dict; executes no code.

    A state dict may be under the key `state_dict`, as in checkpoints of Lightning.

    Raises:
        UserError: the file can't be read, or it contains no weights.
    """
    data = read_weights_file(uri)
    try:
        found = safetensors.torch.load(data)
    except safetensors.SafetensorError:
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch raise different errors
            raise UserError(
                f"model.weights: {uri} is neither a safetensors file nor a state dict of tensors"
            ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"model.weights: {uri} contains no named tensors")
    return tensors


def read_weights_file(uri: str) -> bytes:
    """Content of the file for `read_weights`. Raises UserError if it can't be read."""
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise UserError(f"model.weights: {uri} can't be read: {error}") from error


def matching_weights(
    model: EmbeddingClassifier, weights: Mapping[str, Tensor], uri: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Selects the weights that match a model by name and shape.

    Args:
        model: the classifier.
        weights: tensors by name; names may begin with `model.` or `module.`, the prefixes of
            wrapper modules.
        uri: file of the weights, for the error message.

    Returns:
        The matching weights, and the names of the model without a weight.

    Raises:
        UserError: no weight matches.
    """
    state = model.state_dict()

    def without(prefix: str) -> dict[str, Tensor]:
        named = {name.removeprefix(prefix): value for name, value in weights.items()}
        return {
            name: value
            for name, value in named.items()
            if name in state and value.shape == state[name].shape
        }

    best = max(map(without, ("", "model.", "module.")), key=len)
    if not best:
        raise UserError(
            f"model.weights: none of the {len(weights)} tensors of {uri} matches the model by name "
            "and shape: is it for another model.name?"
        )
    return best, [name for name in state if name not in best]


def save(folder: str, weights: Mapping[str, Tensor], checkpoint: ClassifierMetadata) -> None:
    """Writes weights, then metadata: a folder with metadata has a complete checkpoint."""
    weights = {key: value.contiguous().cpu() for key, value in weights.items()}
    storage.write_bytes(storage.join(folder, WEIGHTS), safetensors.torch.save(weights))
    metadata = {
        **checkpoint.__dict__,
        "features": checkpoint.features.model_dump(),
        "feature_id": checkpoint.features.id,
        "normalisation": checkpoint.normalisation.__dict__,
    }
    storage.write_bytes(
        storage.join(folder, METADATA_FILE), json.dumps(metadata, indent=2).encode()
    )


def save_ensemble(folder: str, runs: Sequence[str]) -> None:
    """Writes a classifier whose probabilities are the mean of those of several classifiers.

    Args:
        folder: to write to.
        runs: folders of classifiers with the same model, labels, features and training clips.
    """
    first = load_metadata(runs[0])
    weights = {
        f"models.{index}.{name}": value
        for index, run in enumerate(runs)
        for name, value in load_weights(run).items()
    }
    # The accuracy of the ensemble on validation clips is not known.
    metrics = {**first.metrics, "validation_accuracy": None}
    save(folder, weights, replace(first, members=len(runs), metrics=metrics))


class Weights(NamedTuple):
    """Weights after an epoch of training, each by name.

    Attributes:
        model: weights of the model.
        averaged: exponential moving average of the weights; empty if it is not used.
    """

    model: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]


def save_progress(folder: str, weights: Weights, progress: TrainState) -> None:
    """Writes the training state after an epoch to one file, atomically."""
    file = io.BytesIO()
    torch.save({"weights": weights._asdict(), "state": vars(progress)}, file)
    storage.write_bytes(storage.join(folder, PROGRESS), file.getvalue())


def load_progress(folder: str) -> tuple[Weights, TrainState] | None:
    """Reads the file of `save_progress`; None before the first epoch. Executes no code."""
    uri = storage.join(folder, PROGRESS)
    if not storage.exists(uri):
        return None
    content = io.BytesIO(storage.read_bytes(uri))
    saved = torch.load(content, map_location="cpu", weights_only=True)
    return Weights(**saved["weights"]), TrainState(**saved["state"])


def is_complete(folder: str) -> bool:
    """True if the folder has a complete checkpoint."""
    return storage.exists(storage.join(folder, METADATA_FILE))


def load_metadata(folder: str) -> ClassifierMetadata:
    """Reads `checkpoint.json`.

    Raises:
        UserError: there is no checkpoint in the folder.
    """
    if not is_complete(folder):
        raise UserError(f"{folder} contains no checkpoint: run jobs/train.py first")
    metadata = json.loads(storage.read_bytes(storage.join(folder, METADATA_FILE)))
    del metadata["feature_id"]
    metadata["features"] = FeatureSettings(**metadata["features"])
    metadata["normalisation"] = Normalisation(
        tuple(metadata["normalisation"]["mean"]), tuple(metadata["normalisation"]["std"])
    )
    return ClassifierMetadata(**metadata)


def load_weights(folder: str) -> dict[str, Tensor]:
    """Reads the weights of a classifier, on the CPU."""
    return safetensors.torch.load(storage.read_bytes(storage.join(folder, WEIGHTS)))


def load_model(folder: str, checkpoint: ClassifierMetadata) -> EmbeddingClassifier:
    """Loads the trained model on the CPU, in eval mode."""
    models = [build(checkpoint.model, len(checkpoint.labels)) for _ in range(checkpoint.members)]
    model = models[0] if checkpoint.members == 1 else Ensemble(models)
    model.load_state_dict(load_weights(folder))
    crops = checkpoint.training.get("test_crops")
    if crops is not None:
        frames = checkpoint.features.frames_of(checkpoint.training["crop_length"])
        model = MeanOfCrops(model, frames, crops)
    return model.eval()
