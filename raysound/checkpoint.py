"""A trained judge on disk: weights as safetensors, and all it takes to use them again as JSON."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import safetensors.torch

from raysound import storage
from raysound.config import UserError
from raysound.models import Classifier, build
from raysound.scoring import Normalisation
from raysound.settings import FeatureSettings

WEIGHTS = "model.safetensors"
NOTE = "checkpoint.json"


@dataclass(frozen=True)
class Checkpoint:
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
    """

    model: str
    labels: list[str]
    features: FeatureSettings
    normalisation: Normalisation
    training: dict[str, Any]
    metrics: dict[str, float]
    data: dict[str, Any]
    versions: dict[str, str]


def save(folder: str, model: Classifier, checkpoint: Checkpoint) -> None:
    """Writes weights and note; the note comes last, so a folder that has it is whole."""
    weights = {key: value.contiguous().cpu() for key, value in model.state_dict().items()}
    storage.write_bytes(storage.join(folder, WEIGHTS), safetensors.torch.save(weights))
    note = {
        **checkpoint.__dict__,
        "features": checkpoint.features.model_dump(),
        "feature_id": checkpoint.features.id,
        "normalisation": checkpoint.normalisation.__dict__,
    }
    storage.write_bytes(storage.join(folder, NOTE), json.dumps(note, indent=2).encode())


def is_complete(folder: str) -> bool:
    """True where a run has finished and left its checkpoint."""
    return storage.exists(storage.join(folder, NOTE))


def read_note(folder: str) -> Checkpoint:
    """Reads `checkpoint.json`.

    Raises:
        UserError: there is no checkpoint in the folder.
    """
    if not is_complete(folder):
        raise UserError(f"{folder} holds no checkpoint: run jobs/train.py first")
    note = json.loads(storage.read_bytes(storage.join(folder, NOTE)))
    del note["feature_id"]
    note["features"] = FeatureSettings(**note["features"])
    note["normalisation"] = Normalisation(
        tuple(note["normalisation"]["mean"]), tuple(note["normalisation"]["std"])
    )
    return Checkpoint(**note)


def load_model(folder: str, checkpoint: Checkpoint) -> Classifier:
    """The trained model, on the CPU, in eval mode."""
    model = build(checkpoint.model, len(checkpoint.labels))
    weights = storage.read_bytes(storage.join(folder, WEIGHTS))
    model.load_state_dict(safetensors.torch.load(weights))
    return model.eval()
