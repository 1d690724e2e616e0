"""Selection of the clips of the report from the parts of the predictions."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from raysound.evaluation import examples, partial_sums
from raysound.evaluation.partial_sums import OTHERS, Plan
from raysound.evaluation.predictions import part_uri, write_part
from raysound.evaluation.selected import MAP_POINTS, selected_clips
from raysound.metrics.corpus import RealClips
from raysound.metrics.selection import Limits
from tests.made_predictions import CLASSES, LABELS, SIZE, make_predictions

PLAN = Plan(LABELS, 1.0, SIZE, Limits(per_class=1000, examples=2))


@pytest.fixture
def shown(tmp_path: Path) -> dict[str, Any]:
    """The clips to show of 700 clips in seven parts, and the 700 clips."""
    tables = [make_predictions(100, seed) for seed in range(7)]
    out = str(tmp_path)
    uris = {index: part_uri(out, "real", index) for index in range(7)}
    for index, table in enumerate(tables):
        write_part(uris[index], table, "", "")
    sums = partial_sums.sum_parts(uris, PLAN)[OTHERS]
    drawn = partial_sums.sample(sums.entries, PLAN)
    scored = partial_sums.read_scored(out, "real", drawn, PLAN)
    found = selected_clips(out, "real", sums, PLAN, drawn, scored, RealClips.of(scored))
    return {"found": found, "all": pa.concat_tables(tables)}


def test_cells_hold_their_most_probable_clips(shown: dict[str, Any]) -> None:
    rows = shown["all"].to_pylist()
    cells = Counter((LABELS.index(row["label"]), LABELS.index(row["prediction"])) for row in rows)
    probability = {row["clip_id"]: row["probability"] for row in rows}

    found = shown["found"].cells

    assert {cell: count for cell, (count, _) in found.items()} == cells
    for cell, (count, clips) in found.items():
        assert len(clips) == min(count, 20)
        probabilities = [value for _, value in clips]
        assert probabilities == sorted(probabilities, reverse=True)
        assert probabilities == [round(probability[name], 4) for name, _ in clips]
        own = [
            row["probability"]
            for row in rows
            if (row["label"], row["prediction"]) == tuple(LABELS[index] for index in cell)
        ]
        assert probabilities[0] == round(max(own), 4)


def test_examples_by_parts_equal_those_of_the_table(shown: dict[str, Any]) -> None:
    table = shown["all"]
    chosen = examples.choose(table, 2)

    found = shown["found"].examples

    assert len(found) == 4 * CLASSES
    assert [(row["clip_id"], kind) for row, kind in found] == [
        (table["clip_id"][place].as_py(), kind) for place, kind in chosen
    ]
    assert set(found[0][0]) == {
        "clip_id", "label", "prediction", "probability", "target_probability",
        "nearest_train_clip_id", "windows",
    }  # fmt: skip


def test_the_map_shows_a_sample_of_clips_by_their_names(shown: dict[str, Any]) -> None:
    points = shown["found"].points

    names = shown["all"]["clip_id"].to_pylist()
    keys = dict(zip(names, partial_sums.keys(names).tolist(), strict=True))
    assert [point.clip_id for point in points] == sorted(names, key=keys.__getitem__)[:MAP_POINTS]
    labels = dict(zip(names, shown["all"]["label"].to_pylist(), strict=True))
    assert all(point.label == labels[point.clip_id] for point in points)
    assert np.isfinite([[point.x, point.y] for point in points]).all()
