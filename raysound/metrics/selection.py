"""Bounded selections of clips, which can be taken per part and put together.

A clip is in a selection if its key is among the smallest of its group. The smallest of a whole are
among the smallest of its parts, so it does not matter how a corpus is cut.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.declarations import EMBEDDING_NUMBERS, PAIR_CLIPS

CLIPS_OF_A_CELL = 20
# Of all cells of a corpus, but one each: names are most of a page of many classes.
CLIPS_OF_CELLS = 40_000
# A clip's place among all, and what decides whether it is selected. 28 bytes.
ENTRY = np.dtype(
    [
        ("part", np.int32),
        ("row", np.int32),
        ("key", np.uint64),
        ("truth", np.int16),
        ("prediction", np.int16),
        ("probability", np.float32),
        ("asked", np.float32),
    ]
)


class Limits(NamedTuple):
    """How many clips of a corpus are selected.

    Attributes:
        of_class: For the metrics of a class, of each.
        examples: Of a class the least and the most probable, as many of each.
    """

    of_class: int
    examples: int


def limits(classes: int, embedding_size: int, examples: int) -> Limits:
    """Limits that keep the embeddings of a corpus's selected clips below EMBEDDING_NUMBERS."""
    of_class = EMBEDDING_NUMBERS // max(1, classes * embedding_size)
    return Limits(max(1, min(PAIR_CLIPS, of_class)), examples)


def keys(clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """A number drawn for each clip by its name, `(n,)`: the first 8 bytes of its SHA-256."""
    digests = b"".join(
        hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8] for name in clip_ids
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def smallest(
    values: NDArray[np.generic], most: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Whether each value is among the `most` smallest of its group; of equal ones the first counts.

    Args:
        values: `(n,)`.
        most: Of each group.
        groups: Of each value, `(n,)`; None for one group.

    Examples:
        >>> smallest(np.array([3, 1, 2, 1]), 2).tolist()
        [False, True, False, True]
    """
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    order = np.lexsort((values, groups))
    ordered = groups[order]
    place = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    chosen = np.zeros(len(values), bool)
    chosen[order] = place < most
    return chosen


def sampled(entries: NDArray[np.void]) -> NDArray[np.void]:
    """Entries in the order of their keys: the first n of them are a sample of n clips."""
    return entries[np.lexsort((entries["row"], entries["part"], entries["key"]))]


def of_cells(entries: NDArray[np.void]) -> NDArray[np.bool_]:
    """Of each cell of the confusion matrix the clips whose prediction is most probable."""
    cells = entries["truth"].astype(np.int64) << 32 | entries["prediction"]
    found = len(np.unique(cells))
    most = max(1, min(CLIPS_OF_A_CELL, CLIPS_OF_CELLS // max(1, found)))
    return smallest(-entries["probability"], most, cells)


def of_examples(entries: NDArray[np.void], limit: Limits) -> NDArray[np.bool_]:
    """Of each class the clips that are least and most probable as what they were asked to be."""
    truth = entries["truth"].astype(np.int64)
    # The last of equally probable clips is the more convincing one, as where all are sorted.
    last = smallest(-entries["asked"][::-1], limit.examples, truth[::-1])[::-1]
    return smallest(entries["asked"], limit.examples, truth) | last


def select(entries: NDArray[np.void], limit: Limits) -> NDArray[np.void]:
    """Those entries, in their order, that are in any selection.

    A sample of PAIR_CLIPS of all clips, one of each class, the clips of each cell, the examples.

    Args:
        entries: Of ENTRY, by part and row.
        limit: How many.
    """
    chosen = smallest(entries["key"], PAIR_CLIPS)
    chosen |= smallest(entries["key"], limit.of_class, entries["truth"].astype(np.int64))
    return entries[chosen | of_cells(entries) | of_examples(entries, limit)]
