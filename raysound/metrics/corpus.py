"""All numbers about one scored corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.classification import classification_report
from raysound.metrics.fidelity import Reference, fidelity_report, per_class_fidelity, prepare


@dataclass(frozen=True, eq=False)
class Scored:
    """What a judge made of some clips.

    Attributes:
        truth: class that each was asked to be, `(n,)`.
        probabilities: `(n, classes)`.
        embedding: of all of them, or of those drawn to stand for them, float32 `(m, size)`.
        drawn: which these are, ascending, `(m,)`.
    """

    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]
    drawn: NDArray[np.int64]

    def with_embedding(self) -> Scored:
        """The clips that have an embedding."""
        places = np.arange(len(self.drawn))
        return Scored(
            self.truth[self.drawn], self.probabilities[self.drawn], self.embedding, places
        )

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """Some of the clips, in any order and number; only where all have their embedding.

        Raises:
            ValueError: not all have.
        """
        if len(self.drawn) != len(self.truth):
            raise ValueError(f"{len(self.truth)} clips with {len(self.drawn)} embeddings")
        return Scored(
            self.truth[rows], self.probabilities[rows], self.embedding[rows], np.arange(len(rows))
        )


@dataclass(frozen=True, eq=False)
class RealClips:
    """Real clips that corpora are set against, with what is the same for all of these.

    Attributes:
        embedding: `(m, size)`.
        truth: class of each, `(m,)`.
        prepared: from the embeddings.
    """

    embedding: NDArray[np.float32]
    truth: NDArray[np.int64]
    prepared: Reference

    @classmethod
    def of(cls, clips: Scored) -> RealClips:
        """These clips as a reference, two or more.

        Raises:
            ValueError: fewer than two.
        """
        return cls(clips.embedding, clips.truth[clips.drawn], prepare(clips.embedding))


def corpus_report(
    scored: Scored,
    reference: RealClips,
    labels: Sequence[str],
    set_size: int,
    class_sizes: Sequence[int],
    seed: int = 0,
) -> dict[str, Any]:
    """Classification, fidelity and diversity of one corpus, ready for JSON.

    Args:
        scored: its clips.
        reference: the real clips that it is set against.
        labels: class names in the order of the probabilities.
        set_size: clips that the metrics which depend on their number are computed on.
        class_sizes: the same of each class.
        seed: of all draws.

    Returns:
        What `classification_report` and `fidelity_report` return, `per_class` with both's.
    """
    report = classification_report(
        scored.truth, scored.probabilities, labels, set_size=set_size, seed=seed
    )
    fidelity = fidelity_report(scored.embedding, reference.prepared, seed=seed, set_size=set_size)
    of_class = per_class_fidelity(
        scored.embedding, scored.truth[scored.drawn],
        reference.embedding, reference.truth, labels, set_sizes=class_sizes, seed=seed,
    )  # fmt: skip
    for label, row in of_class.items():
        report["per_class"][label] |= row
    return {**report, **fidelity}
