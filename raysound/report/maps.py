"""The map of embeddings as inline SVG: colour and mark tell the class, filled is generated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

SIZE, MARGIN = 720, 16
COLOURS, MARKS = 8, 4


@dataclass(frozen=True)
class MapPoint:
    """One clip on the map."""

    corpus: str
    label: str
    x: float
    y: float
    clip_id: str


def embedding_map(points: Sequence[MapPoint], labels: list[str], order: list[str]) -> Markup | None:
    """Draw clips where they lie, a group a corpus; None without a clip.

    Args:
        points: The clips. The first corpus of `order` is drawn hollow.
        labels: Class names; eight share the colours, then the mark changes.
        order: Corpora, the first undermost.

    Returns:
        An `<svg>` element whose groups carry the corpus's place in `order` as `data-corpus`.
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
    """The mark of a class, as a small `<svg>`."""
    return Markup(f'<svg viewBox="0 0 12 12" aria-hidden="true">{_mark(number, 6, 6)}</path></svg>')


def _mark(number: int, x: float, y: float) -> str:
    shape = (
        "m-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0z",
        "m-3 -3h6v6h-6z",
        "m0 -4l3.8 6.6h-7.6z",
        "m0 -4.2l4.2 4.2l-4.2 4.2l-4.2 -4.2z",
    )[number // COLOURS % MARKS]
    return f'<path class="c{number % COLOURS}" d="M{x:.1f} {y:.1f}{shape}">'
