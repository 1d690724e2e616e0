"""Tests of what a GPU changes: those marked `gpu` need one, the others run wherever they are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from raysound.distributed.cluster.session import ray_session
from raysound.distributed.extraction.extract import extract_corpus
from raysound.settings.compute import ComputeSettings
from raysound.settings.schema import Config


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skips what needs a GPU where torch sees none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip("torch sees no GPU"))


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """One local cluster of two CPUs, and of the GPUs that are there."""
    with ray_session(ComputeSettings(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(scope="session")
def tree(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config over three easy classes of tones, whose features are there."""
    tree = {
        "name": "tones",
        "output": str(tmp_path_factory.mktemp("gpu")),
        "corpora": {"real": {"path": str(tones["real"])}},
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 8, "batch_size": 8, "checkpoint_policy": "last"},
    }  # fmt: skip
    extract_corpus("real", Config.model_validate(tree))
    return tree


@pytest.fixture
def torch_flags() -> Iterator[None]:
    """Puts torch's global switches of precision back."""
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    yield
    matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
