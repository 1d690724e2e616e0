"""A training's epochs, from its history.jsonl, as they come: lines, and numbers for Prometheus."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raysound import storage
from raysound.distributed import gauges
from raysound.settings import Config
from raysound.training import Metrics

logger = logging.getLogger(__name__)


@contextmanager
def epochs_shown(history_uri: str, config: Config, name: str) -> Iterator[None]:
    """Logs one line an epoch while the block runs, as the history grows."""
    epochs = config.training.epochs + config.training.finetune.epochs
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
            for row in rows[shown:]:
                logger.info("%s%s", prefix, epoch_line(row, epochs))
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


def epoch_line(row: Metrics, epochs: int) -> str:
    """What an epoch brought, as a line of text."""
    splits = (
        f"{split} {row[f'{split}_loss']:.3f} {row[f'{split}_accuracy']:6.1%}  "
        for split in ("train", "validation")
        if row[f"{split}_clips"]
    )
    return (
        f"epoch {row['epoch']:3d} of {epochs}  lr {row['lr']:.1e}  "
        f"{''.join(splits)}{row['seconds']:.1f} s"
    )


def read_history(uri: str) -> list[Metrics]:
    """The epochs of a history.jsonl, none if there is no such file yet."""
    if not storage.exists(uri):
        return []
    return [json.loads(line) for line in storage.read_bytes(uri).decode().splitlines()]
