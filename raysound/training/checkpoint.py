"""A trained classifier on disk: weights as safetensors, and as JSON what their use requires."""

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
    """What `checkpoint.json` holds.

    Attributes:
        model: name in `raysound.models.MODELS`.
        labels: class names in the order of the logits.
        features: what the log-mels it learned from were made with.
        normalisation: of the training set.
        training: the training settings, seed included.
        metrics: of the epoch it was taken at.
        data: clips a split, and the digest of the split it was trained with.
        versions: of the packages that made it.
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
    """Tensors by name, of a safetensors file or of a PyTorch state dict, which may run no code.

    A state dict may lie under the key `state_dict`, as in checkpoints of Lightning.

    Raises:
        UserError: there is no such file, or it holds no weights.
    """
    data = read_weights_file(uri)
    try:
        found = safetensors.torch.load(data)
    except safetensors.SafetensorError:
        try:
            found = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
        except Exception as error:  # zip, pickle and torch each have errors of their own
            raise UserError(
                f"model.weights: {uri} is neither a safetensors file nor a state dict of tensors"
            ) from error
    found = found.get("state_dict", found) if isinstance(found, dict) else {}
    tensors = {name: value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise UserError(f"model.weights: {uri} holds no tensors by name")
    return tensors


def read_weights_file(uri: str) -> bytes:
    """The file that `read_weights` reads. Raises UserError where it can't be read."""
    try:
        return storage.read_bytes(uri)
    except OSError as error:
        raise UserError(f"model.weights: {uri} can't be read: {error}") from error


def fitting(
    model: EmbeddingClassifier, weights: Mapping[str, Tensor], uri: str
) -> tuple[dict[str, Tensor], list[str]]:
    """Those of some weights that fit a model by name and shape.

    Args:
        model: the classifier.
        weights: their names may begin with `model.` or `module.`, as wrappers write them.
        uri: where they were read, for the error.

    Returns:
        The fitting weights, and the model's names for which there are none.

    Raises:
        UserError: none fits.
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
            f"model.weights: none of the {len(weights)} tensors of {uri} fits the model by name "
            "and shape: is it of another model.name?"
        )
    return best, [name for name in state if name not in best]


def save(folder: str, weights: Mapping[str, Tensor], checkpoint: ClassifierMetadata) -> None:
    """Writes weights and metadata; the metadata comes last, so a folder that has it is whole."""
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
    """Of a training after some epoch, each by name.

    Attributes:
        model: after the last epoch.
        averaged: their running mean; empty where there is none.
    """

    model: Mapping[str, Tensor]
    averaged: Mapping[str, Tensor]


def save_progress(folder: str, weights: Weights, progress: TrainState) -> None:
    """Writes the state after an epoch to one file, atomically."""
    file = io.BytesIO()
    torch.save({"weights": weights._asdict(), "state": vars(progress)}, file)
    storage.write_bytes(storage.join(folder, PROGRESS), file.getvalue())


def load_progress(folder: str) -> tuple[Weights, TrainState] | None:
    """Reads what `save_progress` wrote; None before the first epoch. Can't execute code."""
    uri = storage.join(folder, PROGRESS)
    if not storage.exists(uri):
        return None
    content = io.BytesIO(storage.read_bytes(uri))
    saved = torch.load(content, map_location="cpu", weights_only=True)
    return Weights(**saved["weights"]), TrainState(**saved["state"])


def is_complete(folder: str) -> bool:
    """True where a run has finished and left its checkpoint."""
    return storage.exists(storage.join(folder, METADATA_FILE))


def load_metadata(folder: str) -> ClassifierMetadata:
    """Reads `checkpoint.json`.

    Raises:
        UserError: there is no checkpoint in the folder.
    """
    if not is_complete(folder):
        raise UserError(f"{folder} holds no checkpoint: run jobs/train.py first")
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
    """The trained model, on the CPU, in eval mode."""
    models = [build(checkpoint.model, len(checkpoint.labels)) for _ in range(checkpoint.members)]
    model = models[0] if checkpoint.members == 1 else Ensemble(models)
    model.load_state_dict(load_weights(folder))
    crops = checkpoint.training.get("test_crops")
    if crops is not None:
        frames = checkpoint.features.frames_of(checkpoint.training["crop_length"])
        model = MeanOfCrops(model, frames, crops)
    return model.eval()
