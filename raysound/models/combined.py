"""Classifiers that average the predictions of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from raysound.models.classifier import EmbeddingClassifier


class MeanOfCrops(EmbeddingClassifier):
    """A classifier that sees evenly spaced crops of each log-mel.

    Its probabilities and embeddings are the means over the crops.
    """

    def __init__(self, model: EmbeddingClassifier, frames: int, crops: int) -> None:
        super().__init__()
        self.model, self.frames, self.crops = model, frames, crops

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        last = max(0, log_mel.shape[-1] - self.frames)
        starts = torch.linspace(0, last, self.crops if last else 1).round().long().tolist()
        crops = [log_mel[..., start : start + self.frames] for start in starts]
        return mean_prediction([self.model.logits_and_embedding(crop) for crop in crops])


class Ensemble(EmbeddingClassifier):
    """Several classifiers of the same classes.

    Its probabilities are the mean of theirs, its embedding is that of the first.
    """

    def __init__(self, models: Sequence[EmbeddingClassifier]) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        models: Any = self.models
        found = [model.logits_and_embedding(log_mel) for model in models]
        return mean_prediction(found)[0], found[0][1]


def mean_prediction(found: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The logarithm of the mean probabilities `(B, classes)`, and the mean embedding."""
    logits, embeddings = (torch.stack(values) for values in zip(*found, strict=True))
    if len(logits) == 1:
        return logits[0], embeddings[0]
    mean = logits.float().log_softmax(dim=2).logsumexp(dim=0) - math.log(len(logits))
    return mean, embeddings.float().mean(dim=0)
