"""Copies of training clips: lines of text, and values for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from raysound.report.formatting import format_estimate

# Maximum number of pairs with pictures and players: per generated corpus, and of real clips.
PAIRS_OF_CORPUS, REAL_PAIRS = 3, 2


class ShownWindow(NamedTuple):
    """A window with its picture and audio.

    Attributes:
        log_mel: `(n_mels, n_frames)`; mel band 0 is the lowest.
        audio: content of a FLAC file.
        seconds_per_frame: seconds between two frames of the log-mel.
    """

    log_mel: NDArray[np.float32]
    audio: bytes
    seconds_per_frame: float


class ShownPair(NamedTuple):
    """A clip and its most similar training clip.

    Attributes:
        corpus: corpus of the clip; None for a pair of training clips.
        rank: index among the pairs of the corpus in metrics.json, from 0.
        clip: the window of the clip that is most similar to a training window.
        training: this training window.
    """

    corpus: str | None
    rank: int
    clip: ShownWindow
    training: ShownWindow


def pairs_to_show(
    copies: Mapping[str, Any], most: int
) -> list[tuple[str | None, int, Mapping[str, Any]]]:
    """Selects the pairs with pictures and players.

    The most similar pair of each generated corpus and of the real clips comes first, then the
    second most similar ones, and so on.

    Args:
        copies: `copies` of metrics.json.
        most: maximum number of pairs.

    Returns:
        Corpus (None for the real clips), rank and pair, see `ShownPair`.
    """
    pairs = {
        name: row["pairs"][:PAIRS_OF_CORPUS]
        for name, row in copies["corpora"].items()
        if name != "real"
    }
    rows = {**pairs, None: copies["real_pairs"][:REAL_PAIRS]}
    turns = (
        (name, rank, some[rank])
        for rank in range(PAIRS_OF_CORPUS)
        for name, some in rows.items()
        if rank < len(some)
    )
    return list(islice(turns, most))


def copy_lines(copies: Mapping[str, Any] | None) -> Iterator[str]:
    """The threshold and the number of training clips, then one line per corpus; empty for None."""
    if copies is None:
        return
    threshold, training = copies["threshold"], copies["training"]
    limit = f"from a similarity of {threshold['value'] or 0:.3f} on"
    yield (
        f"copies: {limit if threshold['value'] is not None else 'no threshold'}; "
        f"{training['clips']} of {training['of']} training clips searched"
    )
    if threshold["why"]:
        yield f"note: copies have no threshold: {threshold['why']}"
    shown = {f"{name} (test)" if name == "real" else name: row for name, row in
             copies["corpora"].items()}  # fmt: skip
    width = max(map(len, shown))
    yield f"{'corpus':<{width}}  clips  {'copies':>7}  {'95 % interval':<16}  most similar"
    for name, row in shown.items():
        share, interval, best = row["share"], "", "–"
        if share["value"] is not None:
            interval = f"{share['low']:6.1%} – {share['high']:6.1%}"
        if row["pairs"]:
            pair = row["pairs"][0]
            best = f"{pair['similarity']:.3f}  {pair['clip_id']}, {pair['training_clip']}"
        yield (
            f"{name:<{width}}  {row['clips']:5d}  {format_estimate(share, 'percent'):>7}  "
            f"{interval:<16}  {best}"
        )


def shown_copies(
    copies: Mapping[str, Any] | None, cards: Mapping[tuple[str | None, int], Any]
) -> dict[str, Any] | None:
    """`copies` of metrics.json with the additional values of the template.

    Args:
        copies: `copies` of metrics.json; None without copy detection.
        cards: cards of the clip and of the training clip, by corpus and rank of the pair.

    Returns:
        `copies` with `cards` and `flagged` in each pair, and `order`, the generated corpora with
        pairs, by decreasing share of copies.
    """
    if copies is None:
        return None
    limit = copies["threshold"]["value"]

    def with_cards(corpus: str | None, pairs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        return [
            {
                **pair,
                "cards": cards.get((corpus, rank)),
                "flagged": limit is not None and pair["similarity"] >= limit,
            }
            for rank, pair in enumerate(pairs)
        ]

    corpora = {
        name: {**row, "pairs": with_cards(name, row["pairs"])}
        for name, row in copies["corpora"].items()
    }
    order = sorted(
        (name for name, row in corpora.items() if name != "real" and row["pairs"]),
        key=lambda name: (
            -(corpora[name]["share"]["value"] or 0), -corpora[name]["pairs"][0]["similarity"]
        ),
    )  # fmt: skip
    real_pairs = with_cards(None, copies["real_pairs"])
    return {**copies, "corpora": corpora, "order": order, "real_pairs": real_pairs}
