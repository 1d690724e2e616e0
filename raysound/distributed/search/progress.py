"""Progress of a search on stderr: a table on a terminal, a line per finished trial elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

from ray import tune

from raysound.distributed.search.trial import USER_ERROR, decode_choices
from raysound.distributed.training.worker import FINISHED, SCORE
from raysound.report.search_page import setting_text
from raysound.settings.schema import Config
from raysound.wording import counted

# Minimum seconds between two updates of the table.
REDRAW_SECONDS = 0.5
# Rows of the table. A larger search shows the running trials and the best ones.
MAX_ROWS = 20


class SearchProgress(tune.Callback):
    """A callback of Ray Tune, which pickles it with its state, so attributes are plain values.

    Args:
        config: with the search.
        total: trials of the search.
    """

    def __init__(self, config: Config, total: int) -> None:
        self.config = config
        self.total = total
        self.drawn_at = 0.0
        self.drawn_lines = 0

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        """Updates the table after an epoch."""
        if sys.stderr.isatty() and time.monotonic() - self.drawn_at > REDRAW_SECONDS:
            self.draw(trials)

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Shows a trial that finished or was stopped."""
        self.report_end(trials, trial)

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        """Shows a trial that failed after its last retry."""
        self.report_end(trials, trial)

    def report_end(self, trials: list[Any], trial: Any) -> None:
        """Shows a trial that ended."""
        if sys.stderr.isatty():
            self.draw(trials, ending=trial)
        else:
            cells = self.cells(1 + trials.index(trial), trial, has_ended=True)
            print("trial " + "  ".join(cells), file=sys.stderr, flush=True)

    def draw(self, trials: list[Any], ending: Any = None) -> None:
        """Overwrites the table; `ending` is a trial that Ray Tune is about to end."""
        numbered = list(enumerate(trials, start=1))
        if len(numbered) > MAX_ROWS:
            numbered = sorted(sorted(numbered, key=_prominence)[-MAX_ROWS:])
        rows = [["trial", "state", "epoch", "accuracy", *self.config.search.space]]
        rows += [self.cells(number, trial, trial is ending) for number, trial in numbered]
        ended = sum(trial.is_finished() or trial is ending for trial in trials)
        lines = [*aligned(rows), f"{ended} of {counted(self.total, 'trial')} over"]
        back = f"\x1b[{self.drawn_lines}F\x1b[J" if self.drawn_lines else ""
        print(back + "\n".join(lines), file=sys.stderr, flush=True)
        self.drawn_at, self.drawn_lines = time.monotonic(), len(lines)

    def cells(self, number: int, trial: Any, has_ended: bool = False) -> list[str]:
        """The table row of a trial."""
        result = trial.last_result or {}
        score = result.get(SCORE)
        values = decode_choices(self.config, trial.config)
        return [
            str(number),
            _state(trial, has_ended),
            str(result.get("epoch", "–")),
            "–" if score is None else f"{score:.1%}",
            *(
                setting_text(values[key]) if key in values else "–"
                for key in self.config.search.space
            ),
        ]


def _state(trial: Any, has_ended: bool) -> str:
    result = trial.last_result or {}
    if trial.status == "ERROR" or USER_ERROR in result:
        return "failed"
    if not has_ended and not trial.is_finished():
        return trial.status.lower()
    return "finished" if result.get(FINISHED) else "stopped"


def _prominence(numbered: tuple[int, Any]) -> tuple[bool, float]:
    trial = numbered[1]
    return trial.status == "RUNNING", (trial.last_result or {}).get(SCORE) or 0.0


def aligned(rows: list[list[str]]) -> Iterator[str]:
    """Cells as columns of text."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        yield "  ".join(cells).rstrip()
