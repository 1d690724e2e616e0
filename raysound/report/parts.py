"""Values of the templates of the evaluation page."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from raysound.metrics.declarations import METRICS
from raysound.report import pictures
from raysound.report.copies import ShownWindow
from raysound.report.formatting import (
    ANCHOR_DESCRIPTIONS,
    differing_from_real,
    not_worse_than_real,
    worse,
)

METRIC_NAMES = {metric.key: metric.name for metric in METRICS}
REJECT_KINDS_SHOWN = 100
# Parts of a reason that differ between clips: quoted text, paths, numbers.
_OF_ONE_CLIP = re.compile(r"(?<!\w)'[^']*'|\"[^\"]*\"|\S*/\S*[^\s:,;]|\d+(?:[.,]\d+)*")
CONFUSIONS_NAMED = 4
MAX_LARGE_MATRIX_CLASSES = (
    12  # matrices of more classes are small, and collapsed except for the first
)
MATRIX_CLASSES = 150  # more classes have a list of the largest confusions instead of a matrix
PAIRS_LISTED = 200
# By cell of a confusion matrix: number of clips, and some clips with their probability.
Cells = Mapping[tuple[int, int], tuple[int, Sequence[tuple[str, float]]]]


@dataclass(frozen=True, eq=False)
class Example:
    """A clip with its picture and audio."""

    corpus: str
    clip_id: str
    kind: Literal["hardest", "convincing"]
    """Lowest or highest probability of the label (without labels, of the predicted class) among the
    clips of its class and corpus."""
    label: str | None
    """Label of the clip; None without labels."""
    prediction: str
    """Most probable class."""
    probability: float
    """The classifier's probability of `prediction`, in [0, 1]."""
    target_probability: float | None
    """The classifier's probability of `label`, in [0, 1]; None without labels."""
    nearest_train_clip_id: str | None
    """The nearest training clip; None if it was not computed."""
    log_mel: NDArray[np.float32]
    """`(n_mels, n_frames)`; mel band 0 is the lowest."""
    audio: bytes
    """Content of a FLAC file."""
    seconds_per_frame: float
    windows: int = 1
    """Number of windows: `log_mel` and `audio` are those of the first window, the probabilities are
    means over all windows."""


def kind_of(reason: str) -> str:
    """A reason without the parts that differ between clips: paths, quoted text, numbers.

    Examples:
        >>> kind_of("decodes to 3 samples, its header says 44100")
        'decodes to … samples, its header says …'
    """
    return _OF_ONE_CLIP.sub("…", reason)


def common_kinds(counts: Mapping[tuple[str, str], int]) -> list[tuple[tuple[str, str], int]]:
    """The most common kinds of rejects by corpus; the others of each corpus are in one row."""
    common = sorted(counts, key=lambda key: (-counts[key], key))
    found = {key: counts[key] for key in common[:REJECT_KINDS_SHOWN]}
    for corpus, kind in common[REJECT_KINDS_SHOWN:]:
        other = (corpus, "other reasons")
        found[other] = found.get(other, 0) + counts[corpus, kind]
    return sorted(found.items())


def percent(share: float | None) -> str:
    """Formats a share as a percentage with one decimal; a dash for None."""
    return "–" if share is None else f"{share:.1%}"


def interval(measure: dict[str, Any]) -> str:
    """Formats the interval of a measure, for example `83.1–92.4%`."""
    return f"{100 * measure['low']:.1f}–{measure['high']:.1%}"


def seconds(value: float) -> str:
    """Formats a time on an axis, without trailing zeros."""
    return f"{value:g}"


def corpus_rows(corpora: dict[str, Any], labels: list[str]) -> list[dict[str, Any]]:
    """Rows of the corpora: real corpora first, then generated ones by accuracy, unscored last."""
    rows: list[dict[str, Any]] = [{"name": name, **corpus} for name, corpus in corpora.items()]
    real = next((row for row in rows if row["role"] == "real"), None)

    def rank(row: dict[str, Any]) -> tuple[bool, bool, float]:
        value = row["accuracy"]["value"]
        return row["role"] != "real", value is None, -(value or 0.0)

    others = {row["name"]: row for row in rows if row is not real}
    differences = differing_from_real(others, real)
    for row in rows:
        row["own"] = row is real
        gaps = differences.get(row["name"], {})
        row["share"], row["reading"] = _against(
            row["accuracy"], real and real["accuracy"], gaps.get("accuracy")
        )
        row["worse"] = worse(gaps)
        if row["clips"] and not row["labelled"]:
            row["reading"] = "unlabelled"
        row["histogram"] = _histogram(row, real)
        row["confusions"] = _confusions(row["confusion"], labels, CONFUSIONS_NAMED)
        row["listed"] = None
        if len(labels) > MATRIX_CLASSES and row["labelled"]:
            row["listed"] = _confusions(row["confusion"], labels, PAIRS_LISTED)
    rows.sort(key=rank)
    for place, row in enumerate(rows):
        row["place"] = place
    return rows


def anchor_rows(metrics: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows of the anchors: checks by metric, and the metrics that are not worse than real."""
    real = next((row for row in metrics["corpora"].values() if row["role"] == "real"), None)
    return [
        {
            "name": name,
            "words": words,
            "checks": {
                check["metric"]: check for check in metrics["sanity"] if check["anchor"] == name
            },
            "not_worse_than_real": not_worse_than_real(metrics["anchors"][name], real),
            **metrics["anchors"][name],
        }
        for name, words in ANCHOR_DESCRIPTIONS.items()
        if name in metrics["anchors"]
    ]


def ranking_rows(ranking: dict[str, Any], corpora: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of the ranking: generators without a significant difference, and worse metrics."""
    close: dict[str, list[str]] = {name: [] for name in ranking["order"]}
    for pair in ranking["pairs"]:
        if not pair["significant"]:
            close[pair["a"]].append(pair["b"])
            close[pair["b"]].append(pair["a"])
    row = {corpus["name"]: corpus for corpus in corpora}
    return [
        {
            "name": name,
            "close": close[name],
            "scored": row[name][ranking["metric"]]["value"] is not None,
            "labelled": row[name]["labelled"],
            "worse": row[name]["worse"],
        }
        for name in ranking["order"]
    ]


def cell_clips(cells: Mapping[str, Cells], corpora: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """By corpus, in the order of the page: `row,column` → number of clips, and some clips."""
    made = []
    for corpus in corpora:
        shown = {
            f"{row},{column}": [count, *clips]
            for (row, column), (count, clips) in cells.get(corpus["name"], {}).items()
        }
        if corpus["listed"] is not None:
            listed = [pair["cell"] for pair in corpus["listed"]]
            shown = {cell: shown[cell] for cell in listed if cell in shown}
        made.append(shown)
    return made


def _against(
    measure: dict[str, Any], real: dict[str, Any] | None, gap: float | None
) -> tuple[float | None, str]:
    """Accuracy as a share of the real accuracy, and the direction of a significant difference.

    Args:
        measure: The accuracy.
        real: Accuracy of the real test clips.
        gap: Difference of both; None if it is not significant.
    """
    if measure["value"] is None:
        return None, "unscored"
    if real is None or real["value"] is None:
        return None, "alone"
    share = measure["value"] / real["value"] if real["value"] else None
    if gap is None:
        return share, "close"
    return share, "below" if gap < 0 else "above"


def _histogram(corpus: dict[str, Any], real: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Number and share of clips by predicted class, and the share of the real clips."""
    clips = max(1, corpus["clips"])
    return [
        {
            "cell": f"{place},{place}",
            "label": label,
            "count": count,
            "share": count / clips,
            "real": real["predicted"][label] / real["clips"] if real and real["clips"] else None,
        }
        for place, (label, count) in enumerate(corpus["predicted"].items())
    ]


def _confusions(
    matrix: list[list[int]] | None, labels: list[str], most: int
) -> list[dict[str, Any]]:
    """The confusions with the most clips."""
    if matrix is None:
        return []
    counts = np.array(matrix, dtype=np.int64).reshape(len(labels), len(labels))
    wrong = counts - np.diag(np.diagonal(counts))
    largest = np.argsort(-wrong, axis=None, kind="stable")[:most]
    return [
        {
            "cell": f"{row},{column}",
            "label": labels[row],
            "predicted": labels[column],
            "count": int(wrong[row, column]),
            "of": int(counts[row].sum()),
        }
        for row, column in zip(*np.unravel_index(largest, wrong.shape), strict=True)
        if wrong[row, column]
    ]


def cards_by_corpus(
    examples: Sequence[Example], order: list[str], low: float, high: float
) -> list[tuple[str, list[dict[str, Any]]]]:
    """Cards of the example clips by corpus, in the order of the corpora."""
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in order}
    for example in examples:
        card = {
            "example": example,
            "right": example.label == example.prediction,
            **window_card(example, low, high),
        }
        groups.setdefault(example.corpus, []).append(card)
    return [(name, cards) for name, cards in groups.items() if cards]


def window_card(shown: Example | ShownWindow, low: float, high: float) -> dict[str, Any]:
    """Picture and audio of a window for the templates."""
    length = shown.log_mel.shape[1] * shown.seconds_per_frame
    return {
        "picture": pictures.spectrogram(shown.log_mel, low, high),
        "audio": pictures.data_uri(shown.audio, "audio/flac"),
        "bands": shown.log_mel.shape[0],
        "length": length,
        "ticks": pictures.ticks(0, length),
    }
