"""VGGish (Hershey et al., 2017, arXiv:1609.09430), with adaptive pooling for any input size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from raysound.models.classifier import EmbeddingClassifier


class VGGish(EmbeddingClassifier):
    """Six convolutions, three linear layers, a head; its embedding is `(B, 128)`."""

    min_input_size = (8, 8)

    def __init__(self, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for widths in ((64,), (128,), (256, 256), (512, 512)):
            for width in widths:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        layers[-1] = nn.AdaptiveMaxPool2d((4, 6))
        self.features = nn.Sequential(*layers)
        self.embeddings = nn.Sequential(
            nn.Linear(512 * 4 * 6, 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, 128),
            nn.ReLU(),
        )
        self.head = nn.Linear(128, classes)

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.embeddings(torch.flatten(self.features(log_mel), 1))
        return self.head(embedding), embedding
