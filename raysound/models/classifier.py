"""What every classifier offers: logits, and the embedding that they come from."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn
from torch.nn import functional


class EmbeddingClassifier(nn.Module, ABC):
    """A classifier of normalised log-mels `(B, 1, n_mels, n_frames)`, of any size.

    Attributes:
        smallest: least (n_mels, n_frames) that the layers can shrink; less is padded.
    """

    smallest: tuple[int, int] = (1, 1)

    def forward(self, log_mel: Tensor) -> Tensor:
        """Logits `(B, classes)`."""
        return self.logits_and_embedding(log_mel)[0]

    def logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(B, classes)` and what they were read off, `(B, size)`."""
        return self._logits_and_embedding(pad_to(log_mel, self.smallest))

    @abstractmethod
    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        """Logits and embedding of a log-mel that is large enough."""


def pad_to(log_mel: Tensor, smallest: tuple[int, int]) -> Tensor:
    """Pads with zeros, the training mean of a normalised log-mel, up to the smallest size."""
    bands, frames = log_mel.shape[-2:]
    missing = (max(0, smallest[0] - bands), max(0, smallest[1] - frames))
    if not any(missing):
        return log_mel
    return functional.pad(log_mel, (0, missing[1], 0, missing[0]))
