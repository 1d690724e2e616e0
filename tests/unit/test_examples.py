from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysound import examples
from raysound.settings import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=0.5, sample_rate=8000, hop_length=80, n_fft=256, n_mels=20, f_max=4000
)


def predictions(*rows: tuple[str, str, float]) -> pa.Table:
    labels, heard, sure = zip(*rows, strict=True)
    return pa.table({"label": labels, "prediction": heard, "probability": pa.array(sure)})


def test_half_are_the_surest_mistakes_and_every_class_has_its_turn() -> None:
    table = predictions(
        ("a", "a", 0.9), ("a", "a", 0.8), ("b", "b", 0.7), ("a", "b", 0.6), ("a", "c", 0.5),
        ("b", "a", 0.4),
    )  # fmt: skip

    assert examples.choose(table, 4) == [3, 5, 0, 2]


@pytest.mark.parametrize(
    ("rows", "count", "expected"),
    [
        ([("a", "a", 0.9), ("b", "b", 0.8), ("b", "a", 0.7)], 3, [2, 0, 1]),
        ([("a", "a", 0.9), ("b", "b", 0.8)], 6, [0, 1]),
        ([("a", "b", 0.9), ("b", "a", 0.8), ("a", "c", 0.7)], 2, [0, 1]),
        ([("a", "a", 0.9)], 0, []),
    ],
)
def test_places_that_one_sort_leaves_go_to_the_other(
    rows: list[tuple[str, str, float]], count: int, expected: list[int]
) -> None:
    assert examples.choose(predictions(*rows), count) == expected


def test_an_example_carries_what_is_seen_and_heard(tmp_path: Path) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, 0.5 * np.sin(np.arange(4000) * 2 * np.pi * 1000 / 8000), 8000)
    row = {"clip_id": "x/a.wav", "label": "x", "prediction": "y", "probability": 0.75}

    example = examples.load("mine", row, str(wav), SETTINGS)

    assert example is not None
    assert example.log_mel.shape == (20, 51)
    assert (example.corpus, example.prediction, example.probability) == ("mine", "y", 0.75)
    assert example.seconds_per_frame == 0.01
    (tmp_path / "a.flac").write_bytes(example.audio)
    sound, rate = soundfile.read(tmp_path / "a.flac")
    assert (rate, len(sound)) == (8000, 4000)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=1e-3)


def test_a_clip_that_is_gone_is_told_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = {"clip_id": "gone.wav", "label": "x", "prediction": "y", "probability": 0.75}

    assert examples.load("mine", row, str(tmp_path / "gone.wav"), SETTINGS) is None
    assert "gone.wav can't be shown in the report: no such file" in caplog.text
