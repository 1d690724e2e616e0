"""Estimates with 95 % confidence intervals.

An estimate is a dict `{"value", "low", "high"}` of floats that can be written as JSON. If the value
or its interval is not known, it is None, and `"why"` states the reason. A share of clips also has
their number as `"of"`.
"""

from collections.abc import Callable
from math import exp, fsum, inf, lgamma, log, sqrt
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Estimate = dict[str, Any]
Statistic = Callable[[NDArray[np.int64]], ArrayLike]

Z = NormalDist().inv_cdf(0.975)
# A spread of fewer clips does not estimate that of other clips.
MIN_CLIPS_FOR_INTERVAL = 10


def estimate(
    value: float | None, low: float | None = None, high: float | None = None, why: str = ""
) -> Estimate:
    """An estimate; `why` is the reason if the value or the interval is missing."""
    known: Estimate = {
        name: None if number is None else float(number)
        for name, number in (("value", value), ("low", low), ("high", high))
    }
    return {**known, "why": why} if why else known


def resampling_estimate(value: float, low: float, high: float, n: int, what: str) -> Estimate:
    """An estimate with an interval from resampling `n` clips; `what` names them in messages.

    There is no interval below 10 clips, or if it has no width: if all resamples agree, for example
    because 20 of 20 clips are right, they do not show the error of the value.
    """
    low, high = min(low, value), max(high, value)
    if n < MIN_CLIPS_FOR_INTERVAL:
        why = f"{n} {what}: an interval needs at least {MIN_CLIPS_FOR_INTERVAL}"
        return estimate(value, why=why)
    if not high - low > 1e-12 * abs(value):
        return estimate(value, why=f"every part of the {what} gives this value: no spread")
    return estimate(value, low, high)


def mean_estimate(
    total: float, squares: float, n: int, what: str = "clips", highest: float = inf
) -> Estimate:
    """Mean of numbers in [0, highest] ± 1.96 standard errors, from their sums.

    The standard error is √((Σx² - (Σx)² / n) / (n (n - 1))). The mean of many numbers is normally
    distributed (central limit theorem). With only ten numbers, the interval covers less than 95 %.

    Args:
        total: Σx.
        squares: Σx².
        n: Number of summands, 1 or more.
        what: Name of the summands in messages.
        highest: Largest possible number, at which the interval ends.

    Examples:
        >>> found = mean_estimate(50.0, 30.0, 100)
        >>> f"{found['value']:.2f} {found['low']:.3f} {found['high']:.3f}"
        '0.50 0.456 0.544'
    """
    mean = total / n
    variance = max(0.0, squares - total * mean) / max(1, n - 1)
    half_width = Z * sqrt(variance / n)
    low, high = max(0.0, mean - half_width), min(highest, mean + half_width)
    return resampling_estimate(mean, low, high, n, what)


def wilson_interval(correct: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson score interval of the share of `correct` out of `n`.

    With p = correct / n and z the two-sided normal quantile of `confidence`, its ends are
    (p + z²/2n ± z √(p(1-p)/n + z²/4n²)) / (1 + z²/n). Unlike the normal approximation
    p ± z √(p(1-p)/n), it is inside [0, 1] and has a width if all or none are correct.

    Source: E. B. Wilson, "Probable inference, the law of succession, and statistical inference",
    Journal of the American Statistical Association 22 (158), 1927, pp. 209-212.

    Args:
        correct: Number of correct clips, 0 to `n`.
        n: Number of clips.
        confidence: Nominal coverage, in (0, 1).

    Returns:
        `(low, high)`, shares in [0, 1]; `(0.0, 1.0)` if `n` is 0.

    Raises:
        ValueError: `correct` is outside 0 to `n`, or `confidence` is outside (0, 1).

    Examples:
        >>> low, high = wilson_interval(80, 100)
        >>> f"{low:.3f} {high:.3f}"
        '0.711 0.867'
        >>> wilson_interval(0, 0)
        (0.0, 1.0)
    """
    if not 0 <= correct <= n:
        raise ValueError(f"correct must be in 0..n, got correct={correct} and n={n}")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be in (0, 1), got {confidence}")
    if n == 0:
        return 0.0, 1.0
    return wilson_ends(correct, n, NormalDist().inv_cdf(0.5 + confidence / 2))


def wilson_ends(correct: int, n: int, z: float) -> tuple[float, float]:
    """Wilson interval at the normal quantile `z` for `n` ≥ 1; see `wilson_interval`."""
    share = correct / n
    denominator = 1 + z**2 / n
    centre = (share + z**2 / (2 * n)) / denominator
    half_width = z / denominator * sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    # The ends are exact if none or all are correct; rounding would give 1e-18 instead of 0.
    low = 0.0 if correct == 0 else max(0.0, centre - half_width)
    high = 1.0 if correct == n else min(1.0, centre + half_width)
    return low, high


def proportion_estimate(correct: int, n: int) -> Estimate:
    """A share with the Wilson interval; without clips the value is None, the interval [0, 1]."""
    low, high = wilson_interval(int(correct), int(n))
    return {**estimate(int(correct) / int(n) if n else None, low, high), "of": int(n)}


def bootstrap_interval(
    statistic: Statistic, n: int, resamples: int = 200, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Percentile bootstrap: the 2.5 % and 97.5 % quantiles over samples with replacement.

    Use it for means and similar statistics. It doubles the bias of statistics that depend on the
    number of clips, and repeated clips are neighbours at distance 0: see `half_sample_interval`.

    Source: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 7
    (1), 1979, pp. 1-26.

    Args:
        statistic: Takes indices `(n,)` in 0 to `n - 1`, returns a number or a vector.
        n: Number of clips, 1 or more.
        resamples: Number of samples.
        seed: Seed of the samples.

    Returns:
        `(low, high)`, each with the shape of the statistic.

    Raises:
        ValueError: `n` or `resamples` is below 1.
    """
    if n < 1 or resamples < 1:
        raise ValueError(f"a bootstrap needs clips and resamples, got {n} and {resamples}")
    rng = np.random.default_rng(seed)
    values = np.array(
        [statistic(rng.integers(n, size=n)) for _ in range(resamples)], dtype=np.float64
    )
    low, high = np.quantile(values, [0.025, 0.975], axis=0)
    return low, high


def half_samples(n: int, draws: int = 30, seed: int = 0) -> NDArray[np.int64]:
    """Sorted indices of `draws` random halves of `n` clips, `(draws, n // 2)`; no index repeats.

    Raises:
        ValueError: There are fewer than 4 clips, or fewer than 2 draws.
    """
    if n < 4 or draws < 2:
        raise ValueError(f"halves need at least 4 clips and 2 draws, got {n} and {draws}")
    rng = np.random.default_rng(seed)
    return np.array([np.sort(rng.permutation(n)[: n // 2]) for _ in range(draws)])


def spread_interval(
    at_halves: ArrayLike, n: int, value: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`value` ± 1.96 standard deviations of `at_halves`, see `half_sample_interval`."""
    sd = np.std(np.asarray(at_halves, dtype=np.float64), axis=0, ddof=1)
    # Corrects for odd n, where a half is smaller than its complement.
    sd = sd * sqrt((n // 2) / (n - n // 2))
    return np.asarray(value - Z * sd), np.asarray(value + Z * sd)


def half_sample_interval(
    statistic: Statistic, n: int, value: ArrayLike, draws: int = 30, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """`value` ± 1.96 times the standard deviation of the statistic over random halves.

    The mean of m out of n clips without replacement has the variance σ²/m · (1 - m/n). With
    m = n/2 this is σ²/n, the variance of the mean of all n clips. To first order, the halves
    therefore vary around their mean as the value of all clips varies around its expectation: the
    delete-half jackknife. Unlike in a bootstrap, no clip is repeated. The interval covers the
    expectation of the statistic at n clips, including its bias at n clips.

    Source: J. Shao and C. F. J. Wu, "A general theory for jackknife variance estimation", Annals of
    Statistics 17 (3), 1989, pp. 1176-1197: deleting d of n clips, in random subsets.

    Args:
        statistic: Takes distinct indices `(n // 2,)`, returns a number or a vector.
        n: Number of clips, 4 or more.
        value: Statistic of all clips.
        draws: Number of random halves, 2 or more; 30 determine the spread to about 13 %.
        seed: Seed of the halves.

    Returns:
        `(low, high)`, each with the shape of the statistic.

    Raises:
        ValueError: There are fewer than 4 clips, or fewer than 2 draws.
    """
    at_halves = np.array(
        [statistic(half) for half in half_samples(n, draws, seed)], dtype=np.float64
    )
    return spread_interval(at_halves, n, value)


def difference(a: Estimate, b: Estimate) -> Estimate:
    """Difference `a` - `b` of two estimates of different clips, with its interval.

    Square-and-add: with the difference D = a - b, low = D - √((a - a.low)² + (b.high - b)²) and
    high = D + √((a.high - a)² + (b - b.low)²). The intervals may be asymmetric. The estimates must
    be independent: those of two corpora against one fixed reference are, those of a corpus and of
    a part of it are not.

    Source: R. G. Newcombe, "Interval estimation for the difference between independent
    proportions", Statistics in Medicine 17, 1998, pp. 873-890 (method 10); for any measure G. Y.
    Zou and A. Donner, "Construction of confidence limits about effect estimates: a general
    approach", Statistics in Medicine 27, 2008, pp. 1693-1702.

    Returns:
        An estimate with `significant`: whether the interval excludes 0; False without an interval.

    Examples:
        >>> faithful = {"value": 0.8, "low": 0.7, "high": 0.9}
        >>> poor = {"value": 0.5, "low": 0.4, "high": 0.6}
        >>> found = difference(faithful, poor)
        >>> f"{found['value']:.2f} {found['low']:.2f} {found['high']:.2f}", found["significant"]
        ('0.30 0.16 0.44', True)
    """
    for one in (a, b):
        if one["value"] is None:
            why = one.get("why", "one of the two has no value")
            return {**estimate(None, why=why), "significant": False}
    gap = a["value"] - b["value"]
    for one in (a, b):
        if one["low"] is None or one["high"] is None:
            why = one.get("why", "one of the two has no interval")
            return {**estimate(gap, why=why), "significant": False}
    low = gap - sqrt((a["value"] - a["low"]) ** 2 + (b["high"] - b["value"]) ** 2)
    high = gap + sqrt((a["high"] - a["value"]) ** 2 + (b["value"] - b["low"]) ** 2)
    return {**estimate(gap, low, high), "significant": bool(low > 0 or high < 0)}


def paired_difference(a: ArrayLike, b: ArrayLike) -> Estimate:
    """Difference of the shares of True in `a` and in `b` for the same clips, with its interval.

    As `difference`, from the Wilson intervals of the shares and their correlation φ: low =
    D - √(l₁² - 2 φ l₁ u₂ + u₂²), where l₁ = a - a.low and u₂ = b.high - b; high is analogous. If
    most clips agree, the interval is much narrower than that of two sets of clips.

    Source: R. G. Newcombe, "Improved confidence intervals for the difference between binomial
    proportions based on paired data", Statistics in Medicine 17, 1998, pp. 2635-2650 (method 10).

    Args:
        a: Booleans, `(n,)`.
        b: Booleans of the same clips in the same order, `(n,)`.

    Returns:
        An estimate in [-1, 1] with `significant`: whether the interval excludes 0.

    Raises:
        ValueError: The lengths differ, or there are no clips.

    Examples:
        >>> found = paired_difference([True] * 8 + [False] * 2, [True] * 7 + [False] * 3)
        >>> f"{found['value']:.2f} {found['low']:.2f} {found['high']:.2f}"
        '0.10 -0.17 0.36'
    """
    one, other = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if one.shape != other.shape or one.ndim != 1 or not len(one):
        raise ValueError(f"a and b must be (n,) of the same clips: {one.shape}, {other.shape}")
    n = len(one)
    both, neither = int((one & other).sum()), int((~one & ~other).sum())
    only_a, only_b = int((one & ~other).sum()), int((~one & other).sum())
    product: float = both * neither - only_a * only_b
    if product > 0:
        # Continuity correction, so that few clips do not overestimate the correlation.
        product = max(0, product - n / 2)
    sides = (both + only_a) * (only_b + neither) * (both + only_b) * (only_a + neither)
    phi = product / sqrt(sides) if sides else 0.0
    of_a, of_b = proportion_estimate(one.sum(), n), proportion_estimate(other.sum(), n)

    def combined(x: float, y: float) -> float:
        return sqrt(max(0.0, x**2 - 2 * phi * x * y + y**2))

    gap = of_a["value"] - of_b["value"]
    low = gap - combined(of_a["value"] - of_a["low"], of_b["high"] - of_b["value"])
    high = gap + combined(of_a["high"] - of_a["value"], of_b["value"] - of_b["low"])
    return {**estimate(gap, low, high), "significant": bool(low > 0 or high < 0)}


def paired_p_value(a: ArrayLike, b: ArrayLike) -> float:
    """Two-sided p-value of equal shares of True in `a` and in `b`, for the same clips.

    McNemar's exact test: of the clips on which the two differ, half are expected to be True only
    in `a`. The p-value is twice the smaller tail of this binomial distribution, at most 1. Exact
    tests are slightly conservative, so it can exceed 0.05 if the interval of `paired_difference`
    just excludes 0.

    Source: Q. McNemar, "Note on the sampling error of the difference between correlated proportions
    or percentages", Psychometrika 12 (2), 1947, pp. 153-157.

    Args:
        a: Booleans, `(n,)`.
        b: Booleans of the same clips in the same order, `(n,)`.

    Returns:
        A probability in [0, 1], 1 if no clip differs.

    Raises:
        ValueError: The lengths differ.

    Examples:
        >>> f"{paired_p_value([True] * 8 + [False] * 2, [False] * 8 + [True] * 2):.4f}"
        '0.1094'
    """
    one, other = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if one.shape != other.shape or one.ndim != 1:
        raise ValueError(f"a and b must be (n,) of the same clips: {one.shape}, {other.shape}")
    only_a, only_b = int((one & ~other).sum()), int((~one & other).sum())
    n, smaller = only_a + only_b, min(only_a, only_b)
    # Logarithms, because 2**n overflows a float from n = 1024.
    logs = [
        lgamma(n + 1) - lgamma(k + 1) - lgamma(n - k + 1) - n * log(2) for k in range(smaller + 1)
    ]
    return min(1.0, 2 * fsum(exp(value) for value in logs))
