"""Classification accuracy scores: which clips are compared, and cas.json.

Ravuri and Vinyals, "Classification accuracy score for conditional generative models", NeurIPS 2019:
a classifier trained on generated clips is tested on real ones. Accuracy grows with the number of
training clips, so the classifier that it is compared with is trained on equally many real clips of
each class.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from raysound import storage
from raysound.errors import UserError

CAS_SCHEMA = 4
# What classifiers are trained with; no test clip is.
PARTS = ("train", "validation")


def equal_clips(real: pa.Table, generated: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The clips of two corpora to train two classifiers on: equally many of each class and part.

    Of every class, in training and in validation, both sides keep as many clips as the smaller one
    has: those whose names have the smallest SHA-256, whatever the order of the rows. Classes that
    one side lacks are left out on both.

    Args:
        real: rows with `clip_id`, `label` and `split`.
        generated: likewise.

    Returns:
        Their rows, in the order given, `real` first; none of a test split.
    """
    sides = [_by_class_and_part(table) for table in (real, generated)]
    kept: tuple[list[int], list[int]] = ([], [])
    for key in sides[0].keys() & sides[1].keys():
        count = min(len(side[key]) for side in sides)
        for rows, side in zip(kept, sides, strict=True):
            rows += [row for _, row in sorted(side[key])[:count]]
    first, second = (np.sort(np.array(rows, np.int64)) for rows in kept)
    return real.take(pa.array(first)), generated.take(pa.array(second))


def _by_class_and_part(table: pa.Table) -> dict[tuple[str, str], list[tuple[bytes, int]]]:
    """Hash and place of each clip that trains or validates, by class and part."""
    found: dict[tuple[str, str], list[tuple[bytes, int]]] = {}
    columns = (table[name].to_pylist() for name in ("clip_id", "label", "split"))
    for row, (clip_id, label, part) in enumerate(zip(*columns, strict=True)):
        if part in PARTS:
            name = hashlib.sha256(clip_id.encode("utf-8", "surrogateescape")).digest()
            found.setdefault((label, part), []).append((name, row))
    return found


def clips_by_class(clips: pa.Table) -> dict[str, dict[str, int]]:
    """How many clips of each class train and validate."""
    counts = Counter(zip(clips["label"].to_pylist(), clips["split"].to_pylist(), strict=True))
    labels = sorted({label for label, _ in counts})
    return {label: {part: counts[label, part] for part in PARTS} for label in labels}


def read_scores(
    output: str, classifier: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any] | None:
    """What metrics.json and the report say of an output's cas.json.

    Args:
        output: of the experiment.
        classifier: `run`, `feature_id` and `split_digest` of the classifier of an evaluation.
        digests: of the clips of every corpus that is evaluated, `real` among them, by name.

    Returns:
        `test_clips`, and by generator all of cas.json but the accuracies per class; None where
        there is no cas.json.

    Raises:
        UserError: it belongs to another classifier or to other clips, or is of another version.
    """
    uri = storage.join(output, "cas", "cas.json")
    if not storage.exists(uri):
        return None
    try:
        found: dict[str, Any] = json.loads(storage.read_bytes(uri))
        schema = found["schema"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{uri} is not a cas.json of raysound") from None
    if schema != CAS_SCHEMA:
        raise UserError(f"{uri} has schema {schema}, not {CAS_SCHEMA}")
    for key, value in classifier.items():
        if found["classifier"][key] != value:
            raise UserError(f"{uri} is of another classifier: its {key} differs")
    for name, value in digests.items():
        if found["corpora"].get(name) != value:
            raise UserError(f"{uri} is of other clips of {name}")
    return {
        "test_clips": found["test_clips"],
        "generated": {
            name: {
                key: {"accuracy": value["accuracy"]} if key.endswith("_real") else value
                for key, value in row.items()
                if key != "real_to_generated"
            }
            for name, row in found["generated"].items()
            if name in digests
        },
    }
