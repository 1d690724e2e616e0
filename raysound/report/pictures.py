"""Spectrograms of the report as PNG data URIs."""

import base64
import io
import math
from collections.abc import Iterable

import matplotlib
import numpy as np
from matplotlib.image import imsave
from numpy.typing import NDArray

MAX_COLUMNS = 640


def colour_range(log_mels: Iterable[NDArray[np.float32]]) -> tuple[float, float]:
    """The log-mel values of the darkest and the brightest colour of a report.

    Args:
        log_mels: Spectrograms, each `(n_mels, n_frames)`.

    Returns:
        `(low, high)` in the unit of the spectrograms, `low < high`; `(0.0, 1.0)` without values
        above silence.
    """
    # One range per report: the classifier depends on levels, and with a range per clip a hiss at
    # -70 dB would look as loud as a siren. The lowest value is excluded: it is digital silence,
    # whose logarithm is that of the offset.
    values = np.concatenate([np.zeros(0), *(np.ravel(log_mel) for log_mel in log_mels)])
    values = values[np.isfinite(values)]
    sounding = values[values > values.min() + 1e-3] if values.size else values
    if not sounding.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(sounding, [2, 99.9]))
    return low, max(high, low + 1e-3)


def spectrogram(log_mel: NDArray[np.float32], low: float, high: float) -> str:
    """Draws a log-mel spectrogram.

    Args:
        log_mel: `(n_mels, n_frames)`; mel band 0 is the lowest.
        low: Value of the darkest colour; lower values have the same colour.
        high: Value of the brightest colour; higher values have the same colour.

    Returns:
        A PNG as a `data:` URI with one pixel per band and frame, band 0 at the bottom. Spectrograms
        of more than 640 frames are reduced to the maximum of groups of frames, so that clicks stay
        visible.

    Raises:
        ValueError: `log_mel` is not two-dimensional or is empty.
    """
    if log_mel.ndim != 2 or not log_mel.size:
        raise ValueError(f"log_mel must be (n_mels, n_frames) and not empty, got {log_mel.shape}")
    if log_mel.shape[1] > MAX_COLUMNS:
        starts = np.linspace(0, log_mel.shape[1], MAX_COLUMNS, endpoint=False).astype(int)
        log_mel = np.maximum.reduceat(log_mel, starts, axis=1)
    png = io.BytesIO()
    imsave(
        png,
        np.nan_to_num(log_mel, nan=low),
        vmin=low,
        vmax=high,
        cmap=matplotlib.colormaps["magma"],
        origin="lower",
        format="png",
        metadata={"Software": "raysound"},  # without a version, so that bytes are reproducible
    )
    return data_uri(png.getvalue(), "image/png")


def colour_scale() -> str:
    """Draws the colours of `spectrogram` from dark to bright, as a PNG `data:` URI."""
    return spectrogram(np.linspace(0, 1, 256, dtype=np.float32)[None, :], 0, 1)


def data_uri(content: bytes, media_type: str) -> str:
    """Encodes the content of a file as a `data:` URI."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers for an axis, for example 0, 2, 4 or 0, 0.5, 1.

    Args:
        low: Start of the axis.
        high: End of the axis, above `low`.
        count: Approximate number of steps.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten in `[low, high]`, ascending.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
