"""Clips to show in the report: which ones, and what a person sees and hears of them."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import torch

from raysound.audio import Reject, encode, read_clip
from raysound.logmel import LogMel
from raysound.report.page import Example
from raysound.settings import FeatureSettings
from raysound.sounds import Sound

logger = logging.getLogger(__name__)


def choose(predictions: pa.Table, count: int) -> list[int]:
    """Rows of a corpus's predictions to show: the surest mistakes, then the surest hits.

    Mistakes fill half of the places where there are so many; a class comes again only when every
    class has had its turn.

    Args:
        predictions: columns label, prediction and probability (of the prediction).
        count: how many to show at the most.
    """
    labels = np.array(predictions["label"].to_pylist(), dtype=object)
    wrong = labels != np.array(predictions["prediction"].to_pylist(), dtype=object)
    sure_first = np.argsort(-predictions["probability"].to_numpy(), kind="stable")
    mistakes = _one_a_class(sure_first[wrong[sure_first]], labels)
    hits = _one_a_class(sure_first[~wrong[sure_first]], labels)
    shown = mistakes[: max(count // 2, count - len(hits))]
    return shown + hits[: count - len(shown)]


def _one_a_class(rows: np.ndarray, labels: np.ndarray) -> list[int]:
    """The rows in turns: first the first of every class, then the second of every class."""
    seen: dict[str, int] = {}
    turns = []
    for place, row in enumerate(rows):
        turn = seen[labels[row]] = seen.get(labels[row], 0) + 1
        turns.append((turn, place, int(row)))
    return [row for _, _, row in sorted(turns)]


def load(
    corpus: str, row: Mapping[str, str | float], sound: Sound, settings: FeatureSettings
) -> Example | None:
    """Reads one clip's first window, as picture and sound; None, told, if it is gone since.

    Args:
        corpus: its name.
        row: clip_id, label, prediction and probability.
        sound: as `open_sounds` gives it.
        settings: of the log-mel.
    """
    try:
        if isinstance(sound, Reject):
            raise sound
        window = read_clip(sound, settings).windows[0]
    except Reject as reject:
        logger.warning("%s: %s can't be shown in the report: %s", corpus, row["clip_id"], reject)
        return None
    with torch.inference_mode():
        log_mel = LogMel(settings)(torch.from_numpy(window)).numpy()
    return Example(
        corpus=corpus,
        clip_id=str(row["clip_id"]),
        label=str(row["label"]),
        prediction=str(row["prediction"]),
        probability=float(row["probability"]),
        log_mel=log_mel,
        audio=encode(window, settings.sample_rate, "FLAC"),
        seconds_per_frame=settings.hop_length / settings.sample_rate,
    )
