"""How close generated clips are to real ones in an embedding, and how varied they are.

Every measure's interval covers other clips of the same generator against the same reference.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, indices, rows, same_dimensions
from raysound.metrics.declarations import METRICS, PAIR_CLIPS
from raysound.metrics.frechet import (
    MOST_DIMENSIONS,
    PARTS,
    cut,
    factor,
    fad_inf,
    frechet_measure,
    infinite_measure,
    refusal,
)
from raysound.metrics.intervals import FEWEST, Estimate, estimate
from raysound.metrics.kernel import (
    KernelMatrices,
    bandwidth,
    kernel_matrices,
    kernel_mean,
    mmd_measure,
)
from raysound.metrics.moments import Moments, moments
from raysound.metrics.neighbours import (
    BallCounts,
    K,
    clip_measures,
    nearest_others,
    neighbours,
    per_clip,
    set_measures,
)
from raysound.metrics.sampling import drawn, fewer

MOST_CLIPS_OF_A_CLASS = 1000


@dataclass(frozen=True, eq=False)
class Reference:
    """Real clips, with all that is the same for every corpus compared with them.

    Attributes:
        clips: Real clips in all.
        sample: Up to 5,000 of them, for what is computed from pairs, `(m, d)`.
        near: Squared distances to their 5 nearest others, `(m, 5)`; empty where there are fewer.
        sigma: Bandwidth of the MMD; None, and `no_sigma` says why, where there is none.
        no_sigma: Why there is no bandwidth.
        own_kernel: Mean kernel between two of the sample.
        moments: Of all clips.
        factor: `factor(moments)`; None above 1,024 dimensions, where it is rarely needed.
        parts: Moments of 8 random parts of all clips; empty where there are too few.
    """

    clips: int
    sample: NDArray[np.float64]
    near: NDArray[np.float64]
    sigma: float | None
    no_sigma: str
    own_kernel: float
    moments: Moments
    factor: NDArray[np.float64] | None
    parts: Sequence[Moments]


def prepare(reference: ArrayLike, seed: int = 0) -> Reference:
    """Compute once what every comparison with these real clips needs.

    Args:
        reference: Embeddings, `(m, d)`, two clips or more.
        seed: Makes the sample and the parts repeatable.

    Raises:
        ValueError: Not `(m, d)`, a number that is not finite, or fewer than two clips.
    """
    array = rows("reference", reference)
    if len(array) < 2:
        raise ValueError(f"a reference needs 2 clips or more, got {len(array)}")
    of_all = moments(array)
    d = len(of_all.mean)
    sample = embeddings("reference", drawn(array, PAIR_CLIPS, seed))
    sigma, why, own = None, "", 0.0
    try:
        sigma = bandwidth(sample, seed)
        own = kernel_mean(sample, sigma)
    except ValueError as error:
        why = str(error)
    return Reference(
        clips=len(array),
        sample=sample,
        near=nearest_others(sample, K)[1] if len(sample) > K else np.empty((0, K)),
        sigma=sigma,
        no_sigma=why,
        own_kernel=own,
        moments=of_all,
        factor=factor(of_all) if d <= MOST_DIMENSIONS else None,
        parts=() if refusal(len(array), len(array), d) else cut(array, PARTS, seed),
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
    """All numbers about one corpus that come from its embeddings, ready for JSON.

    Fréchet distance, recall and coverage depend on the number of clips (`needs_equal_n` of their
    declarations), so they are computed on `set_size` clips drawn from the corpus: give all corpora
    of a report the same. MMD is unbiased at any number and takes up to 5,000 clips, the
    extrapolated Fréchet distance all that are given. Precision, density and authenticity are
    computed from `counts`.

    Args:
        generated: Embeddings, `(n, d)`, any number of clips.
        reference: Embeddings of real clips, `(m, d)`, or `prepare` of them.
        seed: Makes what is drawn repeatable.
        set_size: Clips to draw, 1 or more; above 5,000 it is 5,000. A corpus of fewer is used whole
            and the three carry a `note`.
        counts: Of all clips of the corpus, where those given are a sample; None: they are all.
        kernels: `mmd_kernels` of the two, if at hand.

    Returns:
        `compared`, the clips drawn, and measures: `frechet_distance`, `fad_inf`,
        `mmd2_x100` (times 100), `recall`, `coverage`, `precision`, `density`, `authenticity`.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, a
            reference of fewer than two clips, or a `set_size` below 1.
    """
    if set_size < 1:
        raise ValueError(f"set_size must be 1 or more, got {set_size}")
    real = reference if isinstance(reference, Reference) else prepare(reference, seed)
    array = rows("generated", generated)
    same_dimensions(array, real.sample)
    set_size = min(set_size, PAIR_CLIPS)
    some = embeddings("generated", drawn(array, set_size, seed))
    report: dict[str, Any] = {
        "compared": len(some),
        "frechet_distance": frechet_measure(some, real.moments, real.factor, seed=seed),
    }
    why = refusal(len(array), real.clips, array.shape[1])
    if why or real.factor is None:
        report["fad_inf"] = estimate(None, why=why)
    else:
        report["fad_inf"] = infinite_measure(array, real.parts, real.moments, real.factor, seed)
    kernels = mmd_kernels(array, real, seed) if kernels is None else kernels
    report["mmd2_x100"] = _mmd(kernels, len(array), real, seed)
    report |= _sets(some, real, seed) | _clips(array, real, counts)
    for metric in METRICS:
        if metric.needs_equal_n and metric.key in report:
            report[metric.key] |= fewer(len(some), set_size)
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
    """Each class's generated clips against its own real clips.

    MMD takes up to 1,000 clips of a class on each side, with the bandwidth of the whole reference,
    so that classes compare. Coverage, which depends on the number of clips, takes `set_sizes` of
    them: give all corpora of a report the same.

    Args:
        generated: Embeddings, `(n, d)`.
        generated_labels: Class indices, `(n,)`.
        reference: Embeddings of real clips, `(m, d)`, two or more.
        reference_labels: Class indices, `(m,)`.
        classes: Name of each class, by index.
        set_sizes: Clips of each class to draw for its coverage. A corpus of fewer is used whole,
            and its coverage carries a `note`.
        seed: Makes what is drawn repeatable.

    Returns:
        By class name: `generated` and `reference`, clips; `mmd2_x100`, `coverage` and
        `fad_inf`, measures. A value is None with a `why` below 10 clips on a
        side, of a coverage below 10 to draw, or where there are too few for an extrapolation.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, dimensions that differ, labels that
            do not fit, or fewer than two real clips.
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
        if clips < FEWEST:
            why = f"{clips} {side} clips: fewer than {FEWEST}"
            names = ("mmd2_x100", "coverage", "fad_inf")
            return {**counts, **{name: estimate(None, why=why) for name in names}}
    discrepancy = estimate(None, why=why)
    if sigma is not None:
        some, real = (drawn(values, MOST_CLIPS_OF_A_CLASS, seed) for values in (x, y))
        discrepancy = mmd_measure(kernel_matrices(some, real, sigma), seed)
    return {
        **counts,
        "mmd2_x100": discrepancy,
        "coverage": _coverage(x, y, set_size, seed),
        "fad_inf": fad_inf(x, y, seed),
    }


def _coverage(x: NDArray[Any], y: NDArray[Any], set_size: int, seed: int) -> Estimate:
    if set_size < FEWEST:
        return estimate(None, why=f"{set_size} real test clips of the class: fewer than {FEWEST}")
    some = drawn(x, min(set_size, PAIR_CLIPS), seed)
    found = set_measures(neighbours(some, drawn(y, PAIR_CLIPS, seed)), seed)["coverage"]
    return found | fewer(len(some), set_size)


def mmd_kernels(generated: ArrayLike, reference: Reference, seed: int = 0) -> KernelMatrices | None:
    """What the MMD of some clips is computed from; None where it has no value.

    Args:
        generated: Embeddings, `(n, d)`; of more than 5,000 clips as many are drawn.
        reference: The real clips.
        seed: Makes what is drawn repeatable.
    """
    some = drawn(rows("generated", generated), PAIR_CLIPS, seed)
    if reference.sigma is None or len(some) < 2:
        return None
    return kernel_matrices(some, reference.sample, reference.sigma, reference.own_kernel)


def _mmd(kernels: KernelMatrices | None, clips: int, real: Reference, seed: int) -> Estimate:
    if kernels is not None:
        return mmd_measure(kernels, seed)
    if real.sigma is None:
        return estimate(None, why=real.no_sigma)
    return estimate(None, why=f"{clips} clips: MMD needs 2 or more")


def _sets(x: NDArray[np.float64], real: Reference, seed: int) -> dict[str, Estimate]:
    for clips, side in ((len(x), "generated"), (len(real.sample), "reference")):
        if clips <= K:
            why = f"{clips} {side} clips: {K} neighbours need more"
            return {name: estimate(None, why=why) for name in ("recall", "coverage")}
    return set_measures(neighbours(x, real.sample, K, real.near), seed)


def _clips(x: NDArray[Any], real: Reference, counts: BallCounts | None) -> dict[str, Estimate]:
    clips = len(x) if counts is None else counts.clips
    why = "" if clips else "no clips"
    if len(real.sample) <= K:
        why = f"{len(real.sample)} reference clips: {K} neighbours need more"
    if why:
        return {name: estimate(None, why=why) for name in ("precision", "density", "authenticity")}
    if counts is None:
        found = per_clip(x, real.sample, K, real.near)
        counts = BallCounts.of(found.balls, found.authentic)
    return clip_measures(counts)
