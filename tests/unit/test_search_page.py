import math
import re
from typing import Any

import pytest

from raysound.report import charts
from raysound.report.search_page import TrialRow, best_of, ranked, render_search, setting_text
from tests.html_tree import Element, Tree, assert_harmless

BREAKOUT = '"><img src=x onerror=alert(1)>'


def trial(
    number: int, accuracies: list[float], state: str = "finished", **changes: Any
) -> TrialRow:
    """A trial with one epoch of two seconds per accuracy; the loss is one minus the accuracy."""
    history = [
        {
            "epoch": epoch, "train_loss": 2 / epoch, "validation_loss": 1 - accuracy,
            "validation_accuracy": accuracy, "validation_clips": 80, "seconds": 2.0,
        }
        for epoch, accuracy in enumerate(accuracies, start=1)
    ]  # fmt: skip
    fields = {
        "number": number,
        "trial_id": f"ab_{number}",
        "state": state,
        "values": {
            "training.optimizer.lr": {1: 0.1, 2: 0.002}.get(number, 1e-4),
            "training.scheduler": None,
        },
        "history": history,
        "selected": max(history, key=lambda row: row["validation_accuracy"], default=None),
        "error": None,
    }
    return TrialRow(**fields | changes)


def rows() -> list[TrialRow]:
    """Three trials, and one with a high accuracy that failed."""
    step = {"name": "StepLR", "step_size": 10, "gamma": 0.1}
    return [
        trial(1, [0.2, 0.3], "stopped"),
        trial(2, [0.5, 0.8, 0.7]),
        trial(3, [0.4, 0.6], "stopped",
              values={"training.optimizer.lr": 0.05, "training.scheduler": step}),
        trial(4, [0.9], "failed", error="the loss is not a number"),
    ]  # fmt: skip


def page(trials: list[TrialRow], yaml: str = "name: demo\n", name: str = "demo") -> Element:
    """The parsed page."""
    settings = ["training.optimizer.lr", "training.scheduler"]
    return Tree(render_search(name, trials, best_of(trials), settings, 12, yaml)).root


def test_trials_are_ranked_by_accuracy_then_loss_and_failed_ones_come_last() -> None:
    tied = [trial(1, [0.5]), trial(2, [0.5], selected={"validation_accuracy": 0.5,
            "validation_loss": 0.1, "epoch": 1}), *rows()[2:]]  # fmt: skip

    assert [row.number for row in ranked(tied)] == [3, 2, 1, 4]
    assert [row.number for row in ranked(rows())] == [2, 3, 1, 4]


def test_a_failed_trial_is_never_the_best() -> None:
    assert best_of(rows()).number == 2
    assert best_of([rows()[3]]) is None
    assert best_of([trial(1, [], "not begun")]) is None


def test_the_page_names_the_best_its_clips_and_the_budget() -> None:
    tree = page(rows())

    assert "number 2, has an accuracy of 80.0% on 80 validation clips in epoch 2" in (
        tree.one("p", class_="lede").text
    )
    facts = {row.one("dt").text: row.one("dd").text
             for row in tree.one("dl", class_="facts").all("div")}  # fmt: skip
    assert facts["Epochs trained"] == "8 of 12 (66.7%)"
    assert facts["Training time, all trials"] == "0.3 min"
    assert facts["Trials stopped"] == "2"
    assert facts["Trials failed"] == "1"
    assert "biased upwards" in tree.text
    assert "no trial uses" in tree.text


def test_every_trial_is_a_row_with_its_values_and_error() -> None:
    table = page(rows()).one("table", class_="trials")
    cells = [[cell.text for cell in row.children if isinstance(cell, Element)]
             for row in table.one("tbody").all("tr")]  # fmt: skip

    assert cells == [
        ["2", "finished", "80.0%", "0.200", "2", "3", "0.002", "none", ""],
        ["3", "stopped", "60.0%", "0.400", "2", "2", "0.05", "StepLR(10, 0.1)", ""],
        ["1", "stopped", "30.0%", "0.700", "2", "2", "0.1", "none", ""],
        ["4", "failed", "90.0%", "0.100", "1", "1", "0.0001", "none", "the loss is not a number"],
    ]
    assert [row.one("th").text for row in table.all("tr", class_="picked")] == ["2"]


def test_three_charts_have_a_line_per_trial_with_the_best_on_top() -> None:
    assert len(list(page(rows()).one("section", id="curves").all("svg"))) == 3
    figures = charts.trial_curves([row.history for row in rows()], 1)

    assert len(figures) == 3
    for figure in figures:
        lines = figure.axes[0].lines
        assert len(lines) == 4
        assert [line.get_color() == charts.RUST for line in lines] == [False, False, False, True]
        assert len(lines[-1].get_xdata()) == 3


def test_numbers_have_a_chart_and_choices_have_a_table() -> None:
    rate, schedule = page(rows()).one("div", class_="effects").all("h3")
    assert [rate.text, schedule.text] == ["training.optimizer.lr", "training.scheduler"]

    axes = charts.effect("x", [(0.002, 0.8, True), (0.05, 0.6, False), (0.1, 0.3, False)]).axes[0]
    table = page(rows()).one("div", class_="effects").one("table")
    choices = [[cell.text for cell in row.children if isinstance(cell, Element)][:4]
               for row in table.one("tbody").all("tr")]  # fmt: skip

    assert page(rows()).one("div", class_="effects").one("svg").attributes["aria-label"] == (
        "validation accuracy by training.optimizer.lr"
    )
    assert axes.get_xscale() == "log"
    assert [line.get_color() for line in axes.lines] == [charts.BLUE, charts.BLUE, charts.RUST]
    assert choices == [["none", "2", "55.0%", "80.0%"], ["StepLR(10, 0.1)", "1", "60.0%", "60.0%"]]


def test_a_search_without_a_successful_trial_has_a_page() -> None:
    tree = page([trial(1, [], "failed", error="too large"), trial(2, [], "not begun")])

    assert "No trial of 2 succeeded" in tree.text
    assert "too large" in tree.text
    assert "No trial completed an epoch" in tree.text


def test_a_loss_that_is_not_finite_is_left_out_of_the_charts() -> None:
    diverged = trial(1, [0.1, 0.1])
    diverged.history[1]["validation_loss"] = math.nan
    diverged.history[1]["train_loss"] = math.inf

    html = render_search("x", [diverged], diverged, ["training.optimizer.lr"], 2, "")

    assert not re.search(r"[\s,\"](nan|inf)[\s,\"]", html)


def test_text_from_outside_is_escaped() -> None:
    evil = [trial(1, [0.4], values={"training.optimizer.lr": BREAKOUT, "training.scheduler": 1}),
            trial(2, [], "failed", error=BREAKOUT)]  # fmt: skip
    tree = page(evil, yaml=BREAKOUT, name=BREAKOUT)

    assert_harmless(tree)
    assert tree.one("h1").text == BREAKOUT
    assert tree.one("pre").text == BREAKOUT


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"), (True, "True"), (16, "16"), (0.0012345, "0.00123"), ("cnn", "cnn"),
        ({"name": "StepLR", "step_size": 5, "gamma": 0.1}, "StepLR(5, 0.1)"),
        ({"low": 1, "high": 2}, "(1, 2)"),
    ],
)  # fmt: skip
def test_values_are_shown_as_short_text(value: object, text: str) -> None:
    assert setting_text(value) == text


def test_a_logarithmic_axis_of_less_than_two_decades_has_tick_labels() -> None:
    figure = charts.effect("x", [(1.1e-4, 0.5, False), (7e-3, 0.6, True)])
    words = [text.text for text in Tree(charts.svg(figure)).root.all("text")]

    assert {"3e-4", "1e-3", "3e-3"} <= {*words}
