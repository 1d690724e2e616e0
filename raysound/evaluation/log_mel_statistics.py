"""An embedding without a model: statistics of the mel bands."""

from __future__ import annotations

import numpy as np

QUANTILES = (0.1, 0.5, 0.9)


def log_mel_statistics(log_mel: np.ndarray) -> np.ndarray:
    """Statistics over time of each mel band, and of its differences from frame to frame.

    The statistics are mean, standard deviation and the QUANTILES, linearly interpolated. The
    differences of a log-mel with one frame are 0.

    Args:
        log_mel: `(n, n_mels, n_frames)`, natural log of mel power.

    Returns:
        float32 `(n, 10 * n_mels)`, in units of natural log power: the five statistics of the
        bands, `(5, n_mels)`, then the five of the differences.
    """
    bands = log_mel.astype(np.float64)
    differences = np.diff(bands, axis=2) if bands.shape[2] > 1 else np.zeros_like(bands)
    parts = []
    for values in (bands, differences):
        parts += [values.mean(axis=2), values.std(axis=2)]
        parts += [*np.quantile(values, QUANTILES, axis=2)]
    return np.concatenate(parts, axis=1).astype(np.float32)
