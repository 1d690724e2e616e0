import json
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from raysound.errors import UserError
from raysound.models import build
from raysound.settings.features import FeatureSettings
from raysound.training import checkpoint
from raysound.training.checkpoint import ClassifierMetadata, Weights
from raysound.training.inference import Normalisation, mean_by_clip, score
from raysound.training.loop import TrainState

NOTE = ClassifierMetadata(
    model="cnn",
    labels=["bell", "狗"],
    features=FeatureSettings(clip_length=1.0, n_mels=8),
    normalisation=Normalisation(tuple(range(8)), (2.0,) * 8),
    training={"epochs": 3, "seed": 7},
    metrics={"epoch": 2, "validation_accuracy": 0.75},
    data={"train": 10, "split_digest": "0123abcd"},
    versions={"torch": torch.__version__},
)


def test_a_loaded_classifier_equals_the_saved_one(tmp_path: Path) -> None:
    model = build("cnn", 2).eval()
    log_mel = np.random.default_rng(0).standard_normal((3, 8, 101)).astype(np.float32)

    checkpoint.save(str(tmp_path), model.state_dict(), NOTE)
    note = checkpoint.load_metadata(str(tmp_path))
    loaded = checkpoint.load_model(str(tmp_path), note)

    assert note == NOTE
    assert not loaded.training
    for mine, theirs in zip(
        score(model, NOTE.normalisation, log_mel, 2),
        score(loaded, note.normalisation, log_mel, 2),
        strict=True,
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_the_metadata_is_readable_json(tmp_path: Path) -> None:
    checkpoint.save(str(tmp_path), build("cnn", 2).state_dict(), NOTE)

    note = json.loads((tmp_path / "checkpoint.json").read_text())

    assert note["features"]["n_mels"] == 8
    assert note["feature_id"] == NOTE.features.id
    assert note["labels"] == ["bell", "狗"]


def test_a_folder_without_metadata_is_no_checkpoint(tmp_path: Path) -> None:
    """The metadata is written last: weights alone are from an interrupted run."""
    checkpoint.save(str(tmp_path), build("cnn", 2).state_dict(), NOTE)
    (tmp_path / "checkpoint.json").unlink()

    assert not checkpoint.is_complete(str(tmp_path))
    with pytest.raises(UserError, match=r"run jobs/train\.py first"):
        checkpoint.load_metadata(str(tmp_path))


def test_an_ensemble_is_one_classifier_with_the_mean_probabilities(tmp_path: Path) -> None:
    models, runs = [build("cnn", 2).eval() for _ in range(2)], []
    for index, model in enumerate(models):
        runs.append(str(tmp_path / str(index)))
        checkpoint.save(runs[-1], model.state_dict(), NOTE)
    log_mel = np.random.default_rng(0).standard_normal((3, 8, 101)).astype(np.float32)
    folder = str(tmp_path / "ensemble")

    checkpoint.save_ensemble(folder, runs)

    metadata = checkpoint.load_metadata(folder)
    found, _ = score(checkpoint.load_model(folder, metadata), NOTE.normalisation, log_mel, 2)
    expected = [score(model, NOTE.normalisation, log_mel, 2)[0] for model in models]
    np.testing.assert_allclose(found, np.mean(expected, axis=0), rtol=1e-5)
    assert metadata.members == 2
    assert metadata.metrics["validation_accuracy"] is None


def test_a_classifier_of_crops_averages_them(tmp_path: Path) -> None:
    """Crops of 0.5 s of one second, and the full log-mel for a classifier without them."""
    training = {**NOTE.training, "crop_length": 0.5, "test_crops": 3}
    metadata = NOTE.__class__(**{**NOTE.__dict__, "training": training})
    model = build("cnn6", 2).eval()
    metadata = metadata.__class__(**{**metadata.__dict__, "model": "cnn6"})
    log_mel = np.random.default_rng(0).standard_normal((3, 8, 101)).astype(np.float32)
    checkpoint.save(str(tmp_path), model.state_dict(), metadata)

    loaded = checkpoint.load_model(str(tmp_path), checkpoint.load_metadata(str(tmp_path)))

    frames = NOTE.features.frames_of(0.5)
    starts = [0, round((101 - frames) / 2), 101 - frames]
    crops = [
        score(model, NOTE.normalisation, log_mel[:, :, start : start + frames], 4)[0]
        for start in starts
    ]
    found, _ = score(loaded, NOTE.normalisation, log_mel, 4)
    np.testing.assert_allclose(found, np.mean(crops, axis=0), rtol=1e-4)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("optimizer", ["Adam", "AdamW", "SGD"])
def test_loaded_progress_is_bitwise_equal(
    tmp_path: Path, optimizer: str, layout: torch.memory_format
) -> None:
    """This holds for any memory layout, and before the first step of an optimiser."""
    model = build("cnn", 2).to(memory_format=layout)
    made = getattr(torch.optim, optimizer)(model.parameters(), lr=0.01)
    for step in range(2):
        progress = TrainState([{"epoch": step, "lr": 0.1}], made.state_dict(), {"best": 0.5}, 7)
        weights = Weights(model.state_dict(), {})
        checkpoint.save_progress(str(tmp_path), weights, progress)

        loaded = checkpoint.load_progress(str(tmp_path))

        assert loaded is not None
        for name, value in model.state_dict().items():
            assert torch.equal(loaded[0].model[name], value)
        assert loaded[0].averaged == {}
        assert loaded[1].history == progress.history
        assert (loaded[1].scheduler, loaded[1].steps) == ({"best": 0.5}, 7)
        other = getattr(torch.optim, optimizer)(model.parameters(), lr=0.5)
        other.load_state_dict(loaded[1].optimizer)
        assert other.param_groups[0]["lr"] == 0.01
        for parameter, state in made.state.items():
            for key, value in state.items():
                actual = other.state[parameter].get(key)
                assert value is actual is None or torch.equal(actual, value), key
        model(torch.randn(4, 1, 16, 20)).sum().backward()
        made.step()


def test_before_the_first_epoch_there_is_no_progress(tmp_path: Path) -> None:
    assert checkpoint.load_progress(str(tmp_path)) is None
    assert checkpoint.load_progress(str(tmp_path / "absent")) is None


# Resuming from progress

HISTORY = [
    {"epoch": 1, "lr": 0.1 + 0.2, "train_loss": 1e-310, "validation_loss": None, "seconds": 1 / 3},
    {"epoch": 2, "lr": 1e-3, "train_loss": 2.5, "validation_loss": 0.7, "seconds": 0.1},
]


def assert_same(actual: Any, expected: Any) -> None:
    """Asserts that values are bitwise equal and tensors have equal dtypes and shapes."""
    if isinstance(expected, dict):
        assert actual.keys() == expected.keys()
        for key in expected:
            assert_same(actual[key], expected[key])
    elif isinstance(expected, Tensor):
        assert actual.dtype == expected.dtype
        assert actual.shape == expected.shape
        assert actual.equal(expected)
    else:
        assert actual == expected
        assert type(actual) is type(expected)


def progress_of(steps: int, size: int = 10) -> tuple[Weights, TrainState]:
    """Progress whose weights have the number of the step as values."""
    weights = {"a": torch.full((size,), float(steps)), "b.c": torch.tensor(steps)}
    return Weights(weights, {}), TrainState(HISTORY, {"state": {}, "param_groups": []}, {}, steps)


def test_progress_of_an_epoch_replaces_that_of_the_previous_epoch(tmp_path: Path) -> None:
    for steps in (1, 2):
        checkpoint.save_progress(str(tmp_path), *progress_of(steps))

    weights, progress = checkpoint.load_progress(str(tmp_path)) or progress_of(0)

    assert progress == progress_of(2)[1]
    assert_same(dict(weights.model), dict(progress_of(2)[0].model))
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.PROGRESS]


def test_progress_is_not_a_complete_checkpoint(tmp_path: Path) -> None:
    checkpoint.save_progress(str(tmp_path), *progress_of(1))

    assert not checkpoint.is_complete(str(tmp_path))


def test_progress_is_written_atomically(tmp_path: Path) -> None:
    """A reader sees the old file or the new one at any time."""
    folder, size = str(tmp_path), 300_000
    checkpoint.save_progress(folder, *progress_of(0, size))

    def write() -> None:
        for steps in range(1, 30):
            checkpoint.save_progress(folder, *progress_of(steps, size))

    seen = []
    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(write)
        while not writing.done() or not seen:
            weights, progress = checkpoint.load_progress(folder) or (None, None)
            assert (weights.model["a"] == progress.steps).all()
            assert weights.model["b.c"] == progress.steps
            seen.append(progress.steps)
        writing.result()

    assert seen == sorted(seen)


def test_a_failed_write_keeps_the_previous_progress(tmp_path: Path) -> None:
    checkpoint.save_progress(str(tmp_path), *progress_of(1))
    weights, progress = progress_of(2)

    with pytest.raises(AttributeError, match="pickle"):
        checkpoint.save_progress(
            str(tmp_path), weights, TrainState([{"loss": lambda: 0}], progress.optimizer)
        )

    assert (checkpoint.load_progress(str(tmp_path)) or (None, None))[1] == progress_of(1)[1]
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.PROGRESS]


def test_weights_with_shared_memory_or_other_layouts_are_written(tmp_path: Path) -> None:
    """The averaged weights may be those of the model, and GPU training uses channels_last."""
    maps = torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last)
    part = torch.arange(12.0).view(3, 4).t()
    weights = {"maps": maps, "again": maps, "part": part}

    checkpoint.save_progress(str(tmp_path), Weights(weights, weights), progress_of(1)[1])

    loaded = checkpoint.load_progress(str(tmp_path))
    assert loaded is not None
    for actual in loaded[0]:
        assert_same(dict(actual), weights)


class Pickled:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.path,))


def test_loading_does_not_unpickle(tmp_path: Path) -> None:
    """A pickle can execute code, and files in a shared folder may be written by others."""
    sign = tmp_path / "unpickled"
    pickle.loads(pickle.dumps(Pickled(sign)))
    sign.unlink()
    progress = tmp_path / checkpoint.PROGRESS
    note = NOTE.__class__(**{**NOTE.__dict__, "labels": ["a", "b"]})
    checkpoint.save(str(tmp_path), build("cnn", 2).state_dict(), note)

    for dump in (lambda path: path.write_bytes(pickle.dumps(Pickled(sign))),
                 lambda path: torch.save({"model.a": Pickled(sign)}, path)):  # fmt: skip
        dump(progress)
        dump(tmp_path / "model.safetensors")
        with pytest.raises(pickle.UnpicklingError):
            checkpoint.load_progress(str(tmp_path))
        with pytest.raises(safetensors.SafetensorError):
            checkpoint.load_model(str(tmp_path), note)

    assert not sign.exists()


# Normalisation and scores


def test_normalised_bands_have_mean_0_and_standard_deviation_1() -> None:
    rng = np.random.default_rng(0)
    log_mel = rng.standard_normal((50, 3, 40)) * [[1], [5], [0.5]] + [[-20], [3], [0]]
    normalise = Normalisation(tuple(log_mel.mean((0, 2))), tuple(log_mel.std((0, 2))))

    actual = normalise(torch.from_numpy(log_mel))

    assert actual.shape == (50, 1, 3, 40)
    assert actual.dtype == torch.float32
    torch.testing.assert_close(actual.mean((0, 1, 3)), torch.zeros(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(actual.std((0, 1, 3)), torch.ones(3), atol=1e-3, rtol=0)


def test_a_band_that_is_silent_in_training_stays_bounded() -> None:
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


def test_windows_are_averaged_per_clip() -> None:
    values = np.array([[1, 0], [0, 1], [0.5, 0.5], [0.2, 0.8]], np.float32)

    actual = mean_by_clip(values, np.array([0, 2, 3]))

    np.testing.assert_allclose(actual, [[0.5, 0.5], [0.5, 0.5], [0.2, 0.8]])
