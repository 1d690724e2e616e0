"""Fidelity and diversity of generated clips relative to real clips, from embeddings.

The interval of every measure covers other clips of the same generator against the same reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, indices, rows, same_dimensions
from raysound.metrics.declarations import METRICS, PAIR_CLIPS
from raysound.metrics.frechet import (
    MAX_DIMENSIONS,
    PARTS,
    covariance_factor,
    fad_inf,
    fad_inf_estimate,
    frechet_estimate,
    no_extrapolation_reason,
    split_moments,
)
from raysound.metrics.intervals import MIN_CLIPS_FOR_INTERVAL, Estimate, estimate
from raysound.metrics.kernel import (
    KernelMatrices,
    bandwidth,
    kernel_matrices,
    kernel_mean,
    mmd_estimate,
)
from raysound.metrics.moments import Moments, moments
from raysound.metrics.neighbours import (
    BallCounts,
    K,
    clip_estimates,
    nearest_others,
    neighbours,
    per_clip,
    set_estimates,
)
from raysound.metrics.sampling import sample_rows, size_note

MAX_CLIPS_PER_CLASS = 1000


@dataclass(frozen=True, eq=False)
class Reference:
    """Real clips with the values that every comparison with them uses.

    Attributes:
        clips: Number of real clips.
        sample: At most 5,000 of them, for metrics of pairs of clips, `(m, d)`.
        near_squared: Squared distances to the 5 nearest other clips, `(m, 5)`; empty if there are
            fewer.
        sigma: Bandwidth of the MMD; None if there is none.
        no_sigma_reason: Why there is no bandwidth; empty if there is one.
        own_kernel: Mean kernel between two clips of the sample.
        moments: Moments of all clips.
        factor: `covariance_factor(moments)`; None above 1,024 dimensions.
        parts: Moments of 8 random parts of all clips; empty if there are too few clips.
    """

    clips: int
    sample: NDArray[np.float64]
    near_squared: NDArray[np.float64]
    sigma: float | None
    no_sigma_reason: str
    own_kernel: float
    moments: Moments
    factor: NDArray[np.float64] | None
    parts: Sequence[Moments]


def prepare(reference: ArrayLike, seed: int = 0) -> Reference:
    """Computes the values that every comparison with these real clips uses.

    Args:
        reference: Embeddings, `(m, d)`, two or more clips.
        seed: Seed of the sample and the parts.

    Raises:
        ValueError: The shape is not `(m, d)`, a number is not finite, or there are fewer than two
            clips.
    """
    array = rows("reference", reference)
    if len(array) < 2:
        raise ValueError(f"a reference needs at least 2 clips, got {len(array)}")
    of_all = moments(array)
    d = len(of_all.mean)
    sample = embeddings("reference", sample_rows(array, PAIR_CLIPS, seed))
    sigma, why, own = None, "", 0.0
    try:
        sigma = bandwidth(sample, seed)
        own = kernel_mean(sample, sigma)
    except ValueError as error:
        why = str(error)
    return Reference(
        clips=len(array),
        sample=sample,
        near_squared=nearest_others(sample, K)[1] if len(sample) > K else np.empty((0, K)),
        sigma=sigma,
        no_sigma_reason=why,
        own_kernel=own,
        moments=of_all,
        factor=covariance_factor(of_all) if d <= MAX_DIMENSIONS else None,
        parts=()
        if no_extrapolation_reason(len(array), len(array), d)
        else split_moments(array, PARTS, seed),
    )


def fidelity_report(
    generated: ArrayLike,
    reference: ArrayLike | Reference,
    *,
    seed: int,
    set_size: int,
    counts: BallCounts | None = None,
    kernels: KernelMatrices | None = None,
) -> dict[str, Any]:
    """Metrics of one corpus that are computed from embeddings, as JSON-compatible values.

    Fréchet distance, recall and coverage depend on the number of clips (`needs_equal_n` of their
    declarations), so they are computed on `set_size` clips sampled from the corpus; use the same
    `set_size` for all corpora of a report. MMD is unbiased and uses up to 5,000 clips, the
    extrapolated Fréchet distance uses all given clips. Precision, density and authenticity are
    computed from `counts`.

    Args:
        generated: Embeddings, `(n, d)`, any number of clips.
        reference: Embeddings of real clips, `(m, d)`, or the result of `prepare`.
        seed: Seed of the samples.
        set_size: Number of clips to sample, 1 or more, limited to 5,000. If the corpus has fewer
            clips, all of them are used and the three measures have a `note`.
        counts: Counts over all clips of the corpus, if `generated` is a sample; None if it is not.
        kernels: `mmd_kernels` of both sets; computed if None.

    Returns:
        `compared`, the number of sampled clips, and measures: `frechet_distance`, `fad_inf`,
        `mmd2_x100` (times 100), `recall`, `coverage`, `precision`, `density`, `authenticity`.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, the dimensions differ, the
            reference has fewer than two clips, or `set_size` is below 1.
    """
    if set_size < 1:
        raise ValueError(f"set_size must be 1 or more, got {set_size}")
    real = reference if isinstance(reference, Reference) else prepare(reference, seed)
    array = rows("generated", generated)
    same_dimensions(array, real.sample)
    set_size = min(set_size, PAIR_CLIPS)
    some = embeddings("generated", sample_rows(array, set_size, seed))
    report: dict[str, Any] = {
        "compared": len(some),
        "frechet_distance": frechet_estimate(some, real.moments, real.factor, seed=seed),
    }
    why = no_extrapolation_reason(len(array), real.clips, array.shape[1])
    if why or real.factor is None:
        report["fad_inf"] = estimate(None, why=why)
    else:
        report["fad_inf"] = fad_inf_estimate(array, real.parts, real.moments, real.factor, seed)
    kernels = mmd_kernels(array, real, seed) if kernels is None else kernels
    report["mmd2_x100"] = _mmd(kernels, len(array), real, seed)
    report |= _sets(some, real, seed) | _clips(array, real, counts)
    for metric in METRICS:
        if metric.needs_equal_n and metric.key in report:
            report[metric.key] |= size_note(len(some), set_size)
    return report


def per_class_fidelity(
    generated: ArrayLike,
    generated_labels: ArrayLike,
    reference: ArrayLike,
    reference_labels: ArrayLike,
    classes: Sequence[str],
    *,
    set_sizes: Sequence[int],
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Compares the generated clips of each class with the real clips of this class.

    MMD uses up to 1,000 clips of a class on each side, and the bandwidth of the complete reference,
    so that classes are comparable. Coverage depends on the number of clips, so it is computed on
    `set_sizes` clips; use the same `set_sizes` for all corpora of a report.

    Args:
        generated: Embeddings, `(n, d)`.
        generated_labels: Class indices, `(n,)`.
        reference: Embeddings of real clips, `(m, d)`, two or more.
        reference_labels: Class indices, `(m,)`.
        classes: Name of each class, by index.
        set_sizes: Number of clips of each class to sample for coverage. If a class has fewer clips,
            all of them are used and its coverage has a `note`.
        seed: Seed of the samples.

    Returns:
        By class name: `generated` and `reference`, numbers of clips; `mmd2_x100`, `coverage` and
        `fad_inf`, measures. A value is None, with a `why`, if a side has fewer than 10 clips, if
        the coverage has a set size below 10, or if there are too few clips to extrapolate.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, the dimensions or the numbers
            of labels and clips differ, a class is out of range, or there are fewer than two real
            clips.
    """
    x, y = rows("generated", generated), rows("reference", reference)
    same_dimensions(x, y)
    y64 = embeddings("reference", y)
    of_x = indices("generated_labels", generated_labels, len(classes))
    of_y = indices("reference_labels", reference_labels, len(classes))
    for name, labels, values in (("generated", of_x, x), ("reference", of_y, y)):
        if len(labels) != len(values):
            raise ValueError(f"{len(labels)} labels for {len(values)} {name} clips")
    try:
        sigma, why = bandwidth(y64, seed), ""
    except ValueError as error:
        sigma, why = None, str(error)
    return {
        name: _of_class(x[of_x == label], y[of_y == label], sigma, why, int(set_sizes[label]), seed)
        for label, name in enumerate(classes)
    }


def _of_class(
    x: NDArray[Any], y: NDArray[Any], sigma: float | None, why: str, set_size: int, seed: int
) -> dict[str, Any]:
    counts = {"generated": len(x), "reference": len(y)}
    for side, clips in counts.items():
        if clips < MIN_CLIPS_FOR_INTERVAL:
            why = f"{clips} {side} clips: fewer than {MIN_CLIPS_FOR_INTERVAL}"
            names = ("mmd2_x100", "coverage", "fad_inf")
            return {**counts, **{name: estimate(None, why=why) for name in names}}
    discrepancy = estimate(None, why=why)
    if sigma is not None:
        some, real = (sample_rows(values, MAX_CLIPS_PER_CLASS, seed) for values in (x, y))
        discrepancy = mmd_estimate(kernel_matrices(some, real, sigma), seed)
    return {
        **counts,
        "mmd2_x100": discrepancy,
        "coverage": _coverage(x, y, set_size, seed),
        "fad_inf": fad_inf(x, y, seed),
    }


def _coverage(x: NDArray[Any], y: NDArray[Any], set_size: int, seed: int) -> Estimate:
    if set_size < MIN_CLIPS_FOR_INTERVAL:
        return estimate(
            None,
            why=f"{set_size} real test clips of the class: fewer than {MIN_CLIPS_FOR_INTERVAL}",
        )
    some = sample_rows(x, min(set_size, PAIR_CLIPS), seed)
    found = set_estimates(neighbours(some, sample_rows(y, PAIR_CLIPS, seed)), seed)["coverage"]
    return found | size_note(len(some), set_size)


def mmd_kernels(generated: ArrayLike, reference: Reference, seed: int = 0) -> KernelMatrices | None:
    """Kernel matrices from which the MMD of some clips is computed; None if it has no value.

    Args:
        generated: Embeddings, `(n, d)`; at most 5,000 clips are sampled.
        reference: Real clips.
        seed: Seed of the sample.
    """
    some = sample_rows(rows("generated", generated), PAIR_CLIPS, seed)
    if reference.sigma is None or len(some) < 2:
        return None
    return kernel_matrices(some, reference.sample, reference.sigma, reference.own_kernel)


def _mmd(kernels: KernelMatrices | None, clips: int, real: Reference, seed: int) -> Estimate:
    if kernels is not None:
        return mmd_estimate(kernels, seed)
    if real.sigma is None:
        return estimate(None, why=real.no_sigma_reason)
    return estimate(None, why=f"{clips} clips: MMD needs at least 2")


def _sets(x: NDArray[np.float64], real: Reference, seed: int) -> dict[str, Estimate]:
    for clips, side in ((len(x), "generated"), (len(real.sample), "reference")):
        if clips <= K:
            why = f"{clips} {side} clips: {K} neighbours need more"
            return {name: estimate(None, why=why) for name in ("recall", "coverage")}
    return set_estimates(neighbours(x, real.sample, K, real.near_squared), seed)


def _clips(x: NDArray[Any], real: Reference, counts: BallCounts | None) -> dict[str, Estimate]:
    clips = len(x) if counts is None else counts.clips
    why = "" if clips else "no clips"
    if len(real.sample) <= K:
        why = f"{len(real.sample)} reference clips: {K} neighbours need more"
    if why:
        return {name: estimate(None, why=why) for name in ("precision", "density", "authenticity")}
    if counts is None:
        found = per_clip(x, real.sample, K, real.near_squared)
        counts = BallCounts.of(found.balls, found.authentic)
    return clip_estimates(counts)
