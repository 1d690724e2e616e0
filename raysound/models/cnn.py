"""A small convolutional network: four convolutions, two poolings, two linear layers."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysound.models.classifier import EmbeddingClassifier


class CNN(EmbeddingClassifier):
    """The network of the MNIST examples with more channels, for inputs of any size.

    Its embedding, `(B, 128)`, is the last hidden layer after its ReLU.
    """

    min_input_size = (16, 16)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 32, 3)
        self.conv2 = nn.Conv2d(32, 64, 3)
        self.conv3 = nn.Conv2d(64, 128, 3)
        self.conv4 = nn.Conv2d(128, 256, 3)
        self.fc1 = nn.Linear(256 * 8 * 8, 128)
        self.fc2 = nn.Linear(128, classes)

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        maps = log_mel
        for first, second in ((self.conv1, self.conv2), (self.conv3, self.conv4)):
            maps = functional.relu(second(functional.relu(first(maps))))
            maps = functional.dropout(functional.max_pool2d(maps, 2), 0.25, self.training)
        pooled = functional.adaptive_avg_pool2d(maps, (8, 8))
        embedding = functional.relu(self.fc1(torch.flatten(pooled, 1)))
        return self.fc2(functional.dropout(embedding, 0.5, self.training)), embedding
