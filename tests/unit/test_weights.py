"""Weights that a training starts from: what fits a model, and files that hold none."""

import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from raysound.errors import UserError
from raysound.models import build
from raysound.training.checkpoint import matching_weights, read_weights


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Random ones of a cnn for ten classes."""
    torch.manual_seed(0)
    return {name: torch.randn_like(value) for name, value in build("cnn", 10).state_dict().items()}


def test_weights_are_read_from_safetensors_state_dicts_and_checkpoints_of_lightning(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    safetensors.torch.save_file(weights, tmp_path / "a")
    torch.save(weights, tmp_path / "b")
    torch.save({"epoch": 3, "state_dict": weights}, tmp_path / "c")

    for name in ("a", "b", "c"):
        found = read_weights(str(tmp_path / name))
        assert found.keys() == weights.keys()
        assert all(torch.equal(found[key], weights[key]) for key in weights)


@pytest.mark.parametrize("prefix", ["", "model.", "module."])
def test_what_fits_by_name_and_shape_is_taken(weights: dict[str, Tensor], prefix: str) -> None:
    given = {f"{prefix}{name}": value for name, value in weights.items()}
    given["other"] = torch.zeros(1)

    found, missing = matching_weights(build("cnn", 10), given, "file")
    of_three, untrained = matching_weights(build("cnn", 3), given, "file")

    assert missing == []
    assert all(torch.equal(found[name], weights[name]) for name in weights)
    assert untrained == ["fc2.weight", "fc2.bias"]
    assert of_three.keys() == weights.keys() - set(untrained)


def test_weights_of_another_model_are_refused(weights: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"none of the 12 tensors of cnn\.pt matches .* is it for "):
        matching_weights(build("resnetish18", 10), weights, "cnn.pt")


class Command:
    """Would write a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def test_a_file_without_weights_is_one_line(tmp_path: Path) -> None:
    contents = {
        "empty": b"",
        "text": b"no weights",
        "number": pickle.dumps(3),
        "code": pickle.dumps({"a": Command(tmp_path / "written")}),
    }
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=rf"model\.weights: .*/{name} is neither a safetensors"):
            read_weights(str(tmp_path / name))
    assert not (tmp_path / "written").exists()
    torch.save({"epoch": 3}, tmp_path / "none")
    with pytest.raises(UserError, match="/none contains no named tensors"):
        read_weights(str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"model\.weights: .*/absent can't be read"):
        read_weights(str(tmp_path / "absent"))
