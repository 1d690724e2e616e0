"""Which of several differences are significant: p-values, adjusted for how many are tested."""

from collections.abc import Sequence

# Adjusted p-values below it are significant.
ALPHA = 0.05


def significant(adjusted: float | None) -> bool:
    """Whether an adjusted p-value is below 0.05; False where there is none."""
    return adjusted is not None and adjusted < ALPHA


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's adjusted p-values of one family of comparisons; None stays None and does not count.

    The i-th smallest of m becomes the maximum over j ≤ i of min(1, (m - j + 1) · pⱼ). With those
    below 0.05 called significant, the probability of any false alarm in the family is at most 5 %,
    however the comparisons depend on each other.

    Source: S. Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal
    of Statistics 6 (2), 1979, pp. 65-70.

    Examples:
        >>> [f"{p:.2f}" for p in holm([0.01, 0.04, 0.03])]
        ['0.03', '0.06', '0.06']
    """
    known = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(known):
        largest = max(largest, min(1.0, (len(known) - rank) * p))
        adjusted[place] = largest
    return adjusted
