"""p-values of differences, adjusted for multiple comparisons."""

from collections.abc import Iterable, Sequence
from math import erfc, sqrt

from raysound.metrics.intervals import Estimate, Z, wilson_ends

# A difference is significant if its adjusted p-value is below this.
ALPHA = 0.05
# Normal quantile at which the two-sided p-value is 0 in float64.
LARGEST_Z = 39.0


def adjusted_p_values(pairs: Iterable[tuple[Estimate, Estimate]]) -> list[float | None]:
    """`holm` applied to the `p_value` of every pair; the pairs are one family of comparisons."""
    return holm([p_value(a, b) for a, b in pairs])


def significant(adjusted: float | None) -> bool:
    """Whether an adjusted p-value is below 0.05; False for None."""
    return adjusted is not None and adjusted < ALPHA


def p_value(a: Estimate, b: Estimate) -> float | None:
    """Two-sided p-value of the hypothesis that two measures are equal.

    It inverts the interval of `intervals.difference`: the p-value is 1 - c for the confidence c at
    which one end of the interval is 0, found by bisection. It is below 0.05 exactly if the 95 %
    interval excludes 0. For shares, the Wilson interval at c is used. For other measures, the
    distances to the ends of the 95 % interval are scaled by z(c) / z(95 %), as for a normal
    distribution.

    Args:
        a: A measure.
        b: A measure of other clips.

    Returns:
        A probability in [0, 1], 1 if the values are equal; None if a value or an interval is
        missing.

    Examples:
        >>> f"{p_value({'value': 2, 'low': 1, 'high': 3}, {'value': 0, 'low': -1, 'high': 1}):.4f}"
        '0.0056'
    """
    if any(one[key] is None for one in (a, b) for key in ("value", "low", "high")):
        return None
    if a["value"] == b["value"]:
        return 1.0
    larger, smaller = (a, b) if a["value"] > b["value"] else (b, a)
    gap = larger["value"] - smaller["value"]
    lowest, highest = 0.0, LARGEST_Z
    while highest - lowest > 1e-9:
        z = (lowest + highest) / 2
        if gap > sqrt(_reach(larger, z)[0] ** 2 + _reach(smaller, z)[1] ** 2):
            lowest = z
        else:
            highest = z
    return erfc(lowest / sqrt(2))


def _reach(of: Estimate, z: float) -> tuple[float, float]:
    """Distances from a value to the lower and upper end of its interval at the quantile `z`."""
    value, n = of["value"], of.get("of")
    if n:
        low, high = wilson_ends(round(value * n), n, z)
        return value - low, high - value
    return (value - of["low"]) * z / Z, (of["high"] - value) * z / Z


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values of one family of comparisons, adjusted by Holm's method.

    The i-th smallest of m p-values becomes the maximum over j ≤ i of min(1, (m - j + 1) · pⱼ). If
    values below 0.05 count as significant, the probability of at least one false positive in the
    family is at most 5 %, for any dependence between the comparisons. None stays None and is not
    counted in m.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6 (2), 1979, pp. 65-70.

    Examples:
        >>> [f"{p:.2f}" for p in holm([0.01, 0.04, 0.03])]
        ['0.03', '0.06', '0.06']
    """
    known = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, index) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[index] = largest
    return adjusted
