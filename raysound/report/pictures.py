"""The report's pictures: spectrograms as PNG data URIs, learning curves as inline SVG.

The SVG names its colours by CSS class only, so that the page can turn it dark.
"""

import base64
import io
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import matplotlib
import numpy as np
from markupsafe import Markup
from matplotlib.image import imsave
from numpy.typing import NDArray

MAX_COLUMNS = 640
WIDTH, HEIGHT = 340, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 26, 40  # margins of the plot inside the drawing, in px


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


def learning_curves(history: Sequence[dict[str, Any]], chosen_epoch: int) -> list[Markup]:
    """Draw loss, accuracy and learning rate over the epochs.

    Args:
        history: One row an epoch, with `epoch`, `lr` and `train_` and `validation_` `loss` and
            `accuracy`. A value that is None or not finite is left out of its line.
        chosen_epoch: The epoch whose weights became the classifier; marked in each drawing.

    Returns:
        Three `<svg>` elements, or none where there is no history.
    """
    if not history:
        return []
    both = {"training": "train_{}", "validation": "validation_{}"}
    loss = {name: _points(history, key.format("loss")) for name, key in both.items()}
    hits = {name: _points(history, key.format("accuracy")) for name, key in both.items()}
    rate = {"learning rate": _points(history, "lr")}
    return [
        _plot("loss", loss, history, chosen_epoch, top=None, number=short),
        _plot("accuracy", hits, history, chosen_epoch, top=1.0, number="{:.0%}".format),
        _plot("learning rate", rate, history, chosen_epoch, top=None, number=short),
    ]


def _points(history: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    known = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    return [(float(epoch), float(value)) for epoch, value in known if math.isfinite(value)]


def short(value: float) -> str:
    """Write a number of an axis in few letters: 0.5, but 5e-4 for 0.0005."""
    return f"{value:.0e}".replace("e-0", "e-") if 0 < value < 0.01 else f"{value:g}"


def _plot(
    quantity: str,
    lines: dict[str, list[tuple[float, float]]],
    history: Sequence[dict[str, Any]],
    chosen_epoch: int,
    top: float | None,
    number: Callable[[float], str],
) -> Markup:
    first, last = (float(pick(row["epoch"] for row in history)) for pick in (min, max))
    span = last - first or 1.0
    # A little air above the highest point, and an axis that starts at nought.
    peak = top or 1.05 * max((y for line in lines.values() for _, y in line), default=1.0) or 1.0

    def across(epoch: float) -> float:
        place = (epoch - first) / span if last > first else 0.5
        return round(LEFT + place * (WIDTH - LEFT - RIGHT), 1)

    def down(value: float) -> float:
        return round(HEIGHT - BOTTOM - value / peak * (HEIGHT - TOP - BOTTOM), 1)

    foot = HEIGHT - BOTTOM
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{quantity} over the epochs, epoch {chosen_epoch} selected">'
    ]
    for value in ticks(0, peak):
        y = down(value)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{LEFT - 7}" y="{y + 4}" class="end">{number(value)}</text>')
    for epoch in ticks(first, last) if last > first else [first]:
        if epoch == int(epoch):
            text = f'<text x="{across(epoch)}" y="{foot + 17}" class="mid">{epoch:.0f}</text>'
            parts.append(text)
    middle = (TOP + foot) / 2
    parts.append(
        f'<text x="{across((first + last) / 2)}" y="{HEIGHT - 6}" class="mid">epoch</text>'
    )
    parts.append(
        f'<text transform="translate(11 {middle}) rotate(-90)" class="mid">{quantity}</text>'
    )
    if first <= chosen_epoch <= last:
        x = across(chosen_epoch)
        side = "end" if x > WIDTH / 2 else "start"
        parts.append(f'<line class="chosen" x1="{x}" x2="{x}" y1="{TOP - 4}" y2="{foot}"/>')
        parts.append(
            f'<text x="{x}" y="{TOP - 10}" class="kept {side}">epoch {chosen_epoch} selected</text>'
        )
    for index, (name, line) in enumerate(lines.items()):
        place = " ".join(f"{across(epoch)},{down(value)}" for epoch, value in line)
        parts.append(
            f'<polyline class="line line-{index}" points="{place}"><title>{name}</title></polyline>'
        )
        if len(line) == 1:  # a line of one point has no length to be seen
            x, y = across(line[0][0]), down(line[0][1])
            parts.append(f'<circle class="dot dot-{index}" cx="{x}" cy="{y}" r="3.5"/>')
    # Nothing but numbers and this module's own words went in, so there is nothing left to escape.
    return Markup("".join([*parts, "</svg>"]))
