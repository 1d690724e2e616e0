"""Sums over clips, from which the classification metrics of a corpus of any size are computed.

Sums of integers do not depend on the order. Sums of floats are kept as one row per part, and
`sum_in_order` adds the rows from first to last, so that the result is bitwise equal for any number
of processes and of parts per process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import distributions, scored
from raysound.metrics.probabilities import clip_log_losses, true_ranks

# Number of most probable classes that `top_3` and `map_3` consider.
TOP_K = 3


@dataclass(frozen=True, eq=False)
class ClassificationSums:
    """Sums over the clips of some parts of a corpus.

    Attributes:
        cells: Non-empty cells of the confusion matrix, ascending: truth · classes + prediction.
        counts: Number of clips of each of these cells.
        in_top: Number of clips whose class is among the three most probable.
        rows: float64 `(parts, 4)`: Σ r, Σ r², Σ s and Σ s², where r is 1 / rank of the class of a
            clip, 0 beyond rank 3, and s is -ln of its probability.
    """

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]
    in_top: int
    rows: NDArray[np.float64]

    @classmethod
    def empty(cls) -> ClassificationSums:
        """Sums over no clips."""
        none = np.zeros(0, np.int64)
        return cls(none, none, 0, np.zeros((0, 4)))

    @classmethod
    def of(cls, truth: ArrayLike, probabilities: ArrayLike) -> ClassificationSums:
        """Sums over the clips of one part.

        Args:
            truth: Class indices, `(n,)`.
            probabilities: `(n, classes)`; each row adds up to 1.

        Raises:
            ValueError: The lengths differ, a class is out of range, or a row is not a
                distribution.
        """
        probabilities = distributions(probabilities)
        truth, probabilities = scored(truth, probabilities)
        prediction = probabilities.argmax(axis=1)
        cells, counts = np.unique(truth * probabilities.shape[1] + prediction, return_counts=True)
        ranks = true_ranks(truth, probabilities)
        each = (np.where(ranks <= TOP_K, 1 / ranks, 0), clip_log_losses(truth, probabilities))
        rows = [[total for of in each for total in (of.sum(), (of * of).sum())]]
        return cls(cells, counts.astype(np.int64), int((ranks <= TOP_K).sum()), np.array(rows))

    @property
    def clips(self) -> int:
        """Number of clips."""
        return int(self.counts.sum())

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """Confusion matrix, `(classes, classes)`: rows are the truth, columns the prediction."""
        matrix = np.zeros(classes * classes, np.int64)
        matrix[self.cells] = self.counts
        return matrix.reshape(classes, classes)


def merge_sums(parts: Sequence[ClassificationSums]) -> ClassificationSums:
    """Merges the sums of one or more parts, in their order; the rows are concatenated."""
    cells, index = np.unique(np.concatenate([one.cells for one in parts]), return_inverse=True)
    counts = np.zeros(len(cells), np.int64)
    np.add.at(counts, index, np.concatenate([one.counts for one in parts]))
    return ClassificationSums(
        cells, counts, sum(one.in_top for one in parts), np.concatenate([one.rows for one in parts])
    )


def sum_in_order(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds rows `(parts, n)` from first to last; returns `(1, n)`, or `(0, n)` without rows."""
    # cumsum adds in order; sum adds pairwise, so its rounding depends on the division into parts.
    return np.cumsum(rows, axis=0)[-1:]
