"""The search page's drawings, as inline SVG whose colours are CSS classes."""

import math
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from raysound.report.pictures import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, short, ticks

STRIP_WIDTH, STRIP_HEIGHT = 220, 22
# Of a range searched so wide, the logarithm is drawn.
WIDE = 20


def trial_curves(histories: Sequence[Sequence[Any]], best: int | None) -> list[Markup]:
    """Draw validation loss, training loss and validation accuracy of all trials over the epochs.

    Args:
        histories: One a trial, a row an epoch with `epoch`, `train_loss`, `validation_loss` and
            `validation_accuracy`. A value that is None or not finite is left out.
        best: Index of the trial that is drawn on top; None for none.

    Returns:
        Three `<svg>` elements, or none where there is no trial.
    """
    if not histories:
        return []
    drawn = (
        ("training loss", "train_loss", None),
        ("validation loss", "validation_loss", None),
        ("validation accuracy", "validation_accuracy", 1.0),
    )
    return [_curves(quantity, key, histories, best, top) for quantity, key, top in drawn]


def effect(setting: str, measured: Sequence[tuple[float, float, bool]]) -> Markup:
    """Draw accuracy over a setting's values.

    Args:
        setting: Its path.
        measured: Value, accuracy in [0, 1] and whether it is the best trial; two values differ.
    """
    values = [value for value, *_ in measured]
    low, high = min(values), max(values)
    by_logarithm = low > 0 and high / low > WIDE
    scale = math.log10 if by_logarithm else float
    first, last = scale(low), scale(high)
    marks = _powers(low, high) if by_logarithm else ticks(low, high, 4)

    def across(value: float) -> float:
        return LEFT + 8 + (scale(value) - first) / (last - first) * (WIDTH - LEFT - RIGHT - 16)

    parts = [*_frame(f"validation accuracy by {setting}", 1.0, "{:.0%}".format, "accuracy")]
    for mark in marks:
        parts.append(_text(across(mark), HEIGHT - BOTTOM + 17, "mid", short(mark)))
    for value, accuracy, is_best in sorted(measured, key=lambda one: one[2]):
        kind = "dot dot-1" if is_best else "dot faint"
        y = _down(accuracy, 1.0)
        parts.append(f'<circle class="{kind}" cx="{across(value):.1f}" cy="{y}" r="4"/>')
    return Markup("".join([*parts, "</svg>"]))


def _powers(low: float, high: float) -> list[float]:
    """Powers of ten between two numbers, and their triples where these are few."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    tens = [10.0**exponent for exponent in exponents]
    inside = [mark for mark in tens if low <= mark <= high]
    if len(inside) < 3:
        inside = [mark for ten in tens for mark in (ten, 3 * ten) if low <= mark <= high]
    return inside


def strip(dots: Sequence[tuple[float, bool]]) -> Markup:
    """Draw accuracies on one line from 0 to 100 %.

    Args:
        dots: Accuracy in [0, 1], and whether it is the best trial.
    """
    middle = STRIP_HEIGHT / 2
    parts = [
        f'<svg class="strip" viewBox="0 0 {STRIP_WIDTH} {STRIP_HEIGHT}" aria-hidden="true">'
        f'<line class="grid" x1="5" x2="{STRIP_WIDTH - 5}" y1="{middle}" y2="{middle}"/>'
    ]
    for accuracy, is_best in sorted(dots, key=lambda dot: dot[1]):
        kind = "dot dot-1" if is_best else "dot faint"
        x = 5 + accuracy * (STRIP_WIDTH - 10)
        parts.append(f'<circle class="{kind}" cx="{x:.1f}" cy="{middle}" r="4"/>')
    return Markup("".join([*parts, "</svg>"]))


def _curves(
    quantity: str,
    key: str,
    histories: Sequence[Sequence[Any]],
    best: int | None,
    top: float | None,
) -> Markup:
    lines = [
        [(row["epoch"], row[key]) for row in history if _is_finite(row.get(key))]
        for history in histories
    ]
    # The loss of a trial that went astray would flatten all others.
    starts = [line[0][1] for line in lines if line]
    peak = top or 1.25 * max(starts, default=1.0) or 1.0
    last = max(max(row["epoch"] for row in history) for history in histories)

    def across(epoch: float) -> float:
        place = (epoch - 1) / (last - 1) if last > 1 else 0.5
        return round(LEFT + place * (WIDTH - LEFT - RIGHT), 1)

    number = "{:.0%}".format if top else short
    parts = [*_frame(f"{quantity} of every trial over the epochs", peak, number, quantity)]
    for epoch in ticks(1, last) if last > 1 else [1.0]:
        if epoch == int(epoch):
            parts.append(_text(across(epoch), HEIGHT - BOTTOM + 17, "mid", f"{epoch:.0f}"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "mid", "epoch"))
    order = sorted(range(len(lines)), key=lambda index: index == best)
    for index in order:
        place = " ".join(f"{across(epoch)},{_down(min(value, peak), peak)}"
                         for epoch, value in lines[index])  # fmt: skip
        kind = "line chosen-line" if index == best else "line faint"
        parts.append(f'<polyline class="{kind}" points="{place}"/>')
    return Markup("".join([*parts, "</svg>"]))


def _frame(label: str, peak: float, number: Any, quantity: str) -> list[str]:
    """An empty drawing with its vertical axis."""
    parts = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{label}">']
    for value in ticks(0, peak):
        y = _down(value, peak)
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(_text(LEFT - 7, y + 4, "end", number(value)))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(11 {middle}) rotate(-90)" class="mid">{quantity}</text>'
    )
    return parts


def _text(x: float, y: float, kind: str, text: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>'


def _down(value: float, peak: float) -> float:
    return round(HEIGHT - BOTTOM - value / peak * (HEIGHT - TOP - BOTTOM), 1)


def _is_finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
