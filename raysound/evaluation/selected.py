"""The clips of a corpus that the report shows: behind confusions, on the map, as examples."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from raysound.evaluation.examples import Kind, choose
from raysound.evaluation.partial_sums import PartialSums, Plan
from raysound.evaluation.predictions import read_prediction_rows
from raysound.metrics.corpus import RealClips, Scored
from raysound.metrics.projection import principal_plane
from raysound.metrics.selection import of_cells, of_examples
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
        cells: behind each cell of the confusion matrix.
        points: on the map.
        examples: columns of the predictions, and what each is an example of; the best choice first.
    """

    cells: Cells
    points: list[MapPoint]
    examples: list[tuple[dict[str, Any], Kind]]


def selected_clips(
    predictions: str,
    corpus: str,
    sums: PartialSums,
    plan: Plan,
    drawn: np.ndarray,
    scored: Scored,
    real: RealClips,
) -> Selected:
    """Reads the clips of one corpus that the report shows.

    Args:
        predictions: the folder of all corpora.
        corpus: its name.
        sums: over its clips.
        plan: that they were made by.
        drawn: the entries of its sample.
        scored: what the classifier made of these.
        real: the training clips, which the map is laid out by.
    """
    some = drawn[:MAP_POINTS]
    points = []
    if len(some):
        names = read_prediction_rows(predictions, corpus, some["part"], some["row"], ["clip_id"])
        places = principal_plane(real.embedding)(scored.embedding[: len(some)]).tolist()
        labels = [plan.labels[truth] for truth in some["truth"].tolist()]
        points = [
            MapPoint(corpus, label, x, y, name)
            for name, label, (x, y) in zip(
                names["clip_id"].to_pylist(), labels, places, strict=True
            )
        ]
    return Selected(
        behind_cells(predictions, corpus, sums, plan),
        points,
        example_rows(predictions, corpus, sums, plan),
    )


def behind_cells(predictions: str, corpus: str, sums: PartialSums, plan: Plan) -> Cells:
    """Behind each cell of the confusion matrix: how many clips, and the most probable of them."""
    entries = sums.entries[of_cells(sums.entries)]
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
    """The examples of a corpus: of each class the hardest and the most convincing clips."""
    entries = sums.entries[of_examples(sums.entries, plan.limit)]
    labels = [plan.labels[truth] for truth in entries["truth"].tolist()]
    table = pa.table({"label": labels, "target_probability": entries["asked"]})
    chosen = choose(table, plan.limit.examples) if len(table) else []
    entries = entries[[row for row, _ in chosen]]
    rows = read_prediction_rows(
        predictions, corpus, entries["part"], entries["row"], EXAMPLE_COLUMNS
    )
    return [(row, kind) for row, (_, kind) in zip(rows.to_pylist(), chosen, strict=True)]
