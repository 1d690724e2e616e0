"""Which epoch of a history counts, and whether there are more to come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysound.settings.training import TrainingSettings

Metrics = dict[str, Any]


def quality(metrics: Metrics) -> float:
    """Orders epochs by validation accuracy, and by the loss where that is equal."""
    clips = metrics["validation_clips"]
    if not clips:
        return 0.0
    # The second term is less than what one clip changes.
    quality: float = metrics["validation_accuracy"] + 1 / (clips * (2 + metrics["validation_loss"]))
    return quality


def best_epoch(history: Sequence[Metrics]) -> int:
    """The epoch, from 1, of the best validation; the last of those."""
    return 1 + max(range(len(history)), key=lambda index: (quality(history[index]), index))


def selected_epoch(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """The epoch, from 1, whose weights are the classifier's so far."""
    return len(history) if settings.checkpoint_policy == "last" else best_epoch(history)


def main_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """Epochs before fine-tuning: `settings.epochs`, or fewer where early stopping ended them.

    It follows from the history alone, so a training that is resumed fine-tunes where it would have.
    """
    best = 0
    for index, metrics in enumerate(history[: settings.epochs]):
        if quality(metrics) > quality(history[best]):
            best = index
        if settings.early_stopping is not None and index - best >= settings.early_stopping:
            return index + 1
    return settings.epochs


def all_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """Epochs that the training has in all, as far as its history tells."""
    return main_epochs(history, settings) + settings.finetune.epochs


def is_finished(history: Sequence[Metrics], settings: TrainingSettings) -> bool:
    """True where no epoch is to come: all were trained, or early stopping left no more."""
    return len(history) >= all_epochs(history, settings)
