"""The charts of the pages: matplotlib figures as inline SVG in the colours of the page."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from typing import Any

import matplotlib
from markupsafe import Markup, escape
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, PercentFormatter

# Colours of the figures, and the CSS values that replace them, so that the page can turn dark.
SOFT, RULE, INK, BLUE, RUST = "#010101", "#020202", "#030303", "#040404", "#050505"
CSS = {
    SOFT: "var(--soft)", RULE: "var(--rule)", INK: "var(--ink)", BLUE: "rgb(var(--blue))",
    RUST: "rgb(var(--rust))",
}  # fmt: skip
STYLE = {
    "svg.fonttype": "none", "font.size": 8.5, "text.color": SOFT, "axes.labelcolor": SOFT,
    "xtick.color": SOFT, "ytick.color": SOFT, "grid.color": RULE, "grid.linewidth": 0.8,
    "axes.grid": True, "axes.grid.axis": "y", "lines.linewidth": 1.6,
}  # fmt: skip
# Matplotlib numbers the elements of every figure, and its style would apply to the complete page.
UNUSED = re.compile(r' id="(?![mp][0-9a-f]{10}")[^"]*"|<defs>\s*<style.*?</style>\s*</defs>', re.S)
# The accuracy over a setting has a logarithmic axis if the largest value is this multiple of the
# smallest.
LOGARITHMIC = 20
FAINT = 0.38
STRIP_WIDTH, STRIP_HEIGHT = 220, 22


@matplotlib.rc_context(STYLE)
def learning_curves(history: Sequence[dict[str, Any]], chosen_epoch: int) -> list[Figure]:
    """Loss, accuracy and learning rate over the epochs; no figure without a history.

    Args:
        history: A row per epoch with `epoch`, `lr` and `train_` and `validation_` `loss` and
            `accuracy`. A value that is None or not finite is left out.
        chosen_epoch: The epoch whose weights became the classifier; marked in each figure.
    """
    curves = (
        ("loss", ("train_loss", "validation_loss"), None),
        ("accuracy", ("train_accuracy", "validation_accuracy"), 1.0),
        ("learning rate", ("lr",), None),
    )
    figures = []
    for quantity, keys, top in curves if history else ():
        figure, axes = _axes(
            f"{quantity} over the epochs, epoch {chosen_epoch} selected", quantity, top
        )
        for key, colour, dashes in zip(keys, (BLUE, RUST), ("-", (0, (4, 3))), strict=False):
            _line(axes, history, key, color=colour, linestyle=dashes)
        epochs = [row["epoch"] for row in history]
        if min(epochs) <= chosen_epoch <= max(epochs):
            axes.axvline(chosen_epoch, color=SOFT, linewidth=0.8, linestyle=":")
            side = "right" if 2 * chosen_epoch > min(epochs) + max(epochs) else "left"
            axes.text(
                chosen_epoch, 1.03, f"epoch {chosen_epoch} selected", ha=side, color=INK,
                transform=axes.get_xaxis_transform(),
            )  # fmt: skip
        figures.append(_with_epochs(figure, axes))
    return figures


@matplotlib.rc_context(STYLE)
def trial_curves(histories: Sequence[Sequence[Any]], best: int | None) -> list[Figure]:
    """Training loss, validation loss and accuracy of all trials over the epochs.

    Args:
        histories: One per trial, a row per epoch with `epoch`, `train_loss`, `validation_loss` and
            `validation_accuracy`. A value that is None or not finite is left out.
        best: Index of the highlighted trial; None for none.
    """
    curves = (
        ("training loss", "train_loss", None),
        ("validation loss", "validation_loss", None),
        ("validation accuracy", "validation_accuracy", 1.0),
    )
    figures = []
    for quantity, key, top in curves if histories else ():
        figure, axes = _axes(f"{quantity} of every trial over the epochs", quantity, top)
        for index in sorted(range(len(histories)), key=lambda index: index == best):
            style = {"color": RUST} if index == best else {"color": BLUE, "alpha": FAINT}
            _line(axes, histories[index], key, **style)
        if top is None:
            # A diverged trial would flatten all others.
            lines = (_finite(history, key) for history in histories)
            starts = [line[0][1] for line in lines if line]
            axes.set_ylim(top=1.25 * max(starts, default=1.0) or 1.0)
        figures.append(_with_epochs(figure, axes))
    return figures


@matplotlib.rc_context(STYLE)
def effect(setting: str, measured: Sequence[tuple[float, float, bool]]) -> Figure:
    """Validation accuracy over the values of a setting.

    Args:
        setting: Its path.
        measured: Value, accuracy in [0, 1] and whether it is the best trial; two values differ.
    """
    figure, axes = _axes(f"validation accuracy by {setting}", "accuracy", 1.0)
    low, high = (pick(value for value, *_ in measured) for pick in (min, max))
    if low > 0 and high / low > LOGARITHMIC:
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 3)))
        axes.xaxis.set_minor_locator(LogLocator(subs=()))
    else:
        axes.xaxis.set_major_locator(MaxNLocator(4))
    axes.xaxis.set_major_formatter(FuncFormatter(_short))
    for value, accuracy, is_best in sorted(measured, key=lambda one: one[2]):
        colour, alpha = (RUST, 1.0) if is_best else (BLUE, FAINT)
        axes.plot([value], [accuracy], "o", color=colour, alpha=alpha, clip_on=False)
    return figure


def strip(dots: Sequence[tuple[float, bool]]) -> Markup:
    """Accuracies on one line from 0 to 100 %.

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


def svg(figure: Figure) -> Markup:
    """A figure of this module as an `<svg>` element."""
    label = figure.get_label()
    file = io.StringIO()
    # Identifiers are hashes of what they name and the salt: repeatable, and distinct on a page.
    with matplotlib.rc_context({**STYLE, "svg.hashsalt": label}):
        figure.savefig(file, format="svg", transparent=True, metadata=dict.fromkeys(
            ("Creator", "Date", "Format", "Type")))  # fmt: skip
    text = file.getvalue()
    text = UNUSED.sub("", text[text.index("<svg") :])
    for colour, css in CSS.items():
        text = text.replace(colour, css)
    head = f'<svg class="plot" role="img" aria-label="{escape(label)}"'
    # Matplotlib escapes text, and the size is that of the page.
    return Markup(re.sub(r'^<svg( xmlns:xlink="[^"]*")? width="[^"]*" height="[^"]*"', head, text))


def _axes(label: str, quantity: str, top: float | None) -> tuple[Figure, Axes]:
    figure = Figure((3.4, 2.2), layout="constrained", label=label)
    axes = figure.add_subplot()
    axes.set_ylabel(quantity)
    axes.set_axisbelow(True)
    axes.tick_params(left=False, bottom=False)
    axes.spines[:].set_visible(False)
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(PercentFormatter(1, 0) if top else FuncFormatter(_short))
    if top is not None:
        axes.set_ylim(0, top)
    return figure, axes


def _finite(history: Sequence[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    """Epoch and value, for the finite values of a column."""
    known = [(row["epoch"], row[key]) for row in history if row.get(key) is not None]
    return [(epoch, value) for epoch, value in known if math.isfinite(value)]


def _line(axes: Axes, history: Sequence[dict[str, Any]], key: str, **style: Any) -> None:
    """Draws the finite values of a column; a single one as a dot."""
    points = _finite(history, key)
    epochs, values = [epoch for epoch, _ in points], [value for _, value in points]
    axes.plot(epochs, values, marker="o" if len(points) == 1 else "", **style)


def _with_epochs(figure: Figure, axes: Axes) -> Figure:
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.set_ylim(bottom=0)
    return figure


def _short(value: float, _: Any = None) -> str:
    """A number in few letters: 0.5, but 5e-4 for 0.0005."""
    short = f"{value:.1e}".replace(".0e", "e").replace("e-0", "e-")
    return short if 0 < value < 0.01 else f"{value:g}"
