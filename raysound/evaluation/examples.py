"""Chooses clips to show in the report, and loads their spectrogram and sound."""

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
    """Chooses the hardest and the most convincing clips of each class.

    The order is: the hardest clip of each class, the most convincing one of each class, then the
    next hardest and so on. So a prefix of the list is a good choice, too. No row is repeated.

    Args:
        predictions: columns `label` and `target_probability` (of the label).
        count: number of clips of each kind and class.
    """
    labels = predictions["label"].to_pylist()
    ascending = np.argsort(predictions["target_probability"].to_numpy(), kind="stable")
    kinds: tuple[tuple[Kind, np.ndarray], ...] = (
        ("hardest", ascending),
        ("convincing", ascending[::-1]),
    )
    candidates: list[tuple[int, int, int, int, Kind]] = []
    for number, (kind, order) in enumerate(kinds):
        ranks: dict[str, int] = {}
        for position, row in enumerate(order.tolist()):
            rank = ranks[labels[row]] = ranks.get(labels[row], 0) + 1
            if rank <= count:
                candidates.append((rank, number, position, row, kind))
    chosen: dict[int, Kind] = {}
    for _, _, _, row, kind in sorted(candidates):
        chosen.setdefault(row, kind)
    return list(chosen.items())


def load_example(
    corpus: str, row: Mapping[str, Any], kind: Kind, sound: Sound, settings: FeatureSettings
) -> Example | None:
    """Loads the first window of a clip; logs a warning and returns None if it can't be read.

    Args:
        corpus: its name.
        row: of the predictions.
        kind: of the example.
        sound: from `open_sounds`.
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
    """Loads one window of a clip; logs a warning and returns None if it can't be read.

    Args:
        corpus: its name.
        clip_id: of the clip.
        sound: from `open_sounds`.
        settings: of the log-mel.
        number: index of the window.
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
