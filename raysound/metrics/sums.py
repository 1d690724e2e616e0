"""Sums over clips from which classification metrics of a corpus of any size are computed.

Integers add up to the same whatever the order. Sums of floats are kept one row a part, and `fold`
adds the rows from the first to the last, so that neither the number of processes nor the number of
parts that one of them reads changes a bit of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import distributions, scored
from raysound.metrics.probabilities import clip_log_losses, true_ranks

# Of this many most probable classes.
TOP = 3


@dataclass(frozen=True, eq=False)
class ClassificationSums:
    """Sums over the clips of some parts of a corpus.

    Attributes:
        cells: Cells of the confusion matrix with a clip, ascending: truth · classes + prediction.
        counts: Clips of each of these cells.
        in_top: Clips whose class is among the three most probable.
        rows: float64 `(parts, 4)`: Σ r, Σ r², Σ s and Σ s², where r is 1 / rank of the clip's
            class, 0 beyond rank 3, and s is -ln of its probability.
    """

    cells: NDArray[np.int64]
    counts: NDArray[np.int64]
    in_top: int
    rows: NDArray[np.float64]

    @classmethod
    def of(cls, truth: ArrayLike, probabilities: ArrayLike) -> ClassificationSums:
        """Sums over the clips of one part.

        Args:
            truth: Class indices, `(n,)`.
            probabilities: `(n, classes)`, each row adding up to 1.

        Raises:
            ValueError: The lengths differ, a class is out of range, or a row is no distribution.
        """
        probabilities = distributions(probabilities)
        truth, probabilities = scored(truth, probabilities)
        prediction = probabilities.argmax(axis=1)
        cells, counts = np.unique(truth * probabilities.shape[1] + prediction, return_counts=True)
        ranks = true_ranks(truth, probabilities)
        each = (np.where(ranks <= TOP, 1 / ranks, 0), clip_log_losses(truth, probabilities))
        rows = [[total for of in each for total in (of.sum(), (of * of).sum())]]
        return cls(cells, counts.astype(np.int64), int((ranks <= TOP).sum()), np.array(rows))

    @property
    def clips(self) -> int:
        """How many clips there are."""
        return int(self.counts.sum())

    def confusion(self, classes: int) -> NDArray[np.int64]:
        """Clips of each true class that were predicted as each class, `(classes, classes)`."""
        matrix = np.zeros(classes * classes, np.int64)
        matrix[self.cells] = self.counts
        return matrix.reshape(classes, classes)


def merge_sums(parts: Sequence[ClassificationSums]) -> ClassificationSums:
    """Sums over one part or more, in their order; the rows stay apart."""
    cells, place = np.unique(np.concatenate([one.cells for one in parts]), return_inverse=True)
    counts = np.zeros(len(cells), np.int64)
    np.add.at(counts, place, np.concatenate([one.counts for one in parts]))
    return ClassificationSums(
        cells, counts, sum(one.in_top for one in parts), np.concatenate([one.rows for one in parts])
    )


def fold(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    """Adds rows `(parts, n)` one by one, as `(1, n)`; of a part, or of none, what is there."""
    # cumsum adds in order; sum adds pairwise, so that its bits depend on where a sum is cut.
    return np.cumsum(rows, axis=0)[-1:]
