"""Results of a search as a self-contained HTML page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from raysound.report import charts
from raysound.report.page import environment


@dataclass(frozen=True)
class TrialRow:
    """One trial of a search.

    Attributes:
        number: number from 1, in the order of sampling.
        trial_id: name of the folder.
        state: finished, stopped, failed, or not begun.
        values: values of the searched settings, by path.
        history: one row per epoch.
        selected: row of the selected epoch; None without epochs.
        error: one-line error message of a failed trial.
    """

    number: int
    trial_id: str
    state: str
    values: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    selected: Mapping[str, Any] | None
    error: str | None

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy of the selected epoch, in [0, 1]."""
        return self.selected["validation_accuracy"] if self.selected else None

    @property
    def loss(self) -> float | None:
        """Validation loss of the selected epoch, in nats."""
        return self.selected["validation_loss"] if self.selected else None

    @property
    def selected_epoch(self) -> int | None:
        """Number of the selected epoch, from 1."""
        return self.selected["epoch"] if self.selected else None

    @property
    def epochs(self) -> int:
        """Number of trained epochs."""
        return len(self.history)

    @property
    def seconds(self) -> float:
        """Time of training and validation, in seconds."""
        return round(sum(row["seconds"] for row in self.history), 1)


def ranked(rows: Sequence[TrialRow]) -> list[TrialRow]:
    """Trials by decreasing validation accuracy, then increasing loss; failed trials come last."""

    def rank(row: TrialRow) -> tuple[bool, float, float]:
        return row.state == "failed", -(row.accuracy or 0.0), row.loss or math.inf

    return sorted(rows, key=rank)


def best_of(rows: Sequence[TrialRow]) -> TrialRow | None:
    """The best trial that did not fail; None if there is none."""
    usable = [row for row in ranked(rows) if row.state != "failed" and row.selected]
    return usable[0] if usable else None


def render_search(
    name: str,
    rows: Sequence[TrialRow],
    best: TrialRow | None,
    settings: Sequence[str],
    epochs_allowed: int,
    settings_yaml: str,
) -> str:
    """Renders the page.

    Args:
        name: Name of the experiment.
        rows: The trials.
        best: The recommended trial.
        settings: Paths of the searched settings.
        epochs_allowed: Number of epochs if no trial stops early.
        settings_yaml: The settings as YAML.

    Returns:
        A complete HTML page. All text from arguments is escaped.
    """
    begun = [row for row in rows if row.history]
    succeeded = [row for row in begun if row.state != "failed"]
    templates = environment()
    templates.filters["shown"] = setting_text
    return templates.get_template("search.html.jinja").render(
        name=name,
        rows=ranked(rows),
        best=best,
        settings=settings,
        states=Counter(row.state for row in rows),
        spent=sum(row.epochs for row in rows),
        allowed=epochs_allowed,
        seconds=sum(row.seconds for row in rows),
        clips=max((row.selected["validation_clips"] for row in begun if row.selected), default=0),
        curves=[
            charts.svg(figure)
            for figure in charts.trial_curves([row.history for row in begun],
                                              begun.index(best) if best else None)
        ],
        effects=[_effect(setting, succeeded, best) for setting in settings],
        settings_yaml=settings_yaml,
    )  # fmt: skip


def _effect(setting: str, rows: Sequence[TrialRow], best: TrialRow | None) -> dict[str, Any]:
    """Accuracy by the value of a setting: a chart over its range, or one row per choice."""
    measured = [(row.values[setting], row.accuracy or 0.0, row is best) for row in rows]
    numbers = {value for value, *_ in measured if _is_number(value)}
    if len(numbers) > 1 and all(_is_number(value) for value, *_ in measured):
        drawing = charts.svg(charts.effect(setting, measured))
        return {"setting": setting, "drawing": drawing, "choices": []}
    choices: dict[str, list[tuple[float, bool]]] = {}
    for value, accuracy, is_best in measured:
        choices.setdefault(setting_text(value), []).append((accuracy, is_best))
    table: list[dict[str, Any]] = [
        {
            "choice": choice,
            "trials": len(dots),
            "median": median(accuracy for accuracy, _ in dots),
            "best": max(accuracy for accuracy, _ in dots),
            "drawing": charts.strip(dots),
        }
        for choice, dots in choices.items()
    ]
    table.sort(key=lambda row: -row["best"])
    return {"setting": setting, "drawing": None, "choices": table}


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def setting_text(value: object) -> str:
    """Value of a setting as short text."""
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Mapping):
        inside = ", ".join(setting_text(each) for key, each in value.items() if key != "name")
        return f"{value.get('name', '')}({inside})" if "name" in value else f"({inside})"
    return "none" if value is None else str(value)
