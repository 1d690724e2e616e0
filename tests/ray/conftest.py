"""One local cluster for all tests of this folder."""

from collections.abc import Iterator

import pytest

from raysound.distributed.session import ray_session
from raysound.settings import ComputeSettings


@pytest.fixture(scope="session", autouse=True)
def cluster() -> Iterator[None]:
    """Two CPUs, token on; the cluster's start counts towards the first test's time."""
    with ray_session(ComputeSettings(local_cpus=2)):
        yield
