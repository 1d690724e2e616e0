"""One local cluster for all tests of this folder, and an object store that its workers reach."""

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from raysound.distributed.cluster.session import ray_session
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.training.trainer import train_classifier
from raysound.settings.compute import ComputeSettings
from raysound.settings.loading import from_tree


@pytest.fixture(scope="session")
def object_store() -> Iterator[str]:
    """The URI of a bucket of an S3 server on this machine."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "anyone")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        boto3.client("s3").create_bucket(Bucket="sounds")
        yield "s3://sounds"
    server.stop()


@pytest.fixture(scope="session", autouse=True)
def cluster(object_store: str) -> Iterator[None]:
    """Two CPUs, token on; the cluster's start counts towards the first test's time.

    Its workers inherit the environment that leads to the object store.
    """
    with ray_session(ComputeSettings(num_cpus=2)):
        yield


@pytest.fixture(scope="session")
def trained(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole road over the tones, gone once for all tests."""
    tree = {
        "name": "tones",
        "output": str(tmp_path_factory.mktemp("trained")),
        "corpora": {
            "real": {"path": str(tones["real"])},
            "generated": {"good": str(tones["good"]), "bad": str(tones["bad"])},
        },
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 6, "batch_size": 8, "scheduler": {"name": "StepLR", "step_size": 4}},
        "compute": {"workers": 2, "shard_clips": 16, "use_gpu": False, "precision": "float32"},
    }  # fmt: skip
    config = from_tree(tree, "test")
    extract(config)
    run = train_classifier(config)
    metrics = evaluate(config)
    return {"config": config, "tree": tree, "run": run, "metrics": metrics}
