"""What all unit tests share."""

import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """Threads that wait for each other cost more than they bring to inputs this small."""
    torch.set_num_threads(1)
