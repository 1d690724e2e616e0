"""The base class of classifiers, which return logits and an embedding."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional


class EmbeddingClassifier(nn.Module, ABC):
    """A classifier of normalised log-mels `(B, 1, n_mels, n_frames)`, of any size.

    Attributes:
        min_input_size: smallest (n_mels, n_frames) of the layers; smaller inputs are padded.
    """

    min_input_size: tuple[int, int] = (1, 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits `(B, classes)`."""
        return self.logits_and_embedding(log_mel)[0]

    def logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, classes)` and the embedding they are computed from, `(B, size)`."""
        return self._logits_and_embedding(pad_to(log_mel, self.min_input_size))

    @abstractmethod
    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embedding of a log-mel that is large enough."""


def pad_to(log_mel: Tensor, size: tuple[int, int]) -> Tensor:
    """Pads with zeros, the training mean of a normalised log-mel, to at least `size`."""
    bands, frames = log_mel.shape[-2:]
    missing = (max(0, size[0] - bands), max(0, size[1] - frames))
    if not any(missing):
        return log_mel
    return functional.pad(log_mel, (0, missing[1], 0, missing[0]))
