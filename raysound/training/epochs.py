"""The best epoch of a history, and the number of remaining epochs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raysound.settings.training import TrainingSettings

Metrics = dict[str, Any]


def quality(metrics: Metrics) -> float:
    """Orders epochs by validation accuracy, then by validation loss."""
    clips = metrics["validation_clips"]
    if not clips:
        return 0.0
    # The second term is smaller than the change of accuracy by one clip.
    quality: float = metrics["validation_accuracy"] + 1 / (clips * (2 + metrics["validation_loss"]))
    return quality


def best_epoch(history: Sequence[Metrics]) -> int:
    """The epoch, from 1, of the best validation; the last one if several are equal."""
    return 1 + max(range(len(history)), key=lambda index: (quality(history[index]), index))


def selected_epoch(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """The epoch, from 1, whose weights are the classifier's; see `checkpoint_policy`."""
    return len(history) if settings.checkpoint_policy == "last" else best_epoch(history)


def main_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """Epochs before fine-tuning: `settings.epochs`, or fewer after early stopping.

    Depends only on the history, so a resumed training fine-tunes at the same epoch.
    """
    best = 0
    for index, metrics in enumerate(history[: settings.epochs]):
        if quality(metrics) > quality(history[best]):
            best = index
        if settings.early_stopping is not None and index - best >= settings.early_stopping:
            return index + 1
    return settings.epochs


def all_epochs(history: Sequence[Metrics], settings: TrainingSettings) -> int:
    """The total number of epochs, given the history so far."""
    return main_epochs(history, settings) + settings.finetune.epochs


def is_finished(history: Sequence[Metrics], settings: TrainingSettings) -> bool:
    """True if no epoch remains."""
    return len(history) >= all_epochs(history, settings)
