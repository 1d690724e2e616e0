from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from raysound.audio.decode import read_clip
from raysound.audio.log_mel import LogMel
from raysound.errors import UserError
from raysound.evaluation.predict import Classifier, predict_command
from raysound.models import build
from raysound.settings.features import FeatureSettings
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata
from raysound.training.inference import Normalisation, score

SETTINGS = FeatureSettings(
    clip_length=0.5, sample_rate=8000, hop_length=80, n_fft=256, n_mels=16, f_max=4000
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A classifier with random weights."""
    torch.manual_seed(0)
    folder = tmp_path / "run"
    record = ClassifierMetadata(
        "cnn", ["bell", "siren"], SETTINGS, Normalisation((-5.0,) * 16, (2.0,) * 16), {}, {}, {}, {}
    )
    checkpoint.save(str(folder), build("cnn", 2).state_dict(), record)
    return folder


def wav(path: Path, seconds: float) -> Path:
    rng = np.random.default_rng(len(path.name))
    soundfile.write(path, 0.3 * rng.standard_normal(int(8000 * seconds)), 8000)
    return path


def test_each_file_has_a_line_with_the_class_of_the_mean_over_its_windows(
    run: Path, tmp_path: Path
) -> None:
    short, long = wav(tmp_path / "short.wav", 0.4), wav(tmp_path / "long.wav", 1.6)

    lines = predict_command(str(run), str(short), str(long)).splitlines()

    model = checkpoint.load_model(str(run), checkpoint.load_metadata(str(run)))
    for path, line in zip((short, long), lines, strict=True):
        windows = read_clip(str(path), SETTINGS).windows
        log_mel = LogMel(SETTINGS)(torch.from_numpy(windows)).numpy()
        mean = score(model, Normalisation((-5.0,) * 16, (2.0,) * 16), log_mel, 16)[0].mean(axis=0)
        label = ("bell", "siren")[int(mean.argmax())]
        assert line == f"{label}\t{mean.max():.1%}\t{path}"


def test_rejected_files_are_reported_after_the_predictions(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = wav(tmp_path / "good.wav", 0.5), tmp_path / "bad.wav"
    bad.write_text("no sound")

    with pytest.raises(UserError, match=r"bad\.wav: "):
        predict_command(str(run), str(bad), str(good))

    assert capsys.readouterr().out.endswith(f"%\t{good}\n")


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="contains no checkpoint"):
        predict_command(str(tmp_path), "a.wav")


def test_the_api_returns_probabilities_and_reasons(run: Path, tmp_path: Path) -> None:
    good, bad = wav(tmp_path / "good.wav", 0.5), tmp_path / "bad.wav"
    bad.write_text("no sound")
    classifier = Classifier.load(run)

    rejected, predicted = classifier.predict([bad, str(good)])

    assert classifier.labels == ["bell", "siren"]
    assert (rejected.path, rejected.label, rejected.probability) == (str(bad), None, None)
    assert rejected.probabilities == ()
    assert str(rejected.reason).startswith("not a sound file")
    assert (predicted.path, predicted.reason) == (str(good), None)
    assert sum(predicted.probabilities) == pytest.approx(1)
    assert predicted.probability == max(predicted.probabilities)
    assert predicted.label == classifier.labels[predicted.probabilities.index(max(predicted[3]))]
