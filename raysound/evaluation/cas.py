"""Classification accuracy scores: the choice of clips, and cas.json.

Ravuri and Vinyals, "Classification accuracy score for conditional generative models", NeurIPS 2019:
a classifier trained on generated clips is tested on real ones. Accuracy grows with the number of
training clips, so it is compared with a classifier trained on as many real clips of each class.
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
# Splits that classifiers are trained with.
SPLITS = ("train", "validation")


def match_class_counts(real: pa.Table, generated: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Training and validation clips of two corpora, with equal counts per class and split.

    The smaller corpus limits each count. The clips whose names have the smallest SHA-256 are kept,
    so the order of the rows does not matter. Classes that are missing in one corpus are dropped.

    Args:
        real: rows with `clip_id`, `label` and `split`.
        generated: likewise.

    Returns:
        The rows of `real` and those of `generated`, in their order, without test clips.
    """
    sides = [_by_class_and_split(table) for table in (real, generated)]
    kept: tuple[list[int], list[int]] = ([], [])
    for key in sides[0].keys() & sides[1].keys():
        count = min(len(side[key]) for side in sides)
        for rows, side in zip(kept, sides, strict=True):
            rows += [row for _, row in sorted(side[key])[:count]]
    first, second = (np.sort(np.array(rows, np.int64)) for rows in kept)
    return real.take(pa.array(first)), generated.take(pa.array(second))


def _by_class_and_split(table: pa.Table) -> dict[tuple[str, str], list[tuple[bytes, int]]]:
    """Hash and row of each training and validation clip, by class and split."""
    clips: dict[tuple[str, str], list[tuple[bytes, int]]] = {}
    columns = (table[name].to_pylist() for name in ("clip_id", "label", "split"))
    for row, (clip_id, label, split) in enumerate(zip(*columns, strict=True)):
        if split in SPLITS:
            sha = hashlib.sha256(clip_id.encode("utf-8", "surrogateescape")).digest()
            clips.setdefault((label, split), []).append((sha, row))
    return clips


def clips_by_class(clips: pa.Table) -> dict[str, dict[str, int]]:
    """The number of training and validation clips of each class."""
    counts = Counter(zip(clips["label"].to_pylist(), clips["split"].to_pylist(), strict=True))
    labels = sorted({label for label, _ in counts})
    return {label: {split: counts[label, split] for split in SPLITS} for label in labels}


def read_scores(
    output: str, classifier: Mapping[str, Any], digests: Mapping[str, str]
) -> dict[str, Any] | None:
    """Reads cas.json for metrics.json and the report.

    Args:
        output: of the experiment.
        classifier: `run`, `feature_id` and `split_digest` of the classifier of an evaluation.
        digests: of the clips of all evaluated corpora, including `real`, by name.

    Returns:
        `test_clips`, and the content of cas.json by generator, without the accuracies per class;
        None if there is no cas.json.

    Raises:
        UserError: it belongs to another classifier or to other clips, or has another version.
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
            raise UserError(f"{uri} belongs to another classifier: its {key} differs")
    for name, value in digests.items():
        if found["corpora"].get(name) != value:
            raise UserError(f"{uri} belongs to other clips of {name}")
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
