"""AlexNet (Krizhevsky et al., 2012) for one channel, with batch norm.

The first convolution has stride 1 along frequency.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from raysound.models.classifier import EmbeddingClassifier


class AlexNet(EmbeddingClassifier):
    """Five convolutions and three linear layers; its embedding is `(B, 4096)`."""

    min_input_size = (21, 35)

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *convolution(1, 64, 11, stride=(1, 2), padding=2),
            nn.MaxPool2d(3, 2),
            *convolution(64, 192, 5, padding=2),
            nn.MaxPool2d(3, 2),
            *convolution(192, 384, 3, padding=1),
            *convolution(384, 256, 3, padding=1),
            *convolution(256, 256, 3, padding=1),
            nn.MaxPool2d(3, 2),
        )
        self.avgpool = nn.AdaptiveAvgPool2d((4, 6))
        self.classifier = nn.Sequential(
            nn.Dropout(),
            nn.Linear(256 * 4 * 6, 4096),
            nn.ReLU(),
            nn.Dropout(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, classes),
        )

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        maps = self.avgpool(self.features(log_mel))
        embedding = self.classifier[:-1](torch.flatten(maps, 1))
        return self.classifier[-1](embedding), embedding


def convolution(
    inputs: int, outputs: int, kernel: int, padding: int, stride: int | tuple[int, int] = 1
) -> Iterator[nn.Module]:
    """A convolution, batch norm and ReLU."""
    yield nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding)
    yield nn.BatchNorm2d(outputs)
    yield nn.ReLU(inplace=True)
