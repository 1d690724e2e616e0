"""The loudness of a mono clip, and the gain that brings it to `features.loudness`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from raysound.corpora.formats.samples import FLOAT, LARGEST_SAMPLE, as_float
from raysound.settings.features import LOUDNESS_FLOOR, FeatureSettings

# BS.1770-4: gating blocks of 400 ms that overlap by 75 %, so one begins every 100 ms.
STEPS_PER_SECOND, STEPS_OF_A_BLOCK = 10, 4
# LU below the mean of the blocks that reach the absolute threshold.
RELATIVE_GATE = -10.0
# What BS.1770-4 adds, so that a sine of 997 Hz has its level in dBFS.
OFFSET = -0.691
# A clip is measured in pieces: an hour-long one is never held as a whole.
SECONDS_TOGETHER = 10
# The rate, Hz, of which BS.1770-4 gives the coefficients.
STANDARD_RATE = 48000

# Takes the first and the last sample (exclusive), and returns float32 or int16 `(n,)`.
Span = Callable[[int, int], np.ndarray]


@dataclass(frozen=True)
class Gain:
    """What brings a clip to `features.loudness`.

    Attributes:
        decibels: dB, or None for a clip below LOUDNESS_FLOOR, which keeps its level.
        peak: largest absolute sample of the mono clip before the gain; 1 is full scale.
    """

    decibels: float | None
    peak: float

    @property
    def factor(self) -> float:
        """What each sample is multiplied with."""
        return 1.0 if self.decibels is None else 10 ** (self.decibels / 20)

    def apply(self, waveform: np.ndarray) -> np.ndarray:
        """A waveform of int16 or float32 with the gain, as float32; what exceeds 1 is kept."""
        gained: np.ndarray = as_float(waveform) * FLOAT.type(self.factor)
        return gained


def normalise(waveform: np.ndarray, settings: FeatureSettings) -> np.ndarray:
    """A whole clip at `features.loudness`, as float32 `(n,)`; unchanged where that is none."""
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
        span: gives the samples of the mono clip at the settings' rate; asked in ascending order.
        length: samples of the clip, at least one.
        settings: whose `loudness` is not None.
        after_piece: called after every SECONDS_TOGETHER of the clip.
    """
    wanted = settings.loudness
    assert wanted is not None, "features.loudness is none"
    rate = settings.sample_rate
    weighting = KWeighting(rate) if wanted.lufs is not None else None
    together = SECONDS_TOGETHER * rate
    steps = np.arange(SECONDS_TOGETHER * STEPS_PER_SECOND) * rate // STEPS_PER_SECOND
    # Sums of squares, of each step of 100 ms or of each piece.
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
    # So that the log-mel is finite: a sample that no block holds may be as large as it likes.
    most = 20 * math.log10(LARGEST_SAMPLE / peak)
    return Gain(min(wanted.level - level, most), peak)


def integrated_loudness(energy: np.ndarray, length: int, rate: int) -> float:
    """Integrated loudness of a mono clip by ITU-R BS.1770-4, LUFS.

    A clip shorter than 400 ms is one block. What remains behind the last whole step of 100 ms
    belongs to no block.

    Args:
        energy: sums of squared K-weighted samples of each step of 100 ms, the last one perhaps
            incomplete; step `k` begins at sample `k * rate // 10`.
        length: samples of the clip.
        rate: Hz.

    Returns:
        -inf where no block reaches the absolute threshold.
    """
    whole = (STEPS_PER_SECOND * length + STEPS_PER_SECOND - 1) // rate
    if whole < STEPS_OF_A_BLOCK:
        blocks = np.array([energy.sum() / length])
    else:
        edges = np.arange(whole + 1) * rate // STEPS_PER_SECOND
        sums = np.lib.stride_tricks.sliding_window_view(energy[:whole], STEPS_OF_A_BLOCK).sum(1)
        blocks = sums / (edges[STEPS_OF_A_BLOCK:] - edges[:-STEPS_OF_A_BLOCK])
    gated = blocks[blocks > 10 ** ((LOUDNESS_FLOOR - OFFSET) / 10)]
    if not len(gated):
        return -math.inf
    gated = gated[gated > gated.mean() * 10 ** (RELATIVE_GATE / 10)]
    return OFFSET + decibels(float(gated.mean()))


def decibels(power: float) -> float:
    """10 log10 of a power, -inf for 0. Of a mean square it is dBFS."""
    return 10 * math.log10(power) if power > 0 else -math.inf


class KWeighting:
    """The K-weighting of ITU-R BS.1770-4 at any sample rate; takes a clip piece by piece."""

    def __init__(self, rate: int) -> None:
        # It takes half a second to import, and most extractions do without.
        from scipy.signal import sosfilt

        self.filter = sosfilt
        self.sections = k_weighting(rate)
        self.state = np.zeros((2, 2))

    def __call__(self, samples: np.ndarray) -> np.ndarray:
        """The next float64 samples `(n,)`, weighted."""
        weighted, self.state = self.filter(self.sections, samples, zi=self.state)
        return weighted


def k_weighting(rate: int) -> np.ndarray:
    """The two biquads of the K-weighting, float64 `(2, 6)`, rows of b0, b1, b2, 1, a1, a2.

    ITU-R BS.1770-4 (annex 1, tables 1 and 2) gives them at 48 kHz, and asks for the same frequency
    response at other rates. The analogue filters behind the tables, as libebur128 and pyloudnorm
    document them, are put through the bilinear transform, K = tan(pi f0 / rate):

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
