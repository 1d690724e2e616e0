"""Fréchet distance between two sets of embeddings, each approximated by a Gaussian.

d² = |μ₁ - μ₂|² + tr Σ₁ + tr Σ₂ - 2 tr (Σ₁ Σ₂)^½ with unbiased covariances. The trace of the root is
computed from eigenvalues of a symmetric matrix or from singular values. The matrix root of Σ₁ Σ₂ is
not computed, because it is in general not symmetric and rounding makes it complex. Unit: the square
of the unit of the embedding.

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

# Minimum number of clips per dimension in a half. From 1.5, the fit removes the bias of Gaussian
# clips up to its noise; with heavy tails, 1/7 to 1/3 of the bias remains.
CLIPS_PER_DIMENSION = 2
# With more dimensions, eigenvalues take minutes.
MAX_DIMENSIONS = 1024
GROUPS = 32
PARTS = 8


def covariance_factor(of: Moments) -> NDArray[np.float64]:
    """S with S Sᵀ = Σ, `(d, d)`: the Cholesky factor, or the symmetric root if Σ is singular.

    Raises:
        ValueError: There are fewer than two clips.
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

    tr (Σ₁ Σ₂)^½ = Σ √λ over the eigenvalues λ of the symmetric matrix Σ₂^½ Σ₁ Σ₂^½. Sᵀ Σ₁ S with
    any S with S Sᵀ = Σ₂ has the same eigenvalues; the Cholesky factor is the fastest to compute.

    Args:
        a: Moments of one set.
        b: Moments of the other set.
        factor_of_b: `covariance_factor(b)`; computed if None. Pass it to compare many sets with b.

    Returns:
        d² ≥ 0. On average it exceeds the true distance by about c/n: compare equal n only.

    Raises:
        ValueError: A set has fewer than two clips, or the dimensions differ.

    Examples:
        >>> a, b = moments([[0.0], [2.0]]), moments([[3.0], [5.0]])
        >>> round(moments_distance(a, b), 9)
        9.0
    """
    if a.mean.shape != b.mean.shape:
        raise ValueError(
            f"sets of {len(a.mean)} and {len(b.mean)} dimensions: are they of one network?"
        )
    of_a, of_b = covariance(a), covariance(b)
    root = covariance_factor(b) if factor_of_b is None else factor_of_b
    product = root.T @ of_a @ root
    # Rounding makes the two triangles differ, and eigvalsh reads only one of them.
    eigenvalues = np.linalg.eigvalsh((product + product.T) / 2)
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    return _distance(a.mean - b.mean, np.trace(of_a), np.trace(of_b), overlap)


def frechet_distance(x: ArrayLike, y: ArrayLike) -> float:
    """Fréchet distance d² of two sets of embeddings.

    If a set has fewer clips than dimensions, tr (Σ₁ Σ₂)^½ is the sum of the singular values of
    X Yᵀ / √((n-1)(m-1)) with X and Y centred, which is exact for singular covariances.

    Args:
        x: Embeddings, `(n, d)`.
        y: Embeddings, `(m, d)`.

    Returns:
        d² ≥ 0.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, there are fewer than two
            clips, or the dimensions differ.

    Examples:
        >>> round(frechet_distance([[0.0], [2.0]], [[3.0], [5.0]]), 9)
        9.0
    """
    x, y = embeddings("x", x), embeddings("y", y)
    same_dimensions(x, y)
    if min(len(x), len(y)) >= x.shape[1]:
        return moments_distance(moments(x), moments(y))
    if min(len(x), len(y)) < 2:
        raise ValueError(f"a covariance needs at least 2 clips, got {len(x)} and {len(y)}")
    centred_x, centred_y = x - x[0], y - y[0]
    gap = x[0] - y[0] + centred_x.mean(axis=0) - centred_y.mean(axis=0)
    centred_x = (centred_x - centred_x.mean(axis=0)) / np.sqrt(len(x) - 1)
    centred_y = (centred_y - centred_y.mean(axis=0)) / np.sqrt(len(y) - 1)
    overlap = np.linalg.svd(centred_x @ centred_y.T, compute_uv=False).sum()
    return _distance(gap, (centred_x**2).sum(), (centred_y**2).sum(), overlap)


def frechet_estimate(
    x: NDArray[np.float64],
    b: Moments,
    factor_of_b: NDArray[np.float64] | None,
    what: str = "clips",
    seed: int = 0,
) -> Estimate:
    """Fréchet distance of embeddings `(n, d)` to a fixed set, with its interval.

    The interval, from half samples of 32 groups of clips, covers n other clips of the same
    generator against the same set. Below 4 clips per dimension there is no interval, because the
    covariances of halves are singular or nearly so, and halves vary more than the set. Above, the
    interval is about correct for heavy tails and 1.3 to 1.9 times too wide for Gaussian clips; see
    benchmarks/frechet_intervals.py.
    """
    n, d = x.shape
    if n < 2:
        return estimate(None, why=f"{n} {what}: a covariance needs at least 2")
    if n <= d:
        return estimate(_distance_of_few(x, b), why=_too_few(n, d, what))
    order = np.random.default_rng(seed).permutation(n)
    groups = [moments(x[part]) for part in np.array_split(order, min(GROUPS, n))]
    value = moments_distance(merge_moments(*groups), b, factor_of_b)
    if n < min_clips(d):
        return estimate(value, why=_too_few(n, d, what))
    if d > MAX_DIMENSIONS:
        return estimate(value, why=f"{d} dimensions: an interval would take minutes")
    found = _with_interval(
        groups, lambda a: moments_distance(a, b, factor_of_b), value, n, what, seed
    )
    return found if found["low"] is None else found | {"low": max(0.0, found["low"])}


def _too_few(n: int, d: int, what: str) -> str:
    return f"{n} {what}: {d} dimensions need {min_clips(d)} for an interval"


def _distance_of_few(x: NDArray[np.float64], b: Moments) -> float:
    """Fréchet distance of n ≤ d clips, from an n × n matrix instead of a d × d matrix."""
    n = len(x)
    centred = x - b.mean
    gap = centred.mean(axis=0)
    centred = centred - gap
    eigenvalues = np.linalg.eigvalsh(centred @ covariance(b) @ centred.T / (n - 1))
    overlap = np.sqrt(np.clip(eigenvalues, 0, None)).sum()
    trace = float(np.trace(b.m2) / (b.n - 1))
    return _distance(gap, float((centred**2).sum() / (n - 1)), trace, overlap)


def fad_inf(x: ArrayLike, y: ArrayLike, seed: int = 0) -> Estimate:
    """Fréchet distance, extrapolated to infinitely many clips on both sides.

    The bias of d² is about c/n for finite sets. Both sets are divided at random into 8 parts. For
    the fractions f = 1/2, 3/4 and 1 of the parts of both sets, in which each part occurs equally
    often, d² = a + b/f is fitted. The result is a, the value at infinite f. The interval covers
    other clips of `x` against the same `y`.

    Source: M. J. Chong and D. Forsyth, "Effectively unbiased FID and Inception Score and where to
    find them", CVPR 2020, arXiv 1911.07023. They extrapolate only the generated clips, for a
    reference of 50,000. Here the reference is small, so its bias is as large.

    Args:
        x: Embeddings of the generated clips, `(n, d)`.
        y: Embeddings of the reference, `(m, d)`.
        seed: Seed of the division into parts.

    Returns:
        A measure. It can be slightly negative if the true value is near 0. The value is None if
        half of the clips of a set are fewer than 2 per dimension, because d² is then not linear in
        1/n. With heavy-tailed embeddings, 1/7 to 1/3 of the bias remains, which the interval does
        not cover; see benchmarks/frechet_bias.py.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, or the dimensions differ.
    """
    x, y = rows("x", x), rows("y", y)
    same_dimensions(x, y)
    why = no_extrapolation_reason(len(x), len(y), x.shape[1])
    if why:
        return estimate(None, why=why)
    of_y = moments(y)
    return fad_inf_estimate(x, split_moments(y, PARTS, seed), of_y, covariance_factor(of_y), seed)


def no_extrapolation_reason(generated: int, reference: int, d: int) -> str:
    """Why the distance can't be extrapolated for these numbers of clips; empty if it can."""
    if d > MAX_DIMENSIONS:
        return f"{d} dimensions: more than {MAX_DIMENSIONS} would take minutes"
    for clips, name in ((generated, "generated"), (reference, "reference")):
        if clips < min_clips(d):
            return f"{clips} {name} clips: {d} dimensions need {min_clips(d)} for an extrapolation"
    return ""


def min_clips(d: int) -> int:
    """Minimum number of clips for an interval or an extrapolation in `d` dimensions."""
    # Each group needs a clip.
    return max(2 * CLIPS_PER_DIMENSION * d, GROUPS)


def split_moments(values: ArrayLike, parts: int, seed: int) -> list[Moments]:
    """Moments of random parts of embeddings `(n, d)`, of sizes that differ by at most 1."""
    array = np.asarray(values)
    order = np.random.default_rng(seed).permutation(len(array))
    return [moments(array[np.sort(part)]) for part in np.array_split(order, parts)]


def fad_inf_estimate(
    x: ArrayLike,
    parts_of_b: Sequence[Moments],
    b: Moments,
    factor_of_b: NDArray[np.float64],
    seed: int = 0,
) -> Estimate:
    """`fad_inf` from the moments of the parts of `b`, of `b`, and its factor."""
    groups = split_moments(x, GROUPS, seed + 1)
    size = GROUPS // PARTS
    parts = [merge_moments(*groups[i : i + size]) for i in range(0, GROUPS, size)]
    merged = merge_moments(*parts)
    value = extrapolate(parts, parts_of_b, moments_distance(merged, b, factor_of_b))
    return _with_interval(
        groups,
        lambda a: moments_distance(a, b, factor_of_b),
        value,
        merged.n,
        "clips",
        seed,
    )


def extrapolate(parts: Sequence[Moments], others: Sequence[Moments], full: float) -> float:
    """Intercept of d² = a + b/f, fitted at f = 1/2 and 3/4 of the parts and the `full` value."""
    count = len(parts)
    fractions, distances = [1.0], [full]
    for fraction in (1 / 2, 3 / 4):
        size = round(fraction * count)
        values = []
        # Circular windows contain each part equally often, so that linear terms cancel.
        for start in range(count):
            window = [(start + step) % count for step in range(size)]
            some, other = (
                merge_moments(*(parts[i] for i in window)),
                merge_moments(*(others[i] for i in window)),
            )
            values.append(moments_distance(some, other))
        fractions.append(fraction)
        distances.append(float(np.mean(values)))
    return float(np.polyfit(1 / np.array(fractions), distances, 1)[1])


def _with_interval(
    groups: Sequence[Moments],
    distance: Callable[[Moments], float],
    value: float,
    n: int,
    what: str,
    seed: int,
) -> Estimate:
    halves = half_samples(len(groups), seed=seed)
    at_halves = [distance(merge_moments(*(groups[i] for i in half))) for half in halves]
    low, high = spread_interval(at_halves, len(groups), value)
    return resampling_estimate(value, float(low), float(high), n, what)


def _distance(gap: NDArray[np.float64], a: float, b: float, overlap: float) -> float:
    # For equal sets, rounding can give a negative value.
    return max(0.0, float(gap @ gap + a + b - 2 * overlap))
