"""Clips to show in the report: which ones, with their spectrogram and sound."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch

from raysound.audio.decode import Reject, encode, read_window
from raysound.audio.log_mel import LogMel
from raysound.audio.sounds import Sound
from raysound.report.copies import ShownWindow
from raysound.report.parts import Example
from raysound.settings.features import FeatureSettings

logger = logging.getLogger(__name__)

Kind = Literal["hardest", "convincing"]


def choose(predictions: pa.Table, count: int) -> list[tuple[int, Kind]]:
    """Rows of a corpus's predictions to show: of each class the hardest and the most convincing.

    In turns: each class's hardest clip, each class's most convincing one, then the next ones, so
    that the first of them are the best choice for less room. No row comes twice.

    Args:
        predictions: columns label and target_probability (of the label).
        count: how many of either kind to show of a class.
    """
    labels = predictions["label"].to_pylist()
    asked = predictions["target_probability"].to_numpy()
    ascending = np.argsort(asked, kind="stable")
    kinds: tuple[tuple[Kind, np.ndarray], ...] = (
        ("hardest", ascending),
        ("convincing", ascending[::-1]),
    )
    turns: list[tuple[int, int, int, int, Kind]] = []
    for number, (kind, order) in enumerate(kinds):
        seen: dict[str, int] = {}
        for place, row in enumerate(order.tolist()):
            turn = seen[labels[row]] = seen.get(labels[row], 0) + 1
            if turn <= count:
                turns.append((turn, number, place, row, kind))
    chosen: dict[int, Kind] = {}
    for _, _, _, row, kind in sorted(turns):
        chosen.setdefault(row, kind)
    return list(chosen.items())


def load_example(
    corpus: str, row: Mapping[str, Any], kind: Kind, sound: Sound, settings: FeatureSettings
) -> Example | None:
    """Reads the first window of a clip, as picture and sound; None and a warning if it is gone.

    Args:
        corpus: its name.
        row: clip_id, label, prediction, probability, target_probability, nearest and windows.
        kind: what it is an example of.
        sound: as `open_sounds` gives it.
        settings: of the log-mel.
    """
    shown = load_window(corpus, row["clip_id"], sound, settings)
    if shown is None:
        return None
    return Example(
        corpus=corpus,
        clip_id=row["clip_id"],
        kind=kind,
        label=row["label"],
        prediction=row["prediction"],
        probability=row["probability"],
        target_probability=row["target_probability"],
        nearest_train_clip_id=row["nearest_train_clip_id"],
        log_mel=shown.log_mel,
        audio=shown.audio,
        seconds_per_frame=shown.seconds_per_frame,
        windows=row["windows"],
    )


def load_window(
    corpus: str, clip_id: str, sound: Sound, settings: FeatureSettings, number: int = 0
) -> ShownWindow | None:
    """Reads one window of a clip, as picture and sound; None and a warning if it is gone.

    Args:
        corpus: its name.
        clip_id: of the clip.
        sound: as `open_sounds` gives it.
        settings: of the log-mel.
        number: of the window.
    """
    try:
        if isinstance(sound, Reject):
            raise sound
        window = read_window(sound, settings, number)
    except Reject as reject:
        logger.warning("%s: %s can't be shown in the report: %s", corpus, clip_id, reject)
        return None
    with torch.inference_mode():
        log_mel = LogMel(settings)(torch.from_numpy(window)).numpy()
    audio = encode(window, settings.sample_rate, "FLAC")
    return ShownWindow(log_mel, audio, settings.hop_length / settings.sample_rate)
