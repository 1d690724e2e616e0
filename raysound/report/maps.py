"""Map of the embeddings as inline SVG; colour and shape show the class, real clips are hollow."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SIZE, MARGIN = 720, 16
COLOURS = 8
# SVG paths around the origin, the most distinct first; with 8 colours they give 200 marks.
SHAPES = (
    "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",  # disc
    "m-3 -3h6v6h-6z",  # square
    "m0 -4l3.8 6.6h-7.6z",  # triangle up
    "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",  # diamond
    "m-1.2 -4h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8v-2.4h2.8z",  # plus
    "m0 4l3.8 -6.6h-7.6z",  # triangle down
    "m0 -4.4l1.2 3h3.2l-2.6 2l1 3.2l-2.8 -1.9l-2.8 1.9l1 -3.2l-2.6 -2h3.2z",  # star
    "m-4.4 -1.4h8.8v2.8h-8.8z",  # lying bar
    "m-4 0l6.6 -3.8v7.6z",  # triangle left
    "m-1.4 -4.4h2.8v8.8h-2.8z",  # standing bar
    "m4 0l-6.6 -3.8v7.6z",  # triangle right
    "m-3.8 -3.4l7.6 6.8v-6.8l-7.6 6.8z",  # bow tie
    "m-4 2a4 4 0 0 1 8 0z",  # upper half of a disc
    "m-3.4 -3.8l6.8 7.6h-6.8l6.8 -7.6z",  # hourglass
    "m-4 -2a4 4 0 0 0 8 0z",  # lower half of a disc
    "m-3.8 -3.8h2.6v5h5v2.6h-7.6z",  # L
    "m2 -4a4 4 0 0 0 0 8z",  # left half of a disc
    "m3.8 -3.8h-2.6v5h-5v2.6h7.6z",  # L mirrored
    "m-2 -4a4 4 0 0 1 0 8z",  # right half of a disc
    "m-4 -3.8h8v2.6h-2.7v5h-2.6v-5h-2.7z",  # T
    "m-3.8 3.8h2.6v-5h5v-2.6h-7.6z",  # L upside down
    "m-4 3.8h8v-2.6h-2.7v-5h-2.6v5h-2.7z",  # T upside down
    "m3.8 3.8h-2.6v-5h-5v-2.6h7.6z",  # L turned round
    "m-4 3l4 -7l4 7l-4 -3z",  # arrowhead up
    "m-4 -3l4 7l4 -7l-4 3z",  # arrowhead down
)


@dataclass(frozen=True)
class MapPoint:
    """One clip on the map."""

    corpus: str
    label: str
    x: float
    y: float
    clip_id: str


def embedding_map(points: Sequence[MapPoint], labels: list[str], order: list[str]) -> Markup | None:
    """Draws the clips at their positions, with one group per corpus; None without clips.

    Args:
        points: The clips. Those of the first corpus of `order` are hollow.
        labels: Class names. The first 200 have unique pairs of colour and shape; then they repeat.
        order: Corpora in drawing order, the first at the bottom.

    Returns:
        An `<svg>` element. Its groups have the index of the corpus in `order` as `data-corpus`.
    """
    if not points:
        return None
    xs, ys = [point.x for point in points], [point.y for point in points]
    left, top = min(xs), max(ys)
    span = max(max(xs) - left, top - min(ys)) or 1.0
    scale = (SIZE - 2 * MARGIN) / span
    width = math.ceil((max(xs) - left) * scale + 2 * MARGIN)
    height = math.ceil((top - min(ys)) * scale + 2 * MARGIN)
    place = {label: number for number, label in enumerate(labels)}
    parts = [
        f'<svg class="map" viewBox="0 0 {width} {height}" role="img" '
        'aria-label="Map of the embeddings">'
    ]
    for number, corpus in enumerate(order):
        hollow = " hollow" if number == 0 else ""
        parts.append(f'<g data-corpus="{number}" class="points{hollow}">')
        for point in points:
            if point.corpus == corpus:
                x, y = (point.x - left) * scale + MARGIN, (top - point.y) * scale + MARGIN
                words = escape(f"{point.label}, {point.corpus}: {point.clip_id}")
                mark = _mark(place[point.label], x, y)
                parts.append(f"{mark}<title>{words}</title></path>")
        parts.append("</g>")
    return Markup("".join([*parts, "</svg>"]))


def legend_mark(number: int) -> Markup:
    """Mark of a class as a small `<svg>`."""
    return Markup(f'<svg viewBox="0 0 12 12" aria-hidden="true">{_mark(number, 6, 6)}</path></svg>')


def _mark(number: int, x: float, y: float) -> str:
    shape = SHAPES[number // COLOURS % len(SHAPES)]
    return f'<path class="c{number % COLOURS}" d="M{x:.1f} {y:.1f}{shape}">'
