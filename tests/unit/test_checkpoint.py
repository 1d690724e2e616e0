import json
from pathlib import Path

import numpy as np
import pytest
import torch

from raysound import checkpoint
from raysound.checkpoint import Checkpoint
from raysound.config import UserError
from raysound.models import build
from raysound.scoring import Normalisation, mean_by_clip, score
from raysound.settings import FeatureSettings

NOTE = Checkpoint(
    model="cnn",
    labels=["bell", "狗"],
    features=FeatureSettings(clip_length=1.0, n_mels=8),
    normalisation=Normalisation(tuple(range(8)), (2.0,) * 8),
    training={"epochs": 3, "seed": 7},
    metrics={"epoch": 2, "validation_accuracy": 0.75},
    data={"train": 10, "split_digest": "0123abcd"},
    versions={"torch": torch.__version__},
)


def test_a_judge_comes_back_as_it_was_saved(tmp_path: Path) -> None:
    model = build("cnn", 2).eval()
    log_mel = np.random.default_rng(0).standard_normal((3, 8, 101)).astype(np.float32)

    checkpoint.save(str(tmp_path), model, NOTE)
    note = checkpoint.read_note(str(tmp_path))
    loaded = checkpoint.load_model(str(tmp_path), note)

    assert note == NOTE
    assert not loaded.training
    for mine, theirs in zip(
        score(model, NOTE.normalisation, log_mel, 2),
        score(loaded, note.normalisation, log_mel, 2),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_a_person_can_read_the_note(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), build("cnn", 2), NOTE)

    note = json.loads((tmp_path / "checkpoint.json").read_text())

    assert note["features"]["n_mels"] == 8
    assert note["feature_id"] == NOTE.features.id
    assert note["labels"] == ["bell", "狗"]


def test_a_folder_without_its_note_is_no_checkpoint(tmp_path: Path) -> None:
    """The note is written last: weights alone are a run that was cut off."""
    checkpoint.save(str(tmp_path), build("cnn", 2), NOTE)
    (tmp_path / "checkpoint.json").unlink()

    assert not checkpoint.is_complete(str(tmp_path))
    with pytest.raises(UserError, match=r"run jobs/train\.py first"):
        checkpoint.read_note(str(tmp_path))


def test_normalisation_brings_every_band_to_mean_0_and_spread_1() -> None:
    rng = np.random.default_rng(0)
    log_mel = rng.standard_normal((50, 3, 40)) * [[1], [5], [0.5]] + [[-20], [3], [0]]
    normalise = Normalisation(tuple(log_mel.mean((0, 2))), tuple(log_mel.std((0, 2))))

    actual = normalise(torch.from_numpy(log_mel))

    assert actual.shape == (50, 1, 3, 40)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.mean((0, 1, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.std((0, 1, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_band_that_was_silent_in_training_does_not_blow_up() -> None:
    normalise = Normalisation((-23.0,), (0.0,))

    actual = normalise(torch.full((1, 1, 5), -3.0))

    assert actual.max() == pytest.approx(200.0)


def test_scores_are_probabilities_and_do_not_depend_on_the_batch_size() -> None:
    model = build("cnn", 4).eval()
    log_mel = np.random.default_rng(1).standard_normal((7, 16, 20)).astype(np.float16)
    plain = Normalisation((0.0,) * 16, (1.0,) * 16)

    probabilities, embeddings = score(model, plain, log_mel, 7)

    assert probabilities.shape == (7, 4)
    assert embeddings.shape == (7, 128)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(score(model, plain, log_mel, 3)[0], probabilities, rtol=1e-4)


def test_windows_are_averaged_clip_by_clip() -> None:
    values = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]], np.float32)

    actual = mean_by_clip(values, np.array([0, 2, 3]))

    np.testing.assert_allclose(actual, [[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
