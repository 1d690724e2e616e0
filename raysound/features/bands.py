"""The mel bands of feature settings: their edges, and the bands without a Fourier bin."""

from __future__ import annotations

import math

import numpy as np

from raysound.settings.features import FeatureSettings


def band_edges(settings: FeatureSettings) -> np.ndarray:
    """Lowest frequency of each mel band, Hz, `(n_mels,)`.

    Bands are evenly spaced on the HTK mel scale (O'Shaughnessy): 2595 log10(1 + f / 700).
    """
    return mel_points(settings)[: settings.n_mels]


def mel_points(settings: FeatureSettings) -> np.ndarray:
    """Start, peak and end frequencies of the triangular filters, Hz, `(n_mels + 2,)`."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (settings.f_min, settings.f_max))
    points = np.linspace(low, high, settings.n_mels + 2)
    hertz: np.ndarray = 700 * (10 ** (points / 2595) - 1)
    return hertz


def empty_bands(settings: FeatureSettings) -> list[int]:
    """Mel bands too narrow to contain a Fourier bin; they are silent for every sound."""
    edges = mel_points(settings)
    bins = np.linspace(0, settings.sample_rate // 2, settings.n_fft // 2 + 1)
    inside = np.searchsorted(bins, edges[2:], "left") - np.searchsorted(bins, edges[:-2], "right")
    return np.flatnonzero(inside <= 0).tolist()
