"""ResNetish: a ResNet (He et al., 2015, arXiv:1512.03385) for log-mels (arXiv:1609.09430)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from raysound.models.classifier import EmbeddingClassifier


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut."""

    expansion: ClassVar[int] = 1

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, width, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.downsample = shortcut(inputs, width, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(B, inputs, h, w)` → `(B, width, h / stride, w / stride)`."""
        inner = functional.relu(self.bn1(self.conv1(maps)))
        return functional.relu(self.bn2(self.conv2(inner)) + self.downsample(maps))


class Bottleneck(nn.Module):
    """1×1, 3×3 and 1×1 convolutions with a shortcut; the 3×3 one has the stride."""

    expansion: ClassVar[int] = 4

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = width * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.downsample = shortcut(inputs, outputs, stride)

    def forward(self, maps: Tensor) -> Tensor:
        """Maps `(B, inputs, h, w)` → `(B, 4 · width, h / stride, w / stride)`."""
        inner = functional.relu(self.bn1(self.conv1(maps)))
        inner = functional.relu(self.bn2(self.conv2(inner)))
        return functional.relu(self.bn3(self.conv3(inner)) + self.downsample(maps))


def shortcut(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """The shortcut of a block: the identity if the shape stays, else a strided 1×1 convolution."""
    if stride == 1 and inputs == outputs:
        return nn.Sequential()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


class ResNetish(EmbeddingClassifier):
    """A ResNet whose first convolution has stride 1, with 4 × 6 pooling before the last layer.

    Its embedding is the mean over the last maps: `(B, 512)`, or `(B, 2048)` with bottlenecks.
    """

    def __init__(
        self, block: type[BasicBlock] | type[Bottleneck], depths: Sequence[int], classes: int
    ) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 64, 7, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(64)
        channels = 64
        for number, depth in enumerate(depths):
            width, blocks = 64 * 2**number, []
            for index in range(depth):
                blocks.append(block(channels, width, 2 if number and not index else 1))
                channels = width * block.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels * 4 * 6, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        maps = functional.relu(self.bn1(self.conv1(log_mel)))
        maps = functional.max_pool2d(maps, 3, stride=2, padding=1)
        for number in range(1, 5):
            maps = self.get_submodule(f"layer{number}")(maps)
        pooled = functional.adaptive_avg_pool2d(maps, (4, 6))
        return self.fc(torch.flatten(pooled, 1)), maps.mean(dim=(2, 3))
