"""The metrics of metrics.json as TensorBoard events."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter

from raysound import storage
from raysound.metrics.declarations import COPIED_SHARE, EMBEDDING_METRICS, METRICS, Metric


def write_events(metrics: dict[str, Any], folder: str) -> None:
    """Writes each metric of each corpus and anchor as a scalar `metric/corpus`.

    Metrics of other embeddings are `embedding.metric/corpus`, the share of copies is
    `copies.share/corpus`. The step is the epoch of the classifier.

    Args:
        metrics: content of metrics.json.
        folder: folder of the event file; its content is replaced.
    """
    scalars: list[tuple[str, Sequence[Metric], dict[str, Any]]] = [("", METRICS, metrics)]
    if metrics["copies"] is not None:
        scalars.append(("copies.", [COPIED_SHARE], {"anchors": {}, **metrics["copies"]}))
    scalars += [(f"{name}.", EMBEDDING_METRICS, one) for name, one in metrics["embeddings"].items()]
    storage.delete(folder)
    with tempfile.TemporaryDirectory() as here:
        with SummaryWriter(here) as writer:
            for prefix, declared, rows in scalars:
                for name, row in (rows["corpora"] | rows["anchors"]).items():
                    for metric in declared:
                        value = row[metric.key]["value"]
                        if value is not None:
                            step = metrics["classifier"]["epoch"]
                            writer.add_scalar(f"{prefix}{metric.key}/{name}", value, step)
        for file in Path(here).iterdir():
            storage.write_bytes(storage.join(folder, file.name), file.read_bytes())
