"""How wrong the Fréchet distance of few clips is, and what extrapolation leaves of it.

python benchmarks/frechet_bias.py --dimensions 64 128 --repeats 10

Draws n generated and n reference embeddings of known covariances, so that the true distance is
known, and prints a markdown table: mean error of the plain distance, mean error and spread of
the extrapolated one, and how many clips per dimension its smallest half has. frechet.py refuses
to extrapolate from fewer than CLIPS_PER_DIMENSION.
"""

import argparse

import numpy as np

from raysound.metrics.frechet import PARTS, extrapolate, frechet_distance, split_moments

SIZES = (50, 100, 200, 400, 800, 1600, 2000)


def sets(
    case: str, n: int, d: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, float]:
    """Generated clips, reference clips, and the distance of the laws they are drawn from."""
    x, y = rng.standard_normal((n, d)), rng.standard_normal((n, d))
    falling = 1 / np.arange(1, d + 1) ** 0.5
    if case == "equal, even spectrum":
        return x, y, 0.0
    if case == "equal, falling spectrum":
        return x * falling, y * falling, 0.0
    if case == "equal, heavy tails":
        # Student's t of 5 degrees of freedom, brought to variance 1.
        tails = np.sqrt(rng.chisquare(5, size=(2, n, 1)) / 3)
        return x / tails[0], y / tails[1], 0.0
    if case == "generator twice too wide":
        return 2 * x, y, float(d)
    if case == "generator in half of the dimensions":
        x[:, d // 2 :] *= 0.05
        return x, y, 0.95**2 * (d - d // 2)
    if case == "generator's spectrum falls, reference's is even":
        return x * falling, y, float(((1 - falling) ** 2).sum())
    raise ValueError(f"no case {case!r}")


CASES = (
    "equal, even spectrum",
    "equal, falling spectrum",
    "equal, heavy tails",
    "generator twice too wide",
    "generator in half of the dimensions",
    "generator's spectrum falls, reference's is even",
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dimensions", type=int, nargs="+", default=[64, 128])
    parser.add_argument("--repeats", type=int, default=10)
    arguments = parser.parse_args()

    print("| d | case | truth | n | n/2 per d | plain error | extrapolated error | its spread |")
    print("|---|---|---|---|---|---|---|---|")
    for d in arguments.dimensions:
        for case in CASES:
            for n in SIZES:
                plain, infinite = [], []
                for repeat in range(arguments.repeats):
                    rng = np.random.default_rng([d, n, repeat])
                    x, y, truth = sets(case, n, d, rng)
                    plain.append(frechet_distance(x, y) - truth)
                    parts, others = (
                        split_moments(x, PARTS, repeat),
                        split_moments(y, PARTS, repeat + 1),
                    )
                    infinite.append(extrapolate(parts, others, plain[-1] + truth) - truth)
                print(
                    f"| {d} | {case} | {truth:.1f} | {n} | {n / 2 / d:.2f} | {np.mean(plain):+.2f} "
                    f"| {np.mean(infinite):+.2f} | {np.std(infinite, ddof=1):.2f} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
