"""How wide half-sample intervals of the Fréchet distance are, against the spread they estimate.

python benchmarks/frechet_intervals.py [--dimensions 128] [--repeats 40]

Prints a markdown table: clips, clips per dimension, and for three laws of the generated clips the
mean standard deviation that half samples give, divided by the true one over all repeats. frechet.py
gives no interval below 2 * CLIPS_PER_DIMENSION clips per dimension.
"""

import argparse

import numpy as np

from raysound.metrics.frechet import GROUPS, covariance_factor, moments_distance
from raysound.metrics.intervals import half_sample_interval
from raysound.metrics.moments import merge_moments, moments

SIZES = (1.1, 1.6, 2.3, 3.1, 4, 4.7, 8, 16)
CASES = ("Gaussian, same law", "Gaussian, 1.2 times too wide", "heavy tails (t, 5), same law")


def clips(case: str, n: int, d: int, rng: np.random.Generator) -> np.ndarray:
    x = rng.standard_normal((n, d))
    if case == CASES[1]:
        return 1.2 * x
    if case == CASES[2]:
        return x / np.sqrt(rng.chisquare(5, size=(n, 1)) / 3)
    return x


def ratio(case: str, n: int, d: int, repeats: int) -> float:
    """Mean of the estimated standard deviations, over that of the distances."""
    other = moments(
        clips(case.replace("1.2 times too wide", ""), 5000, d, np.random.default_rng(0))
    )
    root = covariance_factor(other)
    values, estimates = [], []
    for seed in range(1, repeats + 1):
        x = clips(case, n, d, np.random.default_rng([seed, n]))
        groups = [moments(part) for part in np.array_split(x, GROUPS)]

        def distance(chosen: np.ndarray, groups: list = groups) -> float:
            return moments_distance(merge_moments(*(groups[i] for i in chosen)), other, root)

        values.append(distance(np.arange(GROUPS)))
        low, high = half_sample_interval(distance, GROUPS, values[-1], seed=seed)
        estimates.append((high - low) / 2 / 1.96)
    return float(np.mean(estimates) / np.std(values, ddof=1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=40)
    given = parser.parse_args()
    print(f"| n | n per dimension | {' | '.join(CASES)} |")
    print("|---" * (2 + len(CASES)) + "|")
    for size in SIZES:
        n = round(size * given.dimensions)
        found = [f"{ratio(case, n, given.dimensions, given.repeats):.2f}" for case in CASES]
        print(f"| {n} | {size} | {' | '.join(found)} |", flush=True)


if __name__ == "__main__":
    main()
