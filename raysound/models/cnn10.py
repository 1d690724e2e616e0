"""PANNs' CNN10 and CNN6 (Kong et al., 2020, arXiv:1912.10211), half the channels, less dropout."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from raysound.models.classifier import EmbeddingClassifier

# The paper has 0.5 and also 0.2 after each block, for two million clips. With few clips and mixup
# that is too much: the classifier learns half as fast.
DROPOUT = 0.2


class PannsCNN(EmbeddingClassifier):
    """Four blocks of convolutions with batch norm, each followed by average pooling.

    The mean over the mel bands is pooled over time by mean plus maximum. The embedding is the last
    hidden layer, `(B, 8 · width)`.

    Args:
        kernel: size of the convolutions; 5 is CNN6, 3 is CNN10.
        depth: convolutions of a block; 1 is CNN6, 2 is CNN10.
        width: channels of the first block; each next block has twice as many.
        classes: number of logits.
    """

    min_input_size = (16, 16)

    def __init__(self, kernel: int, depth: int, width: int, classes: int) -> None:
        super().__init__()
        blocks: list[nn.Module] = []
        inputs = 1
        for outputs in (width, 2 * width, 4 * width, 8 * width):
            layers: list[nn.Module] = []
            for _ in range(depth):
                layers += [
                    nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
                    nn.BatchNorm2d(outputs),
                    nn.ReLU(inplace=True),
                ]
                inputs = outputs
            blocks.append(nn.Sequential(*layers))
        self.blocks = nn.ModuleList(blocks)
        self.hidden = nn.Linear(inputs, inputs)
        self.fc = nn.Linear(inputs, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def _logits_and_embedding(self, log_mel: Tensor) -> tuple[Tensor, Tensor]:
        maps = log_mel
        for block in self.blocks:
            maps = functional.avg_pool2d(block(maps), 2)
        over_time = maps.mean(dim=2)
        pooled = over_time.amax(dim=2) + over_time.mean(dim=2)
        pooled = functional.dropout(pooled, DROPOUT, self.training)
        embedding = functional.relu(self.hidden(pooled))
        return self.fc(functional.dropout(embedding, DROPOUT, self.training)), embedding
