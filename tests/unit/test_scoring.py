"""Errors of scoring a batch are reported in one line."""

import numpy as np
import pytest
import torch
from torch import Tensor

from raysound.errors import UserError
from raysound.models import EmbeddingClassifier
from raysound.training.inference import Normalisation, score

# The message of torch's CUDA allocator, with its C++ stack.
SHORTAGE = (
    "CUDA out of memory. Tried to allocate 6.26 GiB. GPU 0 has a total capacity of 79.11 GiB of "
    "which 1.20 GiB is free. Including non-PyTorch memory, this process has 77.90 GiB memory in "
    "use. If reserved but unallocated memory is large try setting PYTORCH_ALLOC_CONF=x.\nException "
    "raised from malloc at CUDACachingAllocator.cpp:1 (most recent call first):\nframe #0: c10"
)


class TooLarge(EmbeddingClassifier):
    """Simulates a model that is too large for the GPU, because a CPU does not raise this error."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        raise torch.OutOfMemoryError(SHORTAGE)


def test_a_batch_too_large_for_the_gpu_is_a_user_error_of_one_line() -> None:
    norm = Normalisation((0.0,) * 4, (1.0,) * 4)

    with pytest.raises(UserError) as caught:
        score(TooLarge(), norm, np.zeros((2, 4, 8), np.float32), batch_size=256)

    assert str(caught.value) == (
        "a GPU has too little memory to score evaluation.batch_size 256 windows at once: lower it "
        "(CUDA out of memory. Tried to allocate 6.26 GiB. GPU 0 has a total capacity of 79.11 GiB "
        "of which 1.20 GiB is free)"
    )
