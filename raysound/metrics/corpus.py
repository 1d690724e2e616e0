"""Metrics of one scored corpus."""

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
    """Output of the classifier for some clips.

    Attributes:
        truth: class of the label of each clip, or its predicted class without a label, `(n,)`.
        probabilities: `(n, classes)`.
        embedding: float32 `(n, size)`.
    """

    truth: NDArray[np.int64]
    probabilities: NDArray[np.float32]
    embedding: NDArray[np.float32]

    def take(self, rows: NDArray[np.int64]) -> Scored:
        """The clips at these indices, in this order; indices may repeat."""
        return Scored(self.truth[rows], self.probabilities[rows], self.embedding[rows])

    def first(self, count: int) -> Scored:
        """The first `count` clips, or all if there are fewer."""
        return self.take(np.arange(min(count, len(self.truth))))


class CorpusSums(NamedTuple):
    """Sums over all clips of a corpus.

    Attributes:
        classification: sums of the probabilities.
        balls: counts of reference balls; of no clips if there are too few reference clips.
    """

    classification: ClassificationSums
    balls: BallCounts


@dataclass(frozen=True, eq=False)
class RealClips:
    """Real clips with which corpora are compared, with the values that all comparisons use.

    Attributes:
        embedding: `(m, size)`.
        truth: class of each clip, `(m,)`.
        marginal: mean probabilities, `(classes,)`.
        prepared: result of `prepare` for the embeddings.
    """

    embedding: NDArray[np.float32]
    truth: NDArray[np.int64]
    marginal: NDArray[np.float64]
    prepared: Reference

    @classmethod
    def of(cls, clips: Scored) -> RealClips:
        """Prepares two or more clips as a reference.

        Raises:
            ValueError: there are fewer than two clips.
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
    """Classification, fidelity and diversity of one corpus, as JSON-compatible values.

    Args:
        scored: the clips of the corpus, or, with `totals`, a sample: the first PAIR_CLIPS are the
            sample of the corpus, the clips of a class are the sample of this class.
        reference: real clips to compare with.
        labels: class names in the order of the probabilities.
        set_size: number of clips for the metrics that depend on the number of clips.
        class_sizes: the same for each class.
        seed: seed of all samples.
        totals: sums over all clips; None if `scored` contains all clips.
        is_labelled: False for clips without labels; `truth` then contains the predicted classes.
        kernels: `mmd_kernels` of the first PAIR_CLIPS and the reference; computed if None.

    Returns:
        The merged results of `classification_report`, `fidelity_report` and `per_class_fidelity`.
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
