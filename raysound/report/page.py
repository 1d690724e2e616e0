"""The report as one HTML page that loads nothing from outside."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from numpy.typing import NDArray

from raysound.report import pictures

REJECTS_SHOWN = 100
CONFUSIONS_NAMED = 4
ROOMY_CLASSES = 12  # matrices of more classes are drawn small, and folded up but for the first


@dataclass(frozen=True, eq=False)
class Example:
    """One clip to look at and to listen to."""

    corpus: str
    clip_id: str
    label: str
    """What the clip was asked to be, or is."""
    prediction: str
    """What the judge heard."""
    probability: float
    """The judge's probability of `prediction`, in [0, 1]."""
    log_mel: NDArray[np.float32]
    """`(n_mels, n_frames)`, mel band 0 lowest in pitch."""
    audio: bytes
    """A FLAC file."""
    seconds_per_frame: float


def render(
    metrics: dict[str, Any],
    history: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    rejects: Sequence[dict[str, Any]],
    settings_yaml: str,
) -> str:
    """Write the report.

    Args:
        metrics: The content of metrics.json: `name`, `judge`, and `corpora` by name, each with a
            `role` (`real` or `generated`), `found`, `rejected` and its classification report. The
            first corpus of role `real` is the judge's own score.
        history: One row an epoch of the judge's training; may be empty.
        examples: Clips to show; may be empty.
        rejects: Rows of `corpus`, `clip_id`, `label` and `reason`; the first 100 are listed.
        settings_yaml: The settings as they were read.

    Returns:
        A complete HTML page. Whatever came in as text is escaped in it.

    Raises:
        KeyError: `metrics` lacks a part.
        jinja2.UndefinedError: A corpus or a row lacks a part.
        ValueError: An example's spectrogram is empty.
    """
    corpora = _corpora(metrics["corpora"], metrics["judge"]["labels"])
    low, high = pictures.colour_range(example.log_mel for example in examples)
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            name=metrics["name"],
            judge=metrics["judge"],
            corpora=corpora,
            real=next((corpus for corpus in corpora if corpus["role"] == "real"), None),
            generated=[corpus for corpus in corpora if corpus["role"] != "real"],
            roomy=len(metrics["judge"]["labels"]) <= ROOMY_CLASSES,
            curves=pictures.learning_curves(history, metrics["judge"]["epoch"]),
            examples=_by_corpus(examples, [corpus["name"] for corpus in corpora], low, high),
            scale={"picture": pictures.colour_scale(), "low": low, "high": high},
            reject_counts=sorted(
                Counter((row["corpus"], row["reason"]) for row in rejects).items()
            ),
            rejects=rejects[:REJECTS_SHOWN],
            rejects_hidden=max(0, len(rejects) - REJECTS_SHOWN),
            settings_yaml=settings_yaml,
        )
    )


def environment() -> Environment:
    """The templates, with the filters that they write numbers by."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, interval=interval, seconds=seconds)
    return made


def percent(share: float | None) -> str:
    """Write a share as a percentage with one decimal, a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def interval(measure: dict[str, Any]) -> str:
    """Write the interval of a measure with a `low` and a `high`, as `83.1–92.4%`."""
    return f"{100 * measure['low']:.1f}–{measure['high']:.1%}"


def seconds(value: float) -> str:
    """Write a time on an axis without needless noughts."""
    return f"{value:g}"


def _corpora(corpora: dict[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    """Put the real corpora first, then the generated ones by accuracy, unscored ones last."""
    rows = [{"name": name, **corpus} for name, corpus in corpora.items()]
    real = next((row for row in rows if row["role"] == "real"), None)

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        value = row["accuracy"]["value"]
        return row["role"] != "real", value is None, -(value or 0.0)

    for row in rows:
        row["own"] = row is real
        row["share"], row["reading"] = _against(row["accuracy"], real and real["accuracy"])
        row["confusions"] = _confusions(row["confusion"], labels)
    return sorted(rows, key=rank)


def _against(measure: dict[str, Any], real: dict[str, Any] | None) -> tuple[float | None, str]:
    """Compare an accuracy with the judge's own: their ratio, and how the intervals lie."""
    if measure["value"] is None:
        return None, "unscored"
    if real is None or real["value"] is None:
        return None, "alone"
    share = measure["value"] / real["value"] if real["value"] else None
    if measure["high"] < real["low"]:
        return share, "below"
    return share, "above" if measure["low"] > real["high"] else "overlap"


def _confusions(matrix: list[list[int]], labels: list[str]) -> list[dict[str, Any]]:
    """Name the confusions that hold the most clips."""
    counts = np.array(matrix, dtype=np.int64).reshape(len(labels), len(labels))
    wrong = counts - np.diag(np.diagonal(counts))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:CONFUSIONS_NAMED]
    return [
        {"label": labels[row], "heard": labels[column], "count": int(wrong[row, column])}
        for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def _by_corpus(
    examples: Sequence[Example], order: list[str], low: float, high: float
) -> list[tuple[str, list[dict[str, Any]]]]:
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for example in examples:
        picture = pictures.spectrogram(example.log_mel, low, high)
        length = example.log_mel.shape[1] * example.seconds_per_frame
        card = {
            "example": example,
            "right": example.label == example.prediction,
            "picture": picture,
            "audio": pictures.data_uri(example.audio, "audio/flac"),
            "bands": example.log_mel.shape[0],
            "length": length,
            "ticks": pictures.ticks(0, length),
        }
        groups.setdefault(example.corpus, []).append(card)
    return [(name, cards) for name, cards in groups.items() if cards]
