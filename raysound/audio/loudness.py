"""Measures the loudness of mono clips, and normalizes it to `features.loudness`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raysound.corpora.formats.samples import FLOAT, LARGEST_SAMPLE, as_float
from raysound.settings.features import LOUDNESS_FLOOR, FeatureSettings

# BS.1770-4: gating blocks of 400 ms that overlap by 75 %, so a block begins every 100 ms.
STEPS_PER_SECOND, STEPS_OF_A_BLOCK = 10, 4
# Relative threshold, LU below the mean of the blocks that reach the absolute threshold.
RELATIVE_GATE = -10.0
# Offset of BS.1770-4, which makes the loudness of a 997 Hz sine equal to its level in dBFS.
OFFSET = -0.691
# Clips are measured in pieces of this length, which bounds the memory for long clips.
SECONDS_TOGETHER = 10
# Sample rate of the coefficients in BS.1770-4, Hz.
STANDARD_RATE = 48000

# (first sample, last sample exclusive) → float32 or int16 `(n,)`.
Span = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Gain:
    """The gain that brings a clip to `features.loudness`.

    Attributes:
        decibels: gain in dB; None for a clip below LOUDNESS_FLOOR, which keeps its level.
        peak: largest absolute sample of the mono clip before the gain; 1 is full scale.
    """

    decibels: float | None
    peak: float

    @property
    def factor(self) -> float:
        """The factor of each sample."""
        return 1.0 if self.decibels is None else 10 ** (self.decibels / 20)

    def apply(self, waveform: np.ndarray) -> np.ndarray:
        """Applies the gain to an int16 or float32 waveform; returns float32, not clipped to 1."""
        gained: np.ndarray = as_float(waveform) * FLOAT.type(self.factor)
        return gained


def normalise(waveform: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """Normalizes a complete clip to `features.loudness`, if it is set; returns float32 `(n,)`."""
    if settings.loudness is None:
        return as_float(waveform)
    return measured_gain(lambda begin, end: waveform[begin:end], len(waveform), settings).apply(
        waveform
    )


def measured_gain(
    span: Span,
    length: int,
    settings: FeatureSettings,
    after_piece: Callable[[], None] = lambda: None,
) -> Gain:
    """Measures a clip, and returns the gain that brings it to `features.loudness`.

    A clip below LOUDNESS_FLOOR (-70 dBFS or LUFS), or without a block that reaches BS.1770's
    threshold of -70 LUFS, gets no gain. Samples that exceed full scale after the gain are not
    clipped.

    Args:
        span: returns samples of the mono clip at the configured rate; called in ascending order.
        length: samples of the clip, at least one.
        settings: `loudness` must not be None.
        after_piece: called after every SECONDS_TOGETHER of the clip.
    """
    wanted = settings.loudness
    assert wanted is not None, "features.loudness is none"
    rate = settings.sample_rate
    weighting = KWeighting(rate) if wanted.lufs is not None else None
    together = SECONDS_TOGETHER * rate
    steps = np.arange(SECONDS_TOGETHER * STEPS_PER_SECOND) * rate // STEPS_PER_SECOND
    # Sums of squares per step of 100 ms, or per piece.
    energies, peak = [], 0.0
    for begin in range(0, length, together):
        samples = as_float(span(begin, min(begin + together, length)))
        peak = max(peak, float(samples.max()), -float(samples.min()))
        samples = samples.astype(np.float64)
        starts = steps[:1]
        if weighting is not None:
            samples, starts = weighting(samples), steps[steps < len(samples)]
        energies.append(np.add.reduceat(np.square(samples), starts))
        after_piece()
    energy = np.concatenate(energies)
    if weighting is not None:
        level = integrated_loudness(energy, length, rate)
    else:
        level = decibels(float(energy.sum()) / length)
    if level < LOUDNESS_FLOOR:
        return Gain(None, peak)
    # Keeps the log-mel finite: samples after the last block do not affect the level.
    most = 20 * math.log10(LARGEST_SAMPLE / peak)
    return Gain(min(wanted.level - level, most), peak)


def integrated_loudness(energy: np.ndarray, length: int, rate: int) -> float:
    """Integrated loudness of a mono clip by ITU-R BS.1770-4, LUFS.

    A clip shorter than 400 ms is one block. Samples after the last complete step of 100 ms
    belong to no block.

    Args:
        energy: sum of squared K-weighted samples per step of 100 ms; the last step may be
            incomplete. Step `k` begins at sample `k * rate // 10`.
        length: samples of the clip.
        rate: Hz.

    Returns:
        LUFS; -inf if no block reaches the absolute threshold.
    """
    steps = (STEPS_PER_SECOND * length + STEPS_PER_SECOND - 1) // rate
    if steps < STEPS_OF_A_BLOCK:
        blocks = np.array([energy.sum() / length])
    else:
        edges = np.arange(steps + 1) * rate // STEPS_PER_SECOND
        sums = np.lib.stride_tricks.sliding_window_view(energy[:steps], STEPS_OF_A_BLOCK).sum(1)
        blocks = sums / (edges[STEPS_OF_A_BLOCK:] - edges[:-STEPS_OF_A_BLOCK])
    gated = blocks[blocks > 10 ** ((LOUDNESS_FLOOR - OFFSET) / 10)]
    if not len(gated):
        return -math.inf
    gated = gated[gated > gated.mean() * 10 ** (RELATIVE_GATE / 10)]
    return OFFSET + decibels(float(gated.mean()))


def decibels(power: float) -> float:
    """10 log10 of a power; -inf for 0. For a mean square the unit is dBFS."""
    return 10 * math.log10(power) if power > 0 else -math.inf


class KWeighting:
    """The K-weighting filter of ITU-R BS.1770-4 at any sample rate, for a clip in pieces."""

    def __init__(self, rate: int) -> None:
        # Imported here, because it takes half a second and most extractions do not need it.
        from scipy.signal import sosfilt

        self.filter = sosfilt
        self.sections = k_weighting(rate)
        self.state = np.zeros((2, 2))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """Filters the next float64 samples `(n,)`."""
        weighted, self.state = self.filter(self.sections, samples, zi=self.state)
        return weighted


def k_weighting(rate: int) -> np.ndarray:
    """The two biquads of the K-weighting, float64 `(2, 6)`, rows of b0, b1, b2, 1, a1, a2.

    ITU-R BS.1770-4 (annex 1, tables 1 and 2) defines them at 48 kHz, and requires the same
    frequency response at other rates. They are the bilinear transform, with K = tan(pi f0 / rate),
    of the analogue filters that libebur128 and pyloudnorm document:

    - a high shelf of f0 1681.97 Hz, Q 0.7072, and VH = 10^(4.0 dB / 20):
      (VH s² + VB s K / Q + K²) / (s² + s K / Q + K²), where VB = VH^0.49967 and
      s = (1 - 1/z) / (1 + 1/z)
    - a high-pass of f0 38.14 Hz, Q 0.5003, whose numerator is 1, -2, 1 at 48 kHz. At other rates it
      is scaled so that the gain above f0 is the same.

    Args:
        rate: Hz, more than twice the shelf's f0.
    """
    shelf = _denominator(1681.974450955533, 0.7071752369554196, rate)
    k, damping, norm = shelf
    high = 10 ** (3.999843853973347 / 20)
    band = high**0.4996667741545416 * damping
    shelf_b = np.array([high + band + k * k, 2 * (k * k - high), high - band + k * k]) / norm
    high_pass = _denominator(38.13547087602444, 0.5003270373238773, rate)
    standard = _denominator(38.13547087602444, 0.5003270373238773, STANDARD_RATE)
    scale = standard[2] / high_pass[2]
    return np.array(
        [
            [*shelf_b, 1.0, *_feedback(*shelf)],
            [scale, -2 * scale, scale, 1.0, *_feedback(*high_pass)],
        ]
    )


def _denominator(f0: float, q: float, rate: int) -> tuple[float, float, float]:
    """K = tan(pi f0 / rate), K / Q, and their 1 + K / Q + K²."""
    k = math.tan(math.pi * f0 / rate)
    return k, k / q, 1 + k / q + k * k


def _feedback(k: float, damping: float, norm: float) -> tuple[float, float]:
    return 2 * (k * k - 1) / norm, (1 - damping + k * k) / norm
