"""One local cluster for all tests of this folder, and an object store that its workers reach."""

import logging
from collections.abc import Iterator

import boto3
import pytest
from moto.server import ThreadedMotoServer

from raysound.distributed.session import ray_session
from raysound.settings import ComputeSettings


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
    with ray_session(ComputeSettings(local_cpus=2)):
        yield
