"""A training's epochs, from its history.jsonl, as they come: lines, and numbers for Prometheus."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raysound import storage
from raysound.distributed import gauges
from raysound.settings import Config, TrainingSettings
from raysound.training import Metrics, all_epochs, best_epoch, main_epochs

logger = logging.getLogger(__name__)


@contextmanager
def epochs_shown(history_uri: str, config: Config, name: str) -> Iterator[None]:
    """Logs one line an epoch while the block runs, as the history grows."""
    prefix = "" if name == "judge" else f"{name}: "
    done = threading.Event()

    def follow() -> None:
        shown = len(read_history(history_uri))
        if shown:
            logger.info("%s: going on after epoch %d", name, shown)
        finished = False
        while not finished:
            finished = done.wait(0.5)
            try:
                rows = read_history(history_uri)
            except OSError:
                # An object store that does not answer now will at the next look.
                continue
            for epoch, row in enumerate(rows[shown:], start=shown + 1):
                for line in epoch_lines(rows[:epoch], config.training):
                    logger.info("%s%s", prefix, line)
                show_epoch(row, config.name, name)
            shown = len(rows)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def show_epoch(row: Metrics, experiment: str, judge: str) -> None:
    """Tells Prometheus what an epoch brought."""
    gauges.show("epoch", row["epoch"], experiment=experiment, judge=judge)
    for split in ("train", "validation"):
        if row[f"{split}_clips"]:
            for measure in ("loss", "accuracy"):
                name = f"{split}_{measure}"
                gauges.show(name, row[name], experiment=experiment, judge=judge)


def epoch_lines(history: list[Metrics], settings: TrainingSettings) -> Iterator[str]:
    """What the last epoch of a history brought, and that training stops early after it."""
    row = history[-1]
    splits = (
        f"{split} {row[f'{split}_loss']:.3f} {row[f'{split}_accuracy']:6.1%}  "
        for split in ("train", "validation")
        if row[f"{split}_clips"]
    )
    # Of the epochs before it: an epoch that ends the training early was one of all that were due.
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


def read_history(uri: str) -> list[Metrics]:
    """The epochs of a history.jsonl, none if there is no such file yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
