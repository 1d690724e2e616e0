import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysound.corpora.formats import samples
from raysound.evaluation import examples
from raysound.settings.features import FeatureSettings

SETTINGS = FeatureSettings(
    clip_length=0.5, sample_rate=8000, hop_length=80, n_fft=256, n_mels=20, f_max=4000
)


def predictions(*rows: tuple[str, float]) -> pa.Table:
    labels, asked = zip(*rows, strict=True)
    return pa.table({"label": labels, "target_probability": pa.array(asked)})


ROW = {
    "clip_id": "x/a.wav", "label": "x", "prediction": "y", "probability": 0.75,
    "target_probability": 0.25, "nearest_train_clip_id": "x/b.wav", "windows": 1,
}  # fmt: skip


def test_every_class_has_its_hardest_clip_then_its_most_convincing_one() -> None:
    table = predictions(("a", 0.9), ("a", 0.1), ("b", 0.3), ("a", 0.5), ("b", 0.6))

    assert examples.choose(table, 1) == [
        (1, "hardest"), (2, "hardest"), (0, "convincing"), (4, "convincing"),
    ]  # fmt: skip
    assert examples.choose(table, 2)[4:] == [(3, "hardest")]


def test_a_single_clip_of_a_class_is_chosen_once() -> None:
    assert examples.choose(predictions(("a", 0.9)), 3) == [(0, "hardest")]
    assert examples.choose(predictions(("a", 0.9)), 0) == []


def test_an_example_has_a_spectrogram_and_a_sound(tmp_path: Path) -> None:
    wav = tmp_path / "a.wav"
    soundfile.write(wav, 0.5 * np.sin(np.arange(4000) * 2 * np.pi * 1000 / 8000), 8000)

    example = examples.load_example("mine", ROW, "hardest", str(wav), SETTINGS)

    assert example is not None
    assert example.log_mel.shape == (20, 51)
    assert (example.corpus, example.prediction, example.probability) == ("mine", "y", 0.75)
    assert (example.kind, example.nearest_train_clip_id) == ("hardest", "x/b.wav")
    assert example.seconds_per_frame == 0.01
    (tmp_path / "a.flac").write_bytes(example.audio)
    sound, rate = soundfile.read(tmp_path / "a.flac")
    assert (rate, len(sound)) == (8000, 4000)
    assert np.abs(sound).max() == pytest.approx(0.5, abs=1e-3)


def test_only_the_first_window_of_a_long_clip_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest of the clip is not read: here it is not finite."""
    monkeypatch.setattr(samples, "BLOCK", 1000)
    wav = tmp_path / "a.wav"
    ramp = np.linspace(0, 1, 12_000)
    soundfile.write(wav, np.where(ramp < 0.9, ramp, np.nan), 8000, subtype="FLOAT")

    example = examples.load_example("mine", ROW | {"windows": 3}, "hardest", str(wav), SETTINGS)

    assert example is not None
    assert example.windows == 3
    sound, _ = soundfile.read(io.BytesIO(example.audio))
    assert np.abs(sound - ramp[:4000]).max() < 1e-4


def test_any_window_of_a_clip_is_shown(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    wav = tmp_path / "a.wav"
    ramp = np.linspace(0, 1, 12_000)
    soundfile.write(wav, ramp, 8000, subtype="FLOAT")

    shown = examples.load_window("mine", "a.wav", str(wav), SETTINGS, 2)

    assert shown is not None
    assert shown.log_mel.shape == (20, 51)
    sound, _ = soundfile.read(io.BytesIO(shown.audio))
    assert np.abs(sound - ramp[8000:]).max() < 1e-4
    assert examples.load_window("mine", "a.wav", str(wav), SETTINGS, 3) is None
    assert "mine: a.wav can't be shown in the report: the sound ends before window 4" in caplog.text


def test_a_missing_clip_is_dropped_with_a_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    row = ROW | {"clip_id": "gone.wav"}

    assert (
        examples.load_example("mine", row, "hardest", str(tmp_path / "gone.wav"), SETTINGS) is None
    )
    assert "gone.wav can't be shown in the report: no such file" in caplog.text
