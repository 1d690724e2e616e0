"""Follows the history.jsonl of a training: logs each epoch and sets Prometheus gauges."""

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
    """Logs each new epoch of a history while the block runs."""
    done = threading.Event()

    def follow() -> None:
        shown = len(read_history(history_uri))
        if shown:
            logger.info("%s: resuming after epoch %d", name, shown)
        finished = False
        while not finished:
            finished = done.wait(0.5)
            try:
                rows = read_history(history_uri)
            except OSError:
                # Try again in the next round: an object store may not answer at times.
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
    """Logs the rows of a history after the first `shown`; returns how many were logged so far."""
    prefix = "" if name == "classifier" else f"{name}: "
    for epoch, row in enumerate(rows[shown:], start=shown + 1):
        for line in epoch_lines(rows[:epoch], config.training):
            logger.info("%s%s", prefix, line)
        export_epoch(row, config.name, name)
    # After a failure, a training that restarts writes a shorter history with the same epochs.
    return max(shown, len(rows))


def export_epoch(row: Metrics, experiment: str, classifier: str) -> None:
    """Exports the metrics of an epoch to Prometheus."""
    prometheus.set_gauge("epoch", row["epoch"], experiment=experiment, classifier=classifier)
    for split in ("train", "validation"):
        if row[f"{split}_clips"]:
            for measure in ("loss", "accuracy"):
                name = f"{split}_{measure}"
                prometheus.set_gauge(name, row[name], experiment=experiment, classifier=classifier)
