"""Fréchet distance between two sets of embeddings, each seen as a Gaussian.

d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½ with unbiased covariances. The trace of the root is
taken from symmetric eigenvalues or from singular values; the matrix root of Σ₁ Σ₂, which need not
be symmetric and has imaginary parts by rounding, is never formed. Unit: the embedding's, squared.

Source: D. C. Dowson and B. V. Landau, "The Fréchet distance between multivariate normal
distributions", Journal of Multivariate Analysis 12, 1982, pp. 450-455; as a score of generators M.
Heusel et al., NeurIPS 2017 (FID), and K. Kilgour et al., Interspeech 2019 (FAD).
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import embeddings, rows, same_dimensions
from raysound.metrics.intervals import (
    Estimate,
    estimate,
    half_samples,
    resampling_estimate,
    spread_interval,
)
from raysound.metrics.moments import Moments, covariance, merge_moments, moments

# Clips per dimension that the smallest half must have. From 1.5 on what the fit leaves of the bias
# of Gaussian clips is within its noise; of heavy tails' it leaves a third to a seventh even above.
CLIPS_PER_DIMENSION = 2
# Eigenvalues of more dimensions take minutes.
MOST_DIMENSIONS = 1024
GROUPS = 32
PARTS = 8


def factor(of: Moments) -> NDArray[np.float64]:
    """S with S Sᵀ = Σ, `(d, d)`: Cholesky's, or the symmetric root where Σ has no full rank.

    Raises:
        ValueError: Fewer than two clips.
    """
    try:
        return np.asarray(np.linalg.cholesky(covariance(of)), dtype=np.float64)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(covariance(of))
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


def moments_distance(
    a: Moments, b: Moments, factor_of_b: NDArray[np.float64] | None = None
) -> float:
    """Fréchet distance d² of two sets from their moments.

    tr (Σ₁ Σ₂)^½ = Σ √λ over the eigenvalues λ of Σ₂^½ Σ₁ Σ₂^½, which is symmetric. Any S with
    S Sᵀ = Σ₂ serves in place of the root, in Sᵀ Σ₁ S: a Cholesky factor is the fastest.

    Args:
        a: Moments of one set.
        b: Moments of the other.
        factor_of_b: `factor(b)`, if it is at hand: many sets against one need it once.

    Returns:
        d² ≥ 0. Larger than the truth by about b/n at small n: compare equal n only.

    Raises:
        ValueError: A set has fewer than two clips, or the dimensions differ.

    Examples:
        >>> a, b = moments([[0.0], [2.0]]), moments([[3.0], [5.0]])
        >>> round(moments_distance(a, b), 9)
        9.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"sets of {len(a.mean)} and {len(b.mean)} dimensions: one network?")
    of_a, of_b = covariance(a), covariance(b)
    side = factor(b) if factor_of_b is None else factor_of_b
    product = side.T @ of_a @ side
    # The two triangles differ by rounding only; eigvalsh would read one of them.
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return _distance(a.mean - b.mean, np.trace(of_a), np.trace(of_b), overlap)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Fréchet distance d² of two sets of embeddings.

    Where a set has fewer clips than dimensions, tr (Σ₁ Σ₂)^½ is the sum of the singular values of
    X Yᵀ / √((n-1)(m-1)), X and Y centred: exact where the covariances have no full rank.

    Args:
        x: Embeddings, `(n, d)`.
        y: Embeddings, `(m, d)`.

    Returns:
        d² ≥ 0.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, fewer than two clips, or the
            dimensions differ.

    Examples:
        >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 9)
        9.0
    """
    x, y = embeddings("x", x), embeddings("y", y)
    same_dimensions(x, y)
    if min(len(x), len(y)) >= x.shape[1]:
        return moments_distance(moments(x), moments(y))
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs 2 clips or more, got {len(x)} and {len(y)}")
    near_x, near_y = x - x[0], y - y[0]
    gap = x[0] - y[0] + near_x.mean(axis=0) - near_y.mean(axis=0)
    near_x = (near_x - near_x.mean(axis=0)) / np.sqrt(len(x) - 1)
    near_y = (near_y - near_y.mean(axis=0)) / np.sqrt(len(y) - 1)
    overlap = np.linalg.svd(near_x @ near_y.T, compute_uv=False).sum()
    return _distance(gap, (near_x**2).sum(), (near_y**2).sum(), overlap)


def frechet_measure(
    x: NDArray[np.float64],
    b: Moments,
    factor_of_b: NDArray[np.float64] | None,
    what: str = "clips",
    seed: int = 0,
) -> Estimate:
    """Fréchet distance of embeddings `(n, d)` to a fixed set, with its interval.

    The interval covers what other n clips of the same generator would give against the same set:
    from half samples of 32 groups of clips. Below 4 clips per dimension there is none, for halves
    then have no full rank, or nearly so, and spread more than the whole. Above, the interval is
    about right for heavy tails and still 1.3 to 1.9 times too wide for Gaussian clips:
    benchmarks/frechet_intervals.py measures both.
    """
    n, d = x.shape
    if n < 2:
        return estimate(None, why=f"{n} {what}: a covariance needs 2 or more")
    if n <= d:
        return estimate(_distance_of_few(x, b), why=_too_few(n, d, what))
    order = np.random.default_rng(seed).permutation(n)
    groups = [moments(x[part]) for part in np.array_split(order, min(GROUPS, n))]
    value = moments_distance(merge_moments(*groups), b, factor_of_b)
    if n < fewest(d):
        return estimate(value, why=_too_few(n, d, what))
    if d > MOST_DIMENSIONS:
        return estimate(value, why=f"{d} dimensions: its interval would take minutes")
    found = _grouped(groups, lambda a: moments_distance(a, b, factor_of_b), value, n, what, seed)
    return found if found["low"] is None else found | {"low": max(0.0, found["low"])}


def _too_few(n: int, d: int, what: str) -> str:
    return f"{n} {what}: {d} dimensions need {fewest(d)} for an interval"


def _distance_of_few(x: NDArray[np.float64], b: Moments) -> float:
    """Fréchet distance of n ≤ d clips, from an n × n matrix in place of one of d × d."""
    n = len(x)
    near = x - b.mean
    gap = near.mean(axis=0)
    near = near - gap
    eigenvalues = np.linalg.eigvalsh(near @ covariance(b) @ near.T / (n - 1))
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    trace = float(np.trace(b.m2) / (b.n - 1))
    return _distance(gap, float((near**2).sum() / (n - 1)), trace, overlap)


def fad_inf(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """Fréchet distance that infinitely many clips on both sides would have.

    d² of finite sets is larger than the truth by about b/n. Both sets are cut at random into 8
    parts; at f = 1/2, 3/4 and 1 of the parts of both, without repetition and each part equally
    often, d² = a + b/f is fitted, and a, the value at infinite f, is the result. The interval
    covers other clips of `x` against the same `y`.

    Source: M. J. Chong and D. Forsyth, "Effectively unbiased FID and Inception Score and where to
    find them", CVPR 2020, arXiv 1911.07023. They extrapolate the generator's clips only, for a
    reference of 50,000; ours is small, and its bias is as large.

    Args:
        x: Embeddings of the generated clips, `(n, d)`.
        y: Embeddings of the reference, `(m, d)`.
        seed: Makes the parts repeatable.

    Returns:
        A measure: it may be a little below 0 where the truth is near 0. Its value is None where
        half of the clips of a set are fewer than 2 per dimension, for then d² is not linear in
        1/n. Where embeddings have heavy tails, a third to a seventh of the bias stays in it,
        which the interval does not cover: benchmarks/frechet_bias.py measures both.

    Raises:
        ValueError: Not `(n, d)`, a number that is not finite, or the dimensions differ.
    """
    x, y = rows("x", x), rows("y", y)
    same_dimensions(x, y)
    why = refusal(len(x), len(y), x.shape[1])
    if why:
        return estimate(None, why=why)
    whole = moments(y)
    return infinite_measure(x, cut(y, PARTS, seed), whole, factor(whole), seed)


def refusal(generated: int, reference: int, d: int) -> str:
    """Why no distance can be extrapolated for so many clips; empty where it can."""
    if d > MOST_DIMENSIONS:
        return f"{d} dimensions: more than {MOST_DIMENSIONS} would take minutes"
    for clips, name in ((generated, "generated"), (reference, "reference")):
        if clips < fewest(d):
            return f"{clips} {name} clips: {d} dimensions need {fewest(d)} for an extrapolation"
    return ""


def fewest(d: int) -> int:
    """Clips that an interval or an extrapolation in `d` dimensions needs."""
    # Each group must hold a clip.
    return max(2 * CLIPS_PER_DIMENSION * d, GROUPS)


def cut(values: ArrayLike, parts: int, seed: int) -> list[Moments]:
    """Moments of random parts of embeddings `(n, d)`, as equal in size as can be."""
    array = np.asarray(values)
    order = np.random.default_rng(seed).permutation(len(array))
    return [moments(array[np.sort(part)]) for part in np.array_split(order, parts)]


def infinite_measure(
    x: ArrayLike,
    parts_of_b: Sequence[Moments],
    b: Moments,
    factor_of_b: NDArray[np.float64],
    seed: int = 0,
) -> Estimate:
    """`fad_inf` against a set of which parts, moments and factor are at hand."""
    groups = cut(x, GROUPS, seed + 1)
    size = GROUPS // PARTS
    parts = [merge_moments(*groups[i : i + size]) for i in range(0, GROUPS, size)]
    whole = merge_moments(*parts)
    value = extrapolate(parts, parts_of_b, moments_distance(whole, b, factor_of_b))
    return _grouped(
        groups,
        lambda a: moments_distance(a, b, factor_of_b),
        value,
        whole.n,
        "clips",
        seed,
    )


def extrapolate(parts: Sequence[Moments], others: Sequence[Moments], full: float) -> float:
    """Intercept of d² = a + b/f, fitted at f = 1/2 and 3/4 of the parts and the `full` value."""
    count = len(parts)
    fractions, distances = [1.0], [full]
    for fraction in (1 / 2, 3 / 4):
        take = round(fraction * count)
        at = []
        # Windows around the circle: each part is in equally many, so what is linear cancels.
        for start in range(count):
            window = [(start + step) % count for step in range(take)]
            some, other = (
                merge_moments(*(parts[i] for i in window)),
                merge_moments(*(others[i] for i in window)),
            )
            at.append(moments_distance(some, other))
        fractions.append(fraction)
        distances.append(float(np.mean(at)))
    return float(np.polyfit(1 / np.array(fractions), distances, 1)[1])


def _grouped(
    groups: Sequence[Moments],
    distance: Callable[[Moments], float],
    value: float,
    n: int,
    what: str,
    seed: int,
) -> Estimate:
    drawn = half_samples(len(groups), seed=seed)
    at = [distance(merge_moments(*(groups[i] for i in half))) for half in drawn]
    low, high = spread_interval(at, len(groups), value)
    return resampling_estimate(value, float(low), float(high), n, what)


def _distance(gap: NDArray[np.float64], a: float, b: float, overlap: float) -> float:
    # Of equal sets rounding leaves something below 0.
    return max(0.0, float(gap @ gap + a + b - 2 * overlap))
