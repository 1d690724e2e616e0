"""Trainings that start from weights which were trained elsewhere."""

import re
from pathlib import Path
from typing import Any

import pytest
import ray.train
import torch

from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import run_folder, split_clips
from raysound.distributed.training.trainer import (
    classifier_metadata,
    make_loop_config,
    train_classifier,
)
from raysound.distributed.training.training_data import load_training_data
from raysound.distributed.training.worker import read_progress, train_alone
from raysound.settings.loading import from_tree
from tests.unit.test_models import STATES

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


def weights_trained_elsewhere(name: str, path: Path) -> dict[str, torch.Tensor]:
    """A file with the names and shapes of sound-clf-pytorch's model for ten classes."""
    torch.manual_seed(0)
    weights = {
        key: torch.rand(shape) * 0.01 if shape else torch.tensor(7) for key, shape in STATES[name]()
    }
    torch.save(weights, path)
    return weights


@pytest.mark.parametrize("name", [name for name in STATES if name != "cnn"])
def test_training_starts_from_weights_of_matching_layers(
    trained: dict[str, Any], name: str, tmp_path: Path
) -> None:
    """At a tiny learning rate the weights do not change, except for the new last layer."""
    weights = weights_trained_elsewhere(name, tmp_path / "weights.pt")
    tree = {
        **trained["tree"],
        "model": {"name": name, "weights": str(tmp_path / "weights.pt")},
        "training": {"epochs": 1, "batch_size": 24, "optimizer": {"name": "SGD", "lr": 1e-30}},
    }
    config = from_tree(tree, "test")
    folder = finished_features("real", config)
    training_data = load_training_data(folder, split_clips(config, folder))
    job = make_loop_config(
        config,
        training_data,
        classifier_metadata(config, training_data),
        str(tmp_path / "run"),
        threads=2,
    )
    found: dict[str, torch.Tensor] = {}

    def report(metrics: dict[str, Any], checkpoint: ray.train.Checkpoint) -> None:
        found.update(read_progress(checkpoint)[0].model)

    train_alone(job, torch.device("cpu"), training_data.datasets(job), report)

    statistics = ("running_mean", "running_var", "num_batches_tracked")
    fitting = [key for key in weights if not key.endswith(statistics)
               and weights[key].shape == found[key].shape]  # fmt: skip
    others = [key for key in weights if weights[key].shape != found[key].shape]
    moved_by = [float((found[key] - weights[key]).abs().max()) for key in fitting]
    assert max(moved_by) < 1e-20
    assert len(others) == 2
    assert all(found[key].shape[0] == 3 for key in others)


def test_weights_change_the_run_folder_and_unloaded_layers_are_logged(
    trained: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    weights_trained_elsewhere("cnn", tmp_path / "weights.pt")
    tree = {**trained["tree"], "training": {"epochs": 1, "batch_size": 8}}
    without = from_tree({**tree, "model": {"name": "cnn"}}, "test")
    tree["model"] = {"name": "cnn", "weights": str(tmp_path / "weights.pt")}
    config = from_tree(tree, "test")
    folder = finished_features("real", config)

    with caplog.at_level("INFO"):
        run = train_classifier(config)

    assert run != run_folder(without, folder)
    line = r"10 tensors loaded from .*/weights\.pt; not loaded: fc2\.weight, fc2\.bias$"
    assert re.search(line, caplog.text, re.MULTILINE)
    # Other weights in the same file are another training.
    torch.save({"fc1.bias": torch.zeros(128)}, tmp_path / "weights.pt")
    assert run_folder(config, folder) != run
