"""Reads history.jsonl, with a row per epoch, and formats it for the log."""

from __future__ import annotations

import json
from collections.abc import Iterator

from raysound import storage
from raysound.settings.training import TrainingSettings
from raysound.training.epochs import Metrics, all_epochs, best_epoch, main_epochs


def read_history(uri: str) -> list[Metrics]:
    """The epochs of a history.jsonl, none if there is no such file yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]


def epoch_lines(history: list[Metrics], settings: TrainingSettings) -> Iterator[str]:
    """The log lines of the last epoch of a history."""
    row = history[-1]
    splits = (
        f"{split} {row[f'{split}_loss']:.3f} {row[f'{split}_accuracy']:6.1%}  "
        for split in ("train", "validation")
        if row[f"{split}_clips"]
    )
    # Without the last epoch, which may end the training early and lower the number of epochs.
    epochs = all_epochs(history[:-1], settings)
    precisions = [row.get("precision") for row in history[-2:]]
    changed = len(history) == 1 or len({*precisions}) == 2
    yield (
        f"epoch {row['epoch']:3d} of {epochs}  lr {row['lr']:.1e}  "
        f"{''.join(splits)}{row['seconds']:.1f} s{f'  {precisions[-1]}' if changed else ''}"
    )
    if len(history) == main_epochs(history, settings) < settings.epochs:
        then = f", fine-tuning for {settings.finetune.epochs}" if settings.finetune.epochs else ""
        yield f"early stopping: the best epoch is {best_epoch(history)}{then}"
