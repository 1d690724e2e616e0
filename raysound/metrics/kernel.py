"""Maximum mean discrepancy (MMD²) between two sets of embeddings, with a Gaussian kernel.

MMD² = mean k(x, x') + mean k(y, y') - 2 mean k(x, y), means over pairs of different clips, with
k(x, y) = exp(-|x - y|² / 2σ²) and σ the median distance between two reference clips. It makes no
assumption about the distributions and is unbiased for any number of clips, so it can be negative.
Values are MMD² times 100. The package kadtk uses the same factor, but takes σ from the evaluated
clips, so that its values differ and σ depends on the generator.

Source: A. Gretton et al., "A kernel two-sample test", JMLR 13, 2012, lemma 6; as Kernel Audio
Distance (KAD) Y. Chung et al., arXiv 2502.15602.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial.distance import pdist

from raysound.metrics.checks import embeddings, same_dimensions
from raysound.metrics.distances import centre, squared_distances
from raysound.metrics.intervals import (
    Estimate,
    estimate,
    half_samples,
    resampling_estimate,
    spread_interval,
)

SCALE = 100
MAX_CLIPS_FOR_MEDIAN = 2000


@dataclass(frozen=True, eq=False)
class KernelMatrices:
    """Kernel values from which MMD² of a set, and of any part of it, is computed.

    Attributes:
        own: Kernel between the generated clips, `(n, n)`; the diagonal is 0.
        cross: Mean kernel between each generated clip and the reference, `(n,)`.
        reference: Mean kernel between two different reference clips.
    """

    own: NDArray[np.float64]
    cross: NDArray[np.float64]
    reference: float


def bandwidth(reference: ArrayLike, seed: int = 0) -> float:
    """Median distance between two reference clips, from at most 2,000 sampled clips; above 0.

    Raises:
        ValueError: There are fewer than two clips, or more than half of the pairs are copies.
    """
    values = embeddings("reference", reference)
    if len(values) < 2:
        raise ValueError(f"a median distance needs at least 2 reference clips, got {len(values)}")
    if len(values) > MAX_CLIPS_FOR_MEDIAN:
        values = np.random.default_rng(seed).choice(values, MAX_CLIPS_FOR_MEDIAN, replace=False)
    median = float(np.median(pdist(values)))
    if median == 0:
        raise ValueError("the median distance of the reference is 0: too many clips are copies")
    return median


def kernel_mean(reference: NDArray[np.float64], sigma: float) -> float:
    """Mean kernel between two different clips of one set."""
    near = reference - centre(reference)
    n = len(near)
    total = sum(_kernel(block, sigma).sum() for _, block in squared_distances(near, near))
    # The kernel of a clip with itself is 1.
    return float((total - n) / (n * (n - 1)))


def kernel_matrices(
    generated: ArrayLike,
    reference: ArrayLike,
    sigma: float | None = None,
    reference_mean: float | None = None,
) -> KernelMatrices:
    """Kernel matrices of generated `(n, d)` and reference `(m, d)` embeddings.

    Args:
        generated: Embeddings, two or more clips.
        reference: Embeddings, two or more clips.
        sigma: `bandwidth(reference)`; computed if None.
        reference_mean: `kernel_mean(reference, sigma)`; computed if None.

    Raises:
        ValueError: A shape is not `(n, d)`, a number is not finite, there are fewer than two
            clips, or the dimensions differ.
    """
    x, y = embeddings("generated", generated), embeddings("reference", reference)
    same_dimensions(x, y)
    if min(len(x), len(y)) < 2:
        raise ValueError(f"MMD needs at least 2 clips on both sides, got {len(x)} and {len(y)}")
    sigma = bandwidth(y) if sigma is None else sigma
    mean = kernel_mean(y, sigma) if reference_mean is None else reference_mean
    x, y = x - centre(y), y - centre(y)
    own, cross = np.empty((len(x), len(x))), np.empty(len(x))
    for rows, block in squared_distances(x, x):
        own[rows] = _kernel(block, sigma)
    np.fill_diagonal(own, 0)
    for rows, block in squared_distances(x, y):
        cross[rows] = _kernel(block, sigma).mean(axis=1)
    return KernelMatrices(own, cross, mean)


def mmd2_x100(generated: ArrayLike, reference: ArrayLike) -> float:
    """Unbiased MMD², times 100.

    Args:
        generated: Embeddings, `(n, d)`, two or more clips.
        reference: Embeddings, `(m, d)`, two or more clips; they determine the bandwidth.

    Returns:
        A value of at most 200; near 0, positive or negative, if the distributions are equal.

    Raises:
        ValueError: As `kernel_matrices` and `bandwidth`.

    Examples:
        >>> round(mmd2_x100([[0.0], [1.0]], [[1000.0], [1001.0]]), 2)
        121.31
    """
    return float(_estimates(kernel_matrices(generated, reference), None)[0])


def mmd_estimate(kernels: KernelMatrices, seed: int = 0, what: str = "clips") -> Estimate:
    """MMD², times 100, with an interval for other clips of the same generator.

    The reference is fixed, because all corpora of a report share it.
    """
    n = len(kernels.cross)
    if n < 4:
        return estimate(None, why=f"{n} {what}: MMD needs at least 4")
    value = float(_estimates(kernels, None)[0])
    low, high = spread_interval(_estimates(kernels, half_samples(n, seed=seed)), n, value)
    return resampling_estimate(value, float(low), float(high), n, what)


def decreases(kernels: KernelMatrices) -> NDArray[np.float64]:
    """Decrease of MMD², times 100, if a single generated clip is left out, for each clip, `(n,)`.

    Positive for clips that are farther from the reference than the others, negative for clips that
    improve the set.

    Raises:
        ValueError: There are fewer than three clips.
    """
    n = len(kernels.cross)
    if n < 3:
        raise ValueError(f"MMD without a clip needs at least 3 clips, got {n}")
    rows = kernels.own.sum(axis=1)
    own, cross = rows.sum(), kernels.cross.sum()
    own_without = (own - 2 * rows) / ((n - 1) * (n - 2))
    cross_without = (cross - kernels.cross) / (n - 1)
    found: NDArray[np.float64] = SCALE * (
        own / (n * (n - 1)) - own_without - 2 * (cross / n - cross_without)
    )
    return found


def _estimates(kernels: KernelMatrices, parts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    n = len(kernels.cross)
    chosen = np.ones((n, 1))
    if parts is not None:
        chosen = np.zeros((n, len(parts)))
        np.put_along_axis(chosen, parts.T, 1, axis=0)
    size = chosen.sum(axis=0)
    # One product for all parts; indexing the matrix for each part takes ten times as long.
    own = np.einsum("ij,ij->j", chosen, kernels.own @ chosen) / (size * (size - 1))
    return SCALE * (own + kernels.reference - 2 * (kernels.cross @ chosen) / size)


def _kernel(block: NDArray[np.float64], sigma: float) -> NDArray[np.float64]:
    block *= -1 / (2 * sigma**2)
    return np.exp(block, out=block)
