"""The trials of a search as CSV and as lines of text."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from collections.abc import Iterator

from raysound.report.search_page import TrialRow, setting_text
from raysound.wording import counted


def trials_csv(rows: list[TrialRow]) -> str:
    """CSV with one line per trial; the values of settings are JSON."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    measured = ["state", "accuracy", "loss", "selected_epoch", "epochs", "seconds"]
    table.writerow(["trial", *measured, *(rows[0].values if rows else ()), "error"])
    for row in rows:
        values = (json.dumps(value) for value in row.values.values())
        table.writerow(
            [row.number, *(getattr(row, name) for name in measured), *values, row.error or ""]
        )
    return text.getvalue()


def summary_lines(rows: list[TrialRow], best: TrialRow | None, most: int) -> Iterator[str]:
    """Summary of the search as lines of text."""
    states = Counter(row.state for row in rows)
    spent = sum(row.epochs for row in rows)
    ended = ", ".join(f"{count} {state}" for state, count in states.items())
    yield f"{counted(len(rows), 'trial')}: {ended}"
    yield f"{spent} of {counted(most, 'epoch')} trained"
    if best is not None:
        values = ", ".join(f"{key} {setting_text(value)}" for key, value in best.values.items())
        yield f"best: trial {best.number}, {best.accuracy:.1%} of the validation clips: {values}"


def last_line(text: str) -> str:
    """Last non-empty line of a traceback: the error message."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")
