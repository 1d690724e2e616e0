"""Search for the most similar training windows by log-mel: candidates, then their alignments."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Range in dB below the peak of a window; quieter parts are noise floor or removed by codecs.
RANGE_DB = 30.0
STEPS = 255
DB_PER_NEPER = 10 / np.log(10)
# Seconds: shorter frames are averaged to at most this, so that a short hop takes little more time.
FRAME_SECONDS = 0.03
# dB, root mean square over all bands. The steadiest clip of ESC-10 varies by 0.8 dB before
# smoothing, narrow-band noise with all other bands at the floor by 0.2 dB.
MIN_VARIATION_DB = 0.1
# Seconds, half the base of a triangle over time. Without it, a shift by half a frame lowers the
# correlation of noise to 0.8.
SMOOTHING_SECONDS = 0.09
# Seconds at each end of a window: frames across a cut differ between copy and original.
MARGIN_SECONDS = 0.06
# Seconds: maximum linear shift in either direction.
MAX_LAG_SECONDS = 1.1
CANDIDATES = 16
# Coarse vectors: bands, modulation frequencies, and maximum difference between frames.
COARSE_BANDS, COARSE_MODULATIONS, MAX_STEP = 16, 64, 0.15
# Entries of a block of coarse similarities: 16 MB.
BLOCK = 4_000_000
# Windows that `coarse_vectors` converts to float together.
WINDOWS_PER_BLOCK = 64


@dataclass(frozen=True, eq=False)
class TrainingWindows:
    """Training windows, prepared for `find_copies`.

    Attributes:
        patches: uint8 `(m, n_mels, frames)`.
        centre: mean coarse vector before normalisation, float32 `(d,)`.
        vectors: coarse vectors, float32 `(m, d)`, of length 1 or 0.
        frame_seconds: between two frames of the patches.
    """

    patches: NDArray[np.uint8]
    centre: NDArray[np.float32]
    vectors: NDArray[np.float32]
    frame_seconds: float

    @classmethod
    def of(cls, windows: NDArray[np.uint8], frame_seconds: float) -> TrainingWindows:
        """Prepares `patches` as training windows; raises ValueError if there are none."""
        if not len(windows):
            raise ValueError("copy detection needs training windows, got none")
        raw = coarse_vectors(windows)
        centre = raw.mean(axis=0, dtype=np.float64).astype(np.float32)
        return cls(windows, centre, normalised(raw, centre), frame_seconds)


def frames_together(hop_seconds: float) -> int:
    """Number of log-mel frames that are averaged to one frame of a patch."""
    return max(1, floor(FRAME_SECONDS / hop_seconds + 1e-9))


def patches(log_mel: NDArray[np.floating[Any]], hop_seconds: float) -> NDArray[np.uint8]:
    """Log-mels relative to the peak of the window: 255 at the peak, 0 at `RANGE_DB` below or less.

    A step is 0.12 dB, and a patch takes at most a quarter of the memory of a float32 log-mel.

    Args:
        log_mel: natural log power, `(n, n_mels, n_frames)`.
        hop_seconds: between two frames; `frames_together` frames are averaged.

    Returns:
        uint8 `(n, n_mels, frames)`; silence is 255 everywhere.

    Raises:
        ValueError: the shape is not `(n, n_mels, n_frames)`, or a value is not finite.
    """
    if log_mel.ndim != 3 or not log_mel.shape[2]:
        raise ValueError(f"log_mel must be (n, n_mels, n_frames), got {log_mel.shape}")
    n, n_mels, n_frames = log_mel.shape
    together = min(frames_together(hop_seconds), n_frames)
    frames = n_frames // together
    result = np.empty((n, n_mels, frames), np.uint8)
    scale = np.float32(STEPS * DB_PER_NEPER / RANGE_DB)
    for row, window in enumerate(log_mel):
        values = window.astype(np.float32)
        if together > 1:
            # A triangular mean over twice as many frames reduces aliasing.
            padded = np.pad(values, ((0, 0), (together // 2, (together - 1) // 2)), "edge")
            values = sum(padded[:, shift : shift + n_frames] for shift in range(together))
            values = values / together
        values = values[:, : frames * together].reshape(n_mels, frames, together).mean(axis=2)
        if not np.isfinite(values).all():
            raise ValueError(f"log_mel of window {row} is not finite")
        values -= values.max()
        values *= scale
        values += STEPS + 0.5
        result[row] = np.clip(values, 0, STEPS)
    return result


def coarse_vectors(windows: NDArray[np.uint8]) -> NDArray[np.float32]:
    """One vector per window, nearly shift-invariant: mean spectrum and modulation spectrum.

    The first `n_mels` entries are the mean of each band minus the mean of all bands. The others are
    magnitudes of the Fourier transform over time of the differences between frames, averaged over
    groups of bands and of modulation frequencies. Magnitudes do not depend on circular shifts.
    Differences are clipped, because a cut to silence is a single large difference.

    Args:
        windows: uint8 `(n, n_mels, frames)`, see `patches`.

    Returns:
        float32 `(n, d)`, not normalised.
    """
    n, n_mels, frames = windows.shape
    length = max(2, 1 << (frames - 1).bit_length())
    bands = _starts(n_mels, COARSE_BANDS)
    bins = _starts(length // 2, COARSE_MODULATIONS)
    per_band = np.diff(np.append(bands, n_mels))[:, np.newaxis]
    per_bin = np.diff(np.append(bins, length // 2))
    result = np.empty((n, n_mels + len(bands) * len(bins)), np.float32)
    for start in range(0, n, WINDOWS_PER_BLOCK):
        x = windows[start : start + WINDOWS_PER_BLOCK].astype(np.float32) / STEPS
        rows = result[start : start + len(x)]
        mean = x.mean(axis=2)
        rows[:, :n_mels] = mean - mean.mean(axis=1, keepdims=True)
        pooled = np.add.reduceat(x, bands, axis=1) / per_band
        steps = np.diff(pooled, axis=2).clip(-MAX_STEP, MAX_STEP)
        spectrum = np.abs(np.fft.rfft(steps, length, axis=2))[:, :, 1:]
        modulation = np.add.reduceat(spectrum, bins, axis=2) / per_bin
        rows[:, n_mels:] = modulation.reshape(len(x), -1)
    # Both parts have equal weight.
    return np.concatenate([_unit(result[:, :n_mels]), _unit(result[:, n_mels:])], axis=1)


def normalised(vectors: NDArray[np.float32], centre: NDArray[np.float32]) -> NDArray[np.float32]:
    """Coarse vectors minus `centre`, with length 1, or 0 if the difference is 0."""
    return _unit(vectors - centre)


def candidates(
    generated: NDArray[np.float32],
    reference: NDArray[np.float32],
    k: int = CANDIDATES,
    groups: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """The `k` training windows with the largest inner product, by exact search in blocks.

    In addition to arguments and result, memory is bounded by `BLOCK` similarities.

    Args:
        generated: `(n, d)`, see `normalised`.
        reference: `(m, d)`.
        k: at least 1; with fewer than `k` training windows, all are returned.
        groups: groups of `generated` and of `reference`, `(n,)` and `(m,)`: windows of the same
            group come after all others.

    Returns:
        Indices `(n, min(k, m))`, the best first; of equal ones the lower index first.
    """
    k = min(k, len(reference))
    result = np.empty((len(generated), k), np.int64)
    step = max(1, BLOCK // max(1, len(reference)))
    for start in range(0, len(generated), step):
        block = generated[start : start + step] @ reference.T
        if groups is not None:
            block[groups[0][start : start + step, np.newaxis] == groups[1]] = -np.inf
        limits = -np.partition(-block, k - 1, axis=1)[:, k - 1 : k]
        for row, (values, limit) in enumerate(zip(block, limits, strict=True)):
            found = np.flatnonzero(values >= limit)
            order = np.lexsort((found, -values[found]))[:k]
            result[start + row] = found[order]
    return result


class _Lags:
    """All lags of two windows of equal length, and the overlapping frames at each lag."""

    def __init__(self, frames: int, frame_seconds: float, max_lag: float) -> None:
        self.margin = min(ceil(MARGIN_SECONDS / frame_seconds), (frames - 1) // 4)
        self.smoothing = _triangle(frame_seconds)
        self.size = size = frames - 2 * self.margin
        self.lags = np.arange(1 - size, size)
        # The generated frame t + lag is compared with the reference frame t.
        self.first = np.maximum(self.lags, 0)
        self.last = np.minimum(size, size + self.lags)
        self.overlap = (self.last - self.first).astype(np.float32)
        self.length = 1 << (2 * size - 2).bit_length()
        limit = min(floor(max_lag / frame_seconds + 1e-9), (size - 1) // 2)
        self.linear = slice(size - 1 - limit, size + limit)
        # A roll by `lag` consists of an overlap at `lag` and one at `lag` minus the period.
        ahead = np.arange(2 * self.margin + 1, size)
        self.rolled = ahead
        self.one = ahead + size - 1
        self.other = ahead - frames + size - 1


class _Sums:
    """Sums of windows over the overlap at each lag.

    Attributes:
        spectrum: complex64 `(n, n_mels, f)`, of the windows minus their band means.
        band: float32 `(n, n_mels, lags)`, sums.
        square: float32 `(n, lags)`, sums of squares over all bands.
    """

    def __init__(self, windows: NDArray[np.uint8], lags: _Lags, is_reference: bool) -> None:
        stop = windows.shape[2] - lags.margin
        x = _smoothed(windows, lags.smoothing)[:, :, lags.margin : stop]
        x -= x.mean(axis=2, keepdims=True)
        self.spectrum = np.fft.rfft(x, lags.length, axis=2)
        first, last = lags.first, lags.last
        if is_reference:
            first, last = lags.size - last, lags.size - first
        band = _running(x)
        self.band = band[:, :, last] - band[:, :, first]
        square = _running(np.einsum("nbt,nbt->nt", x, x).astype(np.float64))
        self.square = (square[:, last] - square[:, first]).astype(np.float32)


def similarity(
    generated: NDArray[np.uint8],
    reference: NDArray[np.uint8],
    chosen: NDArray[np.int64],
    frame_seconds: float,
    max_lag: float = MAX_LAG_SECONDS,
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Correlation of each generated window with its candidates, at the best alignment.

    Pearson's correlation of all bands and frames of the overlap, after the mean of each band over
    the overlap is subtracted, so that it does not depend on the level or a fixed filter. Alignments
    are shifts of up to `max_lag`, and all rolls (circular shifts).
    A variance counts as at least `MIN_VARIATION_DB` squared.

    Args:
        generated: patches, `(n, n_mels, frames)`.
        reference: patches, `(m, n_mels, frames)`.
        chosen: indices into `reference`, `(n, k)`.
        frame_seconds: between two frames of the patches.
        max_lag: seconds; limited to half a window.

    Returns:
        Correlations in [-1, 1], `(n, k)`, and lags in seconds, `(n, k)`, see `Copies`.

    Raises:
        ValueError: the shapes of the windows differ.
    """
    if generated.shape[1:] != reference.shape[1:]:
        raise ValueError(
            f"windows of {generated.shape[1:]} cannot be compared with {reference.shape[1:]}"
        )
    n_mels, frames = reference.shape[1:]
    lags = _Lags(frames, frame_seconds, max_lag)
    least = np.float32((MIN_VARIATION_DB / RANGE_DB * STEPS) ** 2 * n_mels)
    values = np.empty(chosen.shape, np.float32)
    shifts = np.empty(chosen.shape, np.float32)
    for row, found in enumerate(chosen):
        own = _Sums(generated[row : row + 1], lags, is_reference=False)
        others = _Sums(reference[found], lags, is_reference=True)
        cross = np.einsum("bf,kbf->kf", own.spectrum[0], others.spectrum.conj())
        # irfft places negative lags at the end.
        product = np.fft.irfft(cross, lags.length, axis=1).astype(np.float32)[:, lags.lags]
        part = lags.linear
        linear = _correlation(
            product[:, part],
            own.band[0, :, part],
            others.band[:, :, part],
            own.square[0, part],
            others.square[:, part],
            lags.overlap[part],
            least,
        )
        one, other = lags.one, lags.other
        rolled = _correlation(
            product[:, one] + product[:, other],
            own.band[0][:, one] + own.band[0][:, other],
            others.band[:, :, one] + others.band[:, :, other],
            own.square[0, one] + own.square[0, other],
            others.square[:, one] + others.square[:, other],
            lags.overlap[one] + lags.overlap[other],
            least,
        )
        both = np.concatenate([linear, rolled], axis=1)
        best = both.argmax(axis=1)
        values[row] = both[np.arange(len(found)), best]
        roll = np.where(lags.rolled > frames / 2, lags.rolled - frames, lags.rolled)
        shifts[row] = np.concatenate([lags.lags[part], roll])[best] * frame_seconds
    return values.clip(-1, 1), shifts


def _correlation(
    product: NDArray[np.float32],
    own: NDArray[np.float32],
    others: NDArray[np.float32],
    own_square: NDArray[np.float32],
    other_square: NDArray[np.float32],
    overlap: NDArray[np.float32],
    least: np.float32,
) -> NDArray[np.float32]:
    """Pearson's correlation from sums over the overlap, `(k, lags)`."""
    covariance = product - np.einsum("bl,kbl->kl", own, others) / overlap
    own_energy = own_square - np.einsum("bl,bl->l", own, own) / overlap
    other_energy = other_square - np.einsum("kbl,kbl->kl", others, others) / overlap
    floor_energy = least * overlap
    lengths = np.maximum(own_energy, floor_energy) * np.maximum(other_energy, floor_energy)
    result: NDArray[np.float32] = (covariance / np.sqrt(lengths)).astype(np.float32)
    return result


def _starts(size: int, groups: int) -> NDArray[np.int64]:
    """Start indices of `groups` groups of about equal size; of `size` groups if that is fewer."""
    groups = min(groups, size)
    return np.arange(groups) * size // groups


def _triangle(frame_seconds: float) -> NDArray[np.float32]:
    """Triangular weights of an odd number of frames, with sum 1; (1, 2, 3, 2, 1) / 9 for 30 ms."""
    box = np.ones(max(1, round(SMOOTHING_SECONDS / frame_seconds)))
    weights = np.convolve(box, box)
    return (weights / weights.sum()).astype(np.float32)


def _smoothed(windows: NDArray[np.uint8], weights: NDArray[np.float32]) -> NDArray[np.float32]:
    """Convolves windows over time with `weights`; the first and last frame are repeated."""
    radius, frames = len(weights) // 2, windows.shape[2]
    padded = np.pad(windows, ((0, 0), (0, 0), (radius, radius)), "edge").astype(np.float32)
    result = weights[0] * padded[:, :, :frames]
    for shift, weight in enumerate(weights[1:], start=1):
        result += weight * padded[:, :, shift : shift + frames]
    return result


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    # A window at the centre leaves only rounding errors.
    return np.divide(vectors, lengths, out=np.zeros_like(vectors), where=lengths > 1e-5)


def _running(values: NDArray[Any]) -> NDArray[Any]:
    """Cumulative sums over the last axis, starting with 0: one entry more than `values`."""
    result = np.zeros((*values.shape[:-1], values.shape[-1] + 1), values.dtype)
    np.cumsum(values, axis=-1, out=result[..., 1:])
    return result
