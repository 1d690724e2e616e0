"""Metrics of raysound beside the same ones of SciPy and scikit-learn, on one thread.

    OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 MKL_NUM_THREADS=1 python benchmarks/libraries.py

Prints a Markdown table: seconds of both, the best of three, and the largest difference of their
results; then the seconds that the import of each library takes in a new process.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist
from scipy.stats import binomtest, bootstrap
from sklearn.metrics.pairwise import euclidean_distances, rbf_kernel
from sklearn.neighbors import NearestNeighbors

from raysound.metrics.distances import squared_distances
from raysound.metrics.intervals import bootstrap_interval, paired_p_value, wilson_interval
from raysound.metrics.kernel import kernel_matrices
from raysound.metrics.neighbours import nearest_others
from raysound.metrics.projection import principal_plane

MODULES = (
    "numpy", "scipy.spatial.distance", "scipy.stats", "sklearn.metrics.pairwise",
    "sklearn.neighbors",
)  # fmt: skip
Case = tuple[str, Callable[[], Any], Callable[[], Any]]


def cases(rng: np.random.Generator) -> Iterator[Case]:
    """Name, raysound's function and the library's; both return arrays."""
    clips, reference = rng.normal(size=(1000, 512)), rng.normal(size=(5000, 512))
    values = rng.normal(size=500)
    a, b = rng.random((2, 1000)) < 0.8
    only_a, only_b = int((a & ~b).sum()), int((~a & b).sum())
    sigma = 30.0
    gamma = 1 / (2 * sigma**2)

    def distances() -> np.ndarray:
        return np.concatenate([block for _, block in squared_distances(clips, reference)])

    def kernels() -> np.ndarray:
        found = kernel_matrices(clips, reference, sigma)
        return np.append(found.cross, found.own.sum(axis=1) + 1)

    def library_kernels() -> np.ndarray:
        # The mean over the reference, which the other side computes as well.
        rbf_kernel(reference, gamma=gamma).mean()
        cross = rbf_kernel(clips, reference, gamma=gamma).mean(axis=1)
        return np.append(cross, rbf_kernel(clips, gamma=gamma).sum(axis=1))

    yield ("Wilson interval: scipy.stats.binomtest", lambda: wilson_interval(80, 100),
           lambda: binomtest(80, 100).proportion_ci(method="wilson"))  # fmt: skip
    yield ("McNemar's exact test: scipy.stats.binomtest", lambda: paired_p_value(a, b),
           lambda: binomtest(min(only_a, only_b), only_a + only_b).pvalue)  # fmt: skip
    yield (
        "bootstrap of a mean: scipy.stats.bootstrap",
        lambda: bootstrap_interval(lambda chosen: values[chosen].mean(), len(values)),
        lambda: bootstrap(
            (np.arange(len(values)),), lambda chosen: values[chosen].mean(), method="percentile",
            n_resamples=200, vectorized=False, batch=1, rng=np.random.default_rng(0),
        ).confidence_interval,
    )  # fmt: skip
    embeddings = (rng.normal(size=(500, 4096)) * np.linspace(3, 1, 4096) ** 4).astype(np.float32)
    centred = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    yield (
        "map of 500 embeddings, 4,096 dimensions: all components by NumPy's eigh",
        lambda: np.abs(principal_plane(embeddings)(embeddings)),
        lambda: np.abs(centred @ np.linalg.eigh(centred.T @ centred)[1][:, -1:-3:-1]),
    )
    yield ("1,000 × 5,000 squared distances, 512 dimensions: SciPy cdist", distances,
           lambda: cdist(clips, reference, "sqeuclidean"))  # fmt: skip
    yield ("the same: scikit-learn euclidean_distances", distances,
           lambda: euclidean_distances(clips, reference, squared=True))  # fmt: skip
    yield "kernels of MMD, 1,000 and 5,000 clips: rbf_kernel", kernels, library_kernels
    yield (
        "32 nearest of 5,000 clips: NearestNeighbors",
        lambda: np.sqrt(nearest_others(reference, 32)[1]),
        lambda: NearestNeighbors(n_neighbors=32, algorithm="brute").fit(reference).kneighbors()[0],
    )


def best_seconds(function: Callable[[], Any], rounds: int = 3) -> float:
    """Seconds of a call, the best of some rounds."""
    seconds = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Prints the tables."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print("| | raysound, s | library, s | largest difference |\n|---|---|---|---|")
    for name, ours, theirs in cases(np.random.default_rng(0)):
        gap = np.abs(np.asarray(ours()) - np.asarray(theirs())).max()
        print(f"| {name} | {best_seconds(ours):.2g} | {best_seconds(theirs):.2g} | {gap:.0e} |")
    print("\n| import | s |\n|---|---|")
    for module in MODULES:
        command = [sys.executable, "-c", f"import {module}"]
        seconds = best_seconds(lambda command=command: subprocess.run(command, check=True))
        print(f"| {module} | {seconds:.2f} |")


if __name__ == "__main__":
    main()
