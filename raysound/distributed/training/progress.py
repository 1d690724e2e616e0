"""A training's epochs, from its history.jsonl, as they come: lines, and numbers for Prometheus."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from raysound.distributed.cluster import prometheus
from raysound.settings.schema import Config
from raysound.training.epochs import Metrics
from raysound.training.history import epoch_lines, read_history

logger = logging.getLogger(__name__)


@contextmanager
def log_epochs(history_uri: str, config: Config, name: str) -> Iterator[None]:
    """Logs one line an epoch while the block runs, as the history grows."""
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
            shown = log_new_epochs(rows, shown, config, name)

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def log_new_epochs(rows: list[Metrics], shown: int, config: Config, name: str) -> int:
    """Shows the rows of a history after the first `shown`; returns how many were ever shown."""
    prefix = "" if name == "classifier" else f"{name}: "
    for epoch, row in enumerate(rows[shown:], start=shown + 1):
        for line in epoch_lines(rows[:epoch], config.training):
            logger.info("%s%s", prefix, line)
        export_epoch(row, config.name, name)
    # A training that starts again after a failure writes a shorter history, of the same epochs.
    return max(shown, len(rows))


def export_epoch(row: Metrics, experiment: str, classifier: str) -> None:
    """Tells Prometheus what an epoch brought."""
    prometheus.set_gauge("epoch", row["epoch"], experiment=experiment, classifier=classifier)
    for split in ("train", "validation"):
        if row[f"{split}_clips"]:
            for measure in ("loss", "accuracy"):
                name = f"{split}_{measure}"
                prometheus.set_gauge(name, row[name], experiment=experiment, classifier=classifier)
