"""The classifiers by name: log-mels in, logits and an embedding out."""

from collections.abc import Callable, Mapping
from functools import partial

from raysound.models.alexnet import AlexNet
from raysound.models.classifier import EmbeddingClassifier
from raysound.models.cnn import CNN
from raysound.models.cnn10 import PannsCNN
from raysound.models.resnetish import BasicBlock, Bottleneck, ResNetish
from raysound.models.vggish import VGGish

__all__ = ["MODELS", "EmbeddingClassifier", "build"]

MODELS: Mapping[str, Callable[[int], EmbeddingClassifier]] = {
    "cnn": CNN,
    "cnn6": partial(PannsCNN, 5, 1, 32),
    "cnn10": partial(PannsCNN, 3, 2, 32),
    "alexnet": AlexNet,
    "vggish": VGGish,
    "resnetish18": partial(ResNetish, BasicBlock, (2, 2, 2, 2)),
    "resnetish34": partial(ResNetish, BasicBlock, (3, 4, 6, 3)),
    "resnetish50": partial(ResNetish, Bottleneck, (3, 4, 6, 3)),
}


def build(name: str, classes: int) -> EmbeddingClassifier:
    """An untrained model with some number of classes.

    Raises:
        ValueError: there is no model of that name.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model '{name}'; choose one of {', '.join(MODELS)}")
    return MODELS[name](classes)
