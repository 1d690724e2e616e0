"""All numbers about one scored corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.classification import classification_report
from raysound.metrics.declarations import PAIR_CLIPS
from raysound.metrics.fidelity import Reference, fidelity_report, per_class_fidelity, prepare
from raysound.metrics.kernel import KernelMatrices
from raysound.metrics.neighbours import BallCounts
from raysound.metrics.sums import ClassificationSums


@dataclass(frozen=True, eq=False)
class Scored:
    """What the classifier made of some clips.

    Attributes:
        truth: class that each was asked to be, or is predicted as where it has no label, `(n,)`.
        probabilities: `(n, classes)`.
        embedding: float32 `(n, size)`.
    """

    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """Some of the clips, in any order and number."""
        return Scored(self.truth[rows], self.probabilities[rows], self.embedding[rows])

    def first(self, count: int) -> Scored:
        """At most so many of the clips, from the first."""
        return self.take(np.arange(min(count, len(self.truth))))


class CorpusSums(NamedTuple):
    """Sums over all clips of a corpus.

    Attributes:
        classification: of their probabilities.
        balls: of where they lie among the reference clips; no clips where these are too few.
    """

    classification: ClassificationSums
    balls: BallCounts


@dataclass(frozen=True, eq=False)
class RealClips:
    """Real clips that corpora are set against, with what is the same for all of these.

    Attributes:
        embedding: `(m, size)`.
        truth: class of each, `(m,)`.
        marginal: their mean probabilities, `(classes,)`.
        prepared: from the embeddings.
    """

    embedding: NDArray[np.float32]
    truth: NDArray[np.int64]
    marginal: NDArray[np.float64]
    prepared: Reference

    @classmethod
    def of(cls, clips: Scored) -> RealClips:
        """These clips as a reference, two or more.

        Raises:
            ValueError: fewer than two.
        """
        marginal = clips.probabilities.mean(axis=0, dtype=np.float64)
        return cls(clips.embedding, clips.truth, marginal, prepare(clips.embedding))


def corpus_report(
    scored: Scored,
    reference: RealClips,
    labels: Sequence[str],
    set_size: int,
    class_sizes: Sequence[int],
    seed: int = 0,
    totals: CorpusSums | None = None,
    is_labelled: bool = True,
    kernels: KernelMatrices | None = None,
) -> dict[str, Any]:
    """Classification, fidelity and diversity of one corpus, ready for JSON.

    Args:
        scored: its clips; with `totals` a sample of them: the first PAIR_CLIPS stand for all, those
            of a class for the class.
        reference: the real clips that it is set against.
        labels: class names in the order of the probabilities.
        set_size: clips that the metrics which depend on their number are computed on.
        class_sizes: the same of each class.
        seed: of all draws.
        totals: sums over all clips; None: `scored` are all.
        is_labelled: False for clips without labels, whose `truth` is what they are predicted as.
        kernels: `mmd_kernels` of the first PAIR_CLIPS and the reference, if at hand.

    Returns:
        What `classification_report` and `fidelity_report` return, `per_class` with both's.
    """
    some = scored if totals is None else scored.first(PAIR_CLIPS)
    report = classification_report(
        some.truth, some.probabilities, labels, set_size=set_size, seed=seed,
        sums=totals and totals.classification, real_marginal=reference.marginal,
        is_labelled=is_labelled,
    )  # fmt: skip
    fidelity = fidelity_report(
        some.embedding, reference.prepared, seed=seed, set_size=set_size,
        counts=totals and totals.balls, kernels=kernels,
    )  # fmt: skip
    of_class = per_class_fidelity(
        scored.embedding, scored.truth, reference.embedding, reference.truth, labels,
        set_sizes=class_sizes, seed=seed,
    )  # fmt: skip
    for label, row in of_class.items():
        report["per_class"][label] |= row
    return {**report, **fidelity}
