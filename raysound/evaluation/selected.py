"""The clips of a corpus that the report shows: in confusion cells, on the map, as examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysound.evaluation.examples import Kind, choose
from raysound.evaluation.partial_sums import PartialSums, Plan
from raysound.evaluation.predictions import read_prediction_rows
from raysound.metrics.corpus import RealClips, Scored
from raysound.metrics.projection import principal_plane
from raysound.metrics.selection import cell_mask, example_mask
from raysound.report.maps import MapPoint
from raysound.report.parts import Cells

MAP_POINTS = 500
EXAMPLE_COLUMNS = (
    "clip_id", "label", "prediction", "probability", "target_probability",
    "nearest_train_clip_id", "windows",
)  # fmt: skip


class Selected(NamedTuple):
    """Clips of one corpus to show.

    Attributes:
        cells: clips of each cell of the confusion matrix.
        points: on the map.
        examples: rows of the predictions and the kind of each example; see `choose`.
    """

    cells: Cells
    points: list[MapPoint]
    examples: list[tuple[dict[str, Any], Kind]]


def selected_clips(
    predictions: str,
    corpus: str,
    sums: PartialSums,
    plan: Plan,
    entries: np.ndarray,
    scored: Scored,
    real: RealClips,
) -> Selected:
    """Reads the clips of one corpus that the report shows.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        sums: over its clips.
        plan: of the sums.
        entries: its sample.
        scored: predictions of the sample.
        real: the training clips, whose principal plane is that of the map.
    """
    shown = entries[:MAP_POINTS]
    points = []
    if len(shown):
        names = read_prediction_rows(predictions, corpus, shown["part"], shown["row"], ["clip_id"])
        positions = principal_plane(real.embedding)(scored.embedding[: len(shown)]).tolist()
        labels = [plan.labels[truth] for truth in shown["truth"].tolist()]
        points = [
            MapPoint(corpus, label, x, y, name)
            for name, label, (x, y) in zip(
                names["clip_id"].to_pylist(), labels, positions, strict=True
            )
        ]
    return Selected(
        clips_of_cells(predictions, corpus, sums, plan),
        points,
        example_rows(predictions, corpus, sums, plan),
    )


def clips_of_cells(predictions: str, corpus: str, sums: PartialSums, plan: Plan) -> Cells:
    """The number of clips in each cell of the confusion matrix, and the most probable ones."""
    entries = sums.entries[cell_mask(sums.entries)]
    entries = entries[
        np.lexsort((-entries["probability"], entries["prediction"], entries["truth"]))
    ]
    table = read_prediction_rows(predictions, corpus, entries["part"], entries["row"], ["clip_id"])
    counts = sums.classification.confusion(len(plan.labels))
    cells: dict[tuple[int, int], tuple[int, list[tuple[str, float]]]] = {}
    for truth, prediction, probability, name in zip(
        entries["truth"].tolist(), entries["prediction"].tolist(),
        entries["probability"].tolist(), table["clip_id"].to_pylist(), strict=True,
    ):  # fmt: skip
        cell = cells.setdefault((truth, prediction), (int(counts[truth, prediction]), []))
        cell[1].append((name, round(probability, 4)))
    return dict(cells)


def example_rows(
    predictions: str, corpus: str, sums: PartialSums, plan: Plan
) -> list[tuple[dict[str, Any], Kind]]:
    """The examples of a corpus: the hardest and the most convincing clips of each class."""
    entries = sums.entries[example_mask(sums.entries, plan.limit)]
    labels = [plan.labels[truth] for truth in entries["truth"].tolist()]
    table = pa.table({"label": labels, "target_probability": entries["target_probability"]})
    chosen = choose(table, plan.limit.examples) if len(table) else []
    entries = entries[[row for row, _ in chosen]]
    rows = read_prediction_rows(
        predictions, corpus, entries["part"], entries["row"], EXAMPLE_COLUMNS
    )
    return [(row, kind) for row, (_, kind) in zip(rows.to_pylist(), chosen, strict=True)]
