"""The report as a self-contained HTML page."""

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raysound.metrics.declarations import (
    EMBEDDING_METRICS,
    HEADLINE,
    METRICS,
    PAIR_CLIPS,
    SET_CLIPS,
)
from raysound.report import charts, maps, pictures
from raysound.report.copies import ShownPair, shown_copies
from raysound.report.formatting import (
    ANCHOR_DESCRIPTIONS,
    format_estimate,
    number,
    skipped_check_lines,
    warnings,
)
from raysound.report.maps import MapPoint
from raysound.report.parts import (
    MAX_LARGE_MATRIX_CLASSES,
    METRIC_NAMES,
    Cells,
    Example,
    anchor_rows,
    cards_by_corpus,
    cell_clips,
    common_kinds,
    corpus_rows,
    interval,
    percent,
    ranking_rows,
    seconds,
    window_card,
)
from raysound.wording import counted

REJECTS_SHOWN = 100


class Rejects(NamedTuple):
    """Rejected clips.

    Attributes:
        shown: Rows of `corpus`, `clip_id`, `label` and `reason`, at most REJECTS_SHOWN.
        counts: Number of all rejected clips by corpus and kind of reason, see `kind_of`.
    """

    shown: Sequence[Mapping[str, Any]]
    counts: Mapping[tuple[str, str], int]


def render(
    metrics: dict[str, Any],
    history: Sequence[dict[str, Any]],
    examples: Sequence[Example],
    cells: Mapping[str, Cells],
    points: Sequence[MapPoint],
    rejects: Rejects,
    settings_yaml: str,
    pairs: Sequence[ShownPair] = (),
) -> str:
    """Renders the report.

    Args:
        metrics: Content of metrics.json. The first corpus with the role `real` contains the real
            test clips.
        history: One row per epoch of the training of the classifier; may be empty.
        examples: Clips to show; may be empty.
        cells: Clips of each cell (label, predicted class) of the confusion matrix, by corpus; a
            missing cell lists no clips.
        points: Clips on the map of embeddings; may be empty.
        rejects: Sample of the rejected clips, and the number of all by kind.
        settings_yaml: The settings as YAML.
        pairs: Clips to show beside training clips; may be empty.

    Returns:
        A complete HTML page. All text from arguments is escaped.

    Raises:
        KeyError: `metrics` lacks a key.
        jinja2.UndefinedError: A corpus or a row lacks a key.
        ValueError: The spectrogram of an example is empty.
    """
    labels = metrics["classifier"]["labels"]
    corpora = corpus_rows(metrics["corpora"], labels)
    real = next((corpus for corpus in corpora if corpus["role"] == "real"), None)
    log_mels = [example.log_mel for example in examples]
    log_mels += [window.log_mel for pair in pairs for window in (pair.clip, pair.training)]
    low, high = pictures.colour_range(log_mels)
    cards = {
        (pair.corpus, pair.rank): [
            window_card(one, low, high) for one in (pair.clip, pair.training)
        ]
        for pair in pairs
    }
    script = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    order = [corpus["name"] for corpus in corpora]
    return (
        environment()
        .get_template("report.html.jinja")
        .render(
            name=metrics["name"],
            classifier=metrics["classifier"],
            reference=metrics["reference"],
            cas=metrics["cas"],
            corpora=corpora,
            real=real,
            generated=[corpus for corpus in corpora if corpus["role"] != "real"],
            anchors=anchor_rows(metrics),
            anchor_words=ANCHOR_DESCRIPTIONS,
            embeddings=metrics["embeddings"],
            embedding_metrics=EMBEDDING_METRICS,
            copies=shown_copies(metrics["copies"], cards),
            warnings=warnings(metrics),
            skipped_checks=skipped_check_lines(metrics),
            mismatch=metrics["mismatch"],
            headline=HEADLINE,
            all_metrics=METRICS,
            equal_n=[metric.name for metric in METRICS if metric.needs_equal_n],
            most={
                "compared": SET_CLIPS,
                "pairs": PAIR_CLIPS,
            },
            ranking=ranking_rows(metrics["ranking"], corpora),
            ranked_by=METRIC_NAMES[metrics["ranking"]["metric"]],
            roomy=len(labels) <= MAX_LARGE_MATRIX_CLASSES,
            curves=[
                charts.svg(figure)
                for figure in charts.learning_curves(history, metrics["classifier"]["epoch"])
            ],
            map=maps.embedding_map(points, labels, order),
            marks=[maps.legend_mark(number) for number in range(len(labels))],
            places={name: place for place, name in enumerate(order)},
            mapped=[name for name in order if any(point.corpus == name for point in points)],
            examples=cards_by_corpus(examples, order, low, high),
            scale={"picture": pictures.colour_scale(), "low": low, "high": high},
            reject_counts=common_kinds(rejects.counts),
            rejects=rejects.shown,
            rejects_hidden=sum(rejects.counts.values()) - len(rejects.shown),
            settings_yaml=settings_yaml,
            script=Markup(script),
            script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
            data=_data({"labels": labels, "cells": cell_clips(cells, corpora)}),
        )
    )


def environment() -> Environment:
    """Template environment with the filters for numbers."""
    made = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(percent=percent, interval=interval, seconds=seconds)
    made.filters.update(format_estimate=format_estimate, number=number, counted=counted)
    return made


def _data(content: dict[str, Any]) -> Markup:
    """JSON with `<`, `>` and `&` escaped, so that text can't close the `<script>` element."""
    text = json.dumps(content, ensure_ascii=True, separators=(",", ":"))
    for sign in "<>&":
        text = text.replace(sign, f"\\u{ord(sign):04x}")
    return Markup(text)
