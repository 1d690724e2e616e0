"""The mel bands of some settings: their edges, and which hold no bin of the spectrum."""

from __future__ import annotations

import math

import numpy as np

from raysound.settings.features import FeatureSettings


def band_edges(settings: FeatureSettings) -> np.ndarray:
    """Lowest frequency of each mel band, Hz, `(n_mels,)`.

    Bands lie evenly on O'Shaughnessy's mel scale as HTK has it: 2595 log10(1 + f / 700).
    """
    return mel_points(settings)[: settings.n_mels]


def mel_points(settings: FeatureSettings) -> np.ndarray:
    """Where the triangles of the mel bands begin, peak and end, Hz, `(n_mels + 2,)`."""
    low, high = (2595 * math.log10(1 + f / 700) for f in (settings.f_min, settings.f_max))
    points = np.linspace(low, high, settings.n_mels + 2)
    hertz: np.ndarray = 700 * (10 ** (points / 2595) - 1)
    return hertz


def empty_bands(settings: FeatureSettings) -> list[int]:
    """Mel bands too narrow to hold a Fourier bin: they are silent whatever the sound is."""
    edges = mel_points(settings)
    bins = np.linspace(0, settings.sample_rate // 2, settings.n_fft // 2 + 1)
    inside = np.searchsorted(bins, edges[2:], "left") - np.searchsorted(bins, edges[:-2], "right")
    return np.flatnonzero(inside <= 0).tolist()
