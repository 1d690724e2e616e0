"""The report's spectrograms as PNG data URIs."""

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
    """The log-mel values that get the darkest and the brightest colour in one report.

    Args:
        log_mels: Spectrograms, each `(n_mels, n_frames)`.

    Returns:
        `(low, high)` in the spectrograms' own unit, `low < high`; `(0.0, 1.0)` where there is
        nothing to measure.
    """
    # One range for the whole report: the classifier depends on levels, and a range for every clip
    # would show a hiss at -70 dB as loud as a siren. The lowest value is left out since it
    # is digital silence, whose logarithm is only the small number that was added to it.
    values = np.concatenate([np.zeros(0), *(np.ravel(log_mel) for log_mel in log_mels)])
    values = values[np.isfinite(values)]
    sounding = values[values > values.min() + 1e-3] if values.size else values
    if not sounding.size:
        return 0.0, 1.0
    low, high = (float(value) for value in np.percentile(sounding, [2, 99.9]))
    return low, max(high, low + 1e-3)


def spectrogram(log_mel: NDArray[np.float32], low: float, high: float) -> str:
    """Paint a log-mel spectrogram.

    Args:
        log_mel: `(n_mels, n_frames)`, mel band 0 lowest in pitch.
        low: Value that gets the darkest colour, as do all below.
        high: Value that gets the brightest colour, as do all above.

    Returns:
        A PNG as a `data:` URI, one pixel a band and a frame, band 0 at the bottom. More than 640
        frames are drawn together, the loudest of each group, so that a click stays visible.

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
        metadata={"Software": "raysound"},  # in place of a version, so that bytes stay the same
    )
    return data_uri(png.getvalue(), "image/png")


def colour_scale() -> str:
    """Paint the colours of `spectrogram` from dark to bright, as a PNG `data:` URI."""
    return spectrogram(np.linspace(0, 1, 256, dtype=np.float32)[None, :], 0, 1)


def data_uri(content: bytes, media_type: str) -> str:
    """Write a file's content so that a page can hold it."""
    return f"data:{media_type};base64,{base64.b64encode(content).decode('ascii')}"


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Round numbers for an axis, as 0, 2, 4 or 0, 0.5, 1.

    Args:
        low: Start of the axis.
        high: End of the axis, above `low`.
        count: About how many steps to aim at.

    Returns:
        Multiples of 1, 2 or 5 times a power of ten that lie in `[low, high]`, ascending.
    """
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = power * next(factor for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]
