"""Metrics of one corpus from the class probabilities of the classifier.

`probabilities` is `(n, classes)`. Without clips, every metric is NaN.
"""

from math import nan

import numpy as np
from numpy.typing import ArrayLike, NDArray

from raysound.metrics.checks import distributions, indices, scored

# Lower bound of probabilities in logarithms, -log is 27.6: keeps means finite.
MIN_PROBABILITY = 1e-12
BINS = 15


def true_ranks(truth: ArrayLike, probabilities: ArrayLike) -> NDArray[np.int64]:
    """Rank of each clip's true class, 1 for the most probable, `(n,)`.

    Of equally probable classes the lower index comes first, as in `argmax`.

    Raises:
        ValueError: The lengths differ, a class is out of range, or a probability is not finite.
    """
    truth, probabilities = scored(truth, probabilities)
    own = np.take_along_axis(probabilities, truth[:, None], axis=1)
    earlier = np.arange(probabilities.shape[1]) < truth[:, None]
    ahead = (probabilities > own) | ((probabilities == own) & earlier)
    return ahead.sum(axis=1) + 1


def map_at_k(truth: ArrayLike, probabilities: ArrayLike, k: int) -> float:
    """Mean average precision of the `k` most probable classes, for clips with one true class.

    This is the mean of 1/rank of the true class, 0 if the rank is above `k`. With k = 3 it is the
    score of FSDKaggle2018. Of equally probable classes the lower index comes first.

    Args:
        truth: Class indices, `(n,)`.
        probabilities: `(n, classes)`; only their order within a clip matters.
        k: Number of classes, 1 or more; with 1 it is the accuracy.

    Returns:
        A score in [0, 1].

    Raises:
        ValueError: `k` is below 1, or as `true_ranks`.

    Examples:
        >>> map_at_k([0, 0], [[0.5, 0.3, 0.2], [0.3, 0.4, 0.3]], k=3)
        0.75
    """
    if k < 1:
        raise ValueError(f"k must be 1 or more, got {k}")
    ranks = true_ranks(truth, probabilities)
    return float(np.mean(np.where(ranks <= k, 1 / ranks, 0))) if len(ranks) else nan


def clip_log_losses(truth: ArrayLike, probabilities: ArrayLike) -> NDArray[np.float64]:
    """-log of the probability of each true class, in nats, `(n,)`, in [0, 27.6]."""
    probabilities = distributions(probabilities)
    truth, probabilities = scored(truth, probabilities)
    own = np.take_along_axis(probabilities, truth[:, None], axis=1)[:, 0]
    return -np.log(np.clip(own, MIN_PROBABILITY, 1))


def confidences(probabilities: NDArray[np.float64]) -> tuple[NDArray[np.int64], ...]:
    """Predicted class and bin of its probability: `BINS` bins of equal width, (low, high]."""
    bins = np.ceil(probabilities.max(axis=1) * BINS).astype(np.int64) - 1
    return probabilities.argmax(axis=1), np.clip(bins, 0, BINS - 1)


def ece_from_bins(
    bins: NDArray[np.int64], right: NDArray[np.bool_], confidence: NDArray[np.float64]
) -> float:
    """Σ over the bins of |number of right clips - sum of confidence| / n."""
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(bins)) if len(bins) else nan


def expected_calibration_error(truth: ArrayLike, probabilities: ArrayLike) -> float:
    """Expected calibration error: difference between confidence and accuracy, over 15 bins.

    The clips are sorted into 15 bins of equal width by the probability of their predicted class.
    The error is Σ over the bins of (clips in bin / n) · |accuracy of bin - mean confidence of bin|.
    By chance it is above 0; this bias decreases with the number of clips.

    Source: C. Guo, G. Pleiss, Y. Sun, K. Q. Weinberger, "On calibration of modern neural networks",
    ICML 2017, equation 3.

    Args:
        truth: Class indices, `(n,)`.
        probabilities: `(n, classes)`; each row adds up to 1.

    Returns:
        A share in [0, 1]; 0 for a calibrated classifier.

    Raises:
        ValueError: The lengths differ, a class is out of range, or a row is not a distribution.

    Examples:
        >>> expected_calibration_error([0, 1], [[1.0, 0.0], [1.0, 0.0]])
        0.5
    """
    probabilities = distributions(probabilities)
    truth, probabilities = scored(truth, probabilities)
    prediction, bins = confidences(probabilities)
    return ece_from_bins(bins, truth == prediction, probabilities.max(axis=1))


def entropies(probabilities: NDArray[np.float64]) -> NDArray[np.float64]:
    """-Σ p log p over the last axis, in nats; 0 log 0 is 0."""
    logs = np.log(np.where(probabilities > 0, probabilities, 1))
    return -np.einsum("...c,...c->...", probabilities, logs)


def inception_score_from_entropies(marginal: NDArray[np.float64], own: float) -> float:
    """exp(entropy of the marginal - mean entropy of the clips), in [1, classes]."""
    return float(np.clip(np.exp(entropies(marginal) - own), 1, len(marginal)))


def inception_score(probabilities: ArrayLike) -> float:
    """Exp of the mean divergence between the probabilities of a clip and their mean.

    IS = exp(mean of KL(p(class | clip) || p(class))): high if every prediction is certain and there
    are many predicted classes. It is computed without splits, which bias it downwards on small
    corpora. Scores of different classifiers are not comparable.

    Source: T. Salimans et al., "Improved techniques for training GANs", NeurIPS 2016; on splits S.
    Barratt and R. Sharma, "A note on the inception score", arXiv 1801.01973.

    Args:
        probabilities: `(n, classes)`; each row adds up to 1.

    Returns:
        A score in [1, classes].

    Raises:
        ValueError: A row is not a distribution.

    Examples:
        >>> inception_score([[1.0, 0.0], [0.0, 1.0]])
        2.0
    """
    probabilities = distributions(probabilities)
    if not len(probabilities):
        return nan
    return inception_score_from_entropies(
        probabilities.mean(axis=0), float(entropies(probabilities).mean())
    )


def modified_inception_score_from_means(
    marginal: NDArray[np.float64], mean_logs: NDArray[np.float64], own: float, n: int
) -> float:
    """Exp of the mean divergence over the pairs of `n` clips, from their means.

    Args:
        marginal: Mean probabilities, `(classes,)`.
        mean_logs: Mean of their logarithms, `(classes,)`.
        own: Mean entropy of the clips.
        n: Number of clips; with fewer than 2 the result is NaN.
    """
    if n < 2:
        return nan
    divergence = float(-own - marginal @ mean_logs) * n / (n - 1)
    return float(np.exp(max(0.0, divergence)))


def modified_inception_score(probabilities: ArrayLike) -> float:
    """Exp of the mean divergence between the probabilities of two different clips.

    mIS = exp(mean over i ≠ j of KL(p(class | clip i) || p(class | clip j))): like the inception
    score, but also high if the probabilities of clips of one class differ. Probabilities below
    1e-12 count as 1e-12 in the logarithm. The mean is over all pairs; published code samples pairs.

    Source: S. Gurumurthy, R. K. Sarvadevabhatla, R. V. Babu, "DeLiGAN: generative adversarial
    networks for diverse and limited data", CVPR 2017.

    Args:
        probabilities: `(n, classes)`; each row adds up to 1.

    Returns:
        A score of 1 or more; NaN for fewer than two clips.

    Raises:
        ValueError: A row is not a distribution.

    Examples:
        >>> round(modified_inception_score([[0.9, 0.1], [0.1, 0.9]]), 4)
        5.7995
    """
    probabilities = distributions(probabilities)
    n = len(probabilities)
    if n < 2:
        return nan
    logs = np.log(np.maximum(probabilities, MIN_PROBABILITY))
    own = float(entropies(probabilities).mean())
    return modified_inception_score_from_means(
        probabilities.mean(axis=0), logs.mean(axis=0), own, n
    )


def am_score_from_means(
    marginal: NDArray[np.float64], real: NDArray[np.float64], own: float
) -> float:
    """KL(real || marginal) + mean entropy of the clips: see `am_score`."""
    floored = np.log(np.maximum(marginal, MIN_PROBABILITY))
    divergence = float(-entropies(real) - real @ floored)
    return max(0.0, divergence) + own


def am_score(probabilities: ArrayLike, real: ArrayLike) -> float:
    """Activation maximization score: low for certain predictions with the real class frequencies.

    AM = KL(mean real probabilities || mean probabilities) + mean entropy of the probabilities of a
    clip. Mean probabilities below 1e-12 count as 1e-12 in the logarithm.

    Source: Z. Zhou et al., "Activation maximization generative adversarial nets", ICLR 2018.

    Args:
        probabilities: `(n, classes)`; each row adds up to 1.
        real: Probabilities of the real clips, `(m, classes)`.

    Returns:
        A score in nats, 0 or more; NaN if a side has no clips.

    Raises:
        ValueError: A row is not a distribution.

    Examples:
        >>> am_score([[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]])
        0.0
    """
    probabilities, real = distributions(probabilities), distributions(real)
    if not len(probabilities) or not len(real):
        return nan
    own = float(entropies(probabilities).mean())
    return am_score_from_means(probabilities.mean(axis=0), real.mean(axis=0), own)


def effective_num_classes(prediction: ArrayLike, classes: int) -> float:
    """Effective number of predicted classes.

    exp(-Σ q log q) with q the share of the clips predicted as each class: k classes predicted
    equally often give k. It is low if the generator collapses to few sounds.

    Source: M. O. Hill, "Diversity and evenness", Ecology 54 (2), 1973: the number of order 1.

    Args:
        prediction: Class indices, `(n,)`, below `classes`.
        classes: Number of classes.

    Returns:
        A number in [1, classes].

    Raises:
        ValueError: A class is outside 0 to `classes - 1`.

    Examples:
        >>> round(effective_num_classes([0, 0, 1, 1], classes=5), 6)
        2.0
    """
    prediction = indices("prediction", prediction, classes)
    if not len(prediction):
        return nan
    shares = np.bincount(prediction, minlength=classes) / len(prediction)
    return float(np.clip(np.exp(entropies(shares)), 1, classes))
