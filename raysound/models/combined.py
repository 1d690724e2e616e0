"""Classifiers that average the predictions of others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysound.models.classifier import EmbeddingClassifier


class MeanOfCrops(EmbeddingClassifier):
    """A classifier that sees evenly spaced crops of each log-mel, see `crop_starts`.

    Its probabilities and embeddings are the means over the crops.
    """

    def __init__(self, model: EmbeddingClassifier, frames: int, crops: int) -> None:
        super().__init__()
        self.model, self.frames, self.crops = model, frames, crops

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        length = log_mel.shape[-1]
        if length <= self.frames:
            return self.model.logits_and_embedding(log_mel)
        first, last = crop_starts(log_mel, self.frames)
        offsets = torch.arange(self.frames, device=log_mel.device)
        found = []
        for share in torch.linspace(0, 1, self.crops).tolist():
            start = (first + (last - first) * share).round().long()
            index = start.unsqueeze(-1) + offsets
            crop = log_mel.gather(-1, index.expand(*log_mel.shape[:-1], -1))
            found.append(self.model.logits_and_embedding(crop))
        return mean_prediction(found)


def crop_starts(log_mel: Tensor, width: Tensor | int) -> tuple[Tensor, Tensor]:
    """The first and the last start of crops that contain as much of the sound as they can.

    Equal frames at an end of a log-mel are padding, of which a crop should have no more than it
    must: it says nothing about the class.

    Args:
        log_mel: `(..., n_mels, n_frames)`, normalised or not.
        width: frames of a crop, a number or `(..., 1)`. For a wider crop than the log-mel, starts
            are negative.

    Returns:
        Two tensors `(..., 1)`, in frames.
    """
    length = log_mel.shape[-1]
    changes = (log_mel[..., 1:] != log_mel[..., :-1]).any(dim=-2)
    changes = functional.pad(changes, (0, 1))
    frame = torch.arange(length, device=log_mel.device)
    first = torch.where(changes, frame, length).amin(dim=-1, keepdim=True)
    last = torch.where(changes, frame, -1).amax(dim=-1, keepdim=True)
    # Two equal frames at an end are the shortest padding; without a change all frames are kept.
    first = torch.where(first % length == 0, 0, first + 1)
    last = torch.where((last < 0) | (last == length - 2), length - 1, last)
    one, other = first, last - (width - 1)
    fit = length - width + torch.zeros_like(first)
    low = torch.minimum(one, other).maximum(fit.clamp(max=0))
    high = torch.maximum(one, other).minimum(fit.clamp(min=0))
    return low, high


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
