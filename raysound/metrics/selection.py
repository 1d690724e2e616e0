"""Bounded selections of clips; selections of parts can be merged.

A clip is selected if its value is among the smallest of its group. The smallest values of a corpus
are among the smallest of its parts, so the division into parts does not matter.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.declarations import EMBEDDING_NUMBERS, PAIR_CLIPS

CLIPS_PER_CELL = 20
# Bound over all cells of a corpus, at least one per cell: with many classes, names are most of the
# page.
CLIPS_OF_ALL_CELLS = 40_000
# Position of a clip and the values by which it is selected: 28 bytes.
ENTRY = np.dtype(
    [
        ("part", np.int32),
        ("row", np.int32),
        ("key", np.uint64),
        ("truth", np.int16),
        ("prediction", np.int16),
        ("probability", np.float32),
        ("target_probability", np.float32),
    ]
)


class Limits(NamedTuple):
    """Numbers of selected clips of a corpus.

    Attributes:
        per_class: Clips of each class for the metrics per class.
        examples: Clips of each class with the lowest and with the highest target probability, each.
    """

    per_class: int
    examples: int


def limits(classes: int, embedding_size: int, examples: int) -> Limits:
    """Limits that keep the embeddings of a corpus's selected clips below EMBEDDING_NUMBERS."""
    of_class = EMBEDDING_NUMBERS // max(1, classes * embedding_size)
    return Limits(max(1, min(PAIR_CLIPS, of_class)), examples)


def keys(clip_ids: Sequence[str]) -> NDArray[np.uint64]:
    """Pseudorandom number of each clip, `(n,)`: the first 8 bytes of the SHA-256 of its name."""
    digests = b"".join(
        hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest()[:8] for name in clip_ids
    )
    return np.frombuffer(digests, ">u8").astype(np.uint64)


def smallest(
    values: NDArray[np.generic], count: int, groups: NDArray[np.int64] | None = None
) -> NDArray[np.bool_]:
    """Whether each value is among the `count` smallest of its group; of equal values the first is.

    Args:
        values: `(n,)`.
        count: Number of values per group.
        groups: Group of each value, `(n,)`; None for a single group.

    Examples:
        >>> smallest(np.array([3, 1, 2, 1]), 2).tolist()
        [False, True, False, True]
    """
    groups = np.zeros(len(values), np.int64) if groups is None else groups
    order = np.lexsort((values, groups))
    ordered = groups[order]
    rank = np.arange(len(values)) - np.searchsorted(ordered, ordered)
    chosen = np.zeros(len(values), bool)
    chosen[order] = rank < count
    return chosen


def sampled(entries: NDArray[np.void]) -> NDArray[np.void]:
    """Entries sorted by key: the first n are a random sample of n clips."""
    return entries[np.lexsort((entries["row"], entries["part"], entries["key"]))]


def cell_mask(entries: NDArray[np.void]) -> NDArray[np.bool_]:
    """Selects the clips of each confusion-matrix cell with the most probable predictions."""
    cells = entries["truth"].astype(np.int64) << 32 | entries["prediction"]
    occupied = len(np.unique(cells))
    count = max(1, min(CLIPS_PER_CELL, CLIPS_OF_ALL_CELLS // max(1, occupied)))
    return smallest(-entries["probability"], count, cells)


def example_mask(entries: NDArray[np.void], limit: Limits) -> NDArray[np.bool_]:
    """Selects the clips of each class with the lowest and the highest target probability."""
    truth = entries["truth"].astype(np.int64)
    # Of equally probable clips the last one counts as the highest, as in a sorted list.
    last = smallest(-entries["target_probability"][::-1], limit.examples, truth[::-1])[::-1]
    return smallest(entries["target_probability"], limit.examples, truth) | last


def select(entries: NDArray[np.void], limit: Limits) -> NDArray[np.void]:
    """Entries that are in any selection, in their order.

    The selections are a sample of PAIR_CLIPS clips, a sample per class, the clips of each cell and
    the examples.

    Args:
        entries: Array of ENTRY, sorted by part and row.
        limit: Numbers of clips.
    """
    chosen = smallest(entries["key"], PAIR_CLIPS)
    chosen |= smallest(entries["key"], limit.per_class, entries["truth"].astype(np.int64))
    return entries[chosen | cell_mask(entries) | example_mask(entries, limit)]
