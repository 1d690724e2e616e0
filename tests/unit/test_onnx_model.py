"""ONNX models: embeddings, and models that are user errors."""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from raysound.errors import UserError
from raysound.evaluation.onnx_model import (
    MAX_SIZE,
    OnnxModel,
    import_onnxruntime,
    load_onnx_model,
    read_model,
)
from tests.onnx_models import embedded, write_model

SAMPLES = 800


def load(path: Path) -> OnnxModel:
    return OnnxModel("conv", path.read_bytes(), SAMPLES)


@pytest.mark.parametrize("output", ["frames", "mean"])
@pytest.mark.parametrize("batch", ["batch", 1])
def test_embeddings_equal_numpy_for_any_batch_size(
    tmp_path: Path, output: str, batch: int | str
) -> None:
    waveforms = np.random.default_rng(1).normal(0, 0.3, (70, SAMPLES)).astype(np.float32)
    model = load(write_model(tmp_path / "a.onnx", shape=(batch, SAMPLES), output=output))

    assert (model.size, model.batch_size) == (6, 1 if batch == 1 else 64)
    np.testing.assert_allclose(model.embed(waveforms), embedded(waveforms), rtol=1e-5, atol=1e-6)


WRONG = {
    "three dimensions": (
        {"shape": ("batch", 1, "samples")},
        r"input has the shape \(batch, 1, samples\): it must be \(batch, samples\)",
    ),
    "another length": ({"shape": ("batch", 900)}, "takes 900 samples, .* are 800"),
    "a fixed batch": ({"shape": (4, "samples")}, "takes batches of 4 waveforms only"),
    "no embedding": ({"output": "flat"}, r"the shape \(2\): it must be \(2, size\) or"),
    "not finite": ({"after": "Log"}, "output for white noise is not finite"),
    "too large": ({"size": MAX_SIZE + 1}, "have 4097 dimensions; the maximum is 4096"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_an_unusable_model_is_a_user_error(tmp_path: Path, kind: str) -> None:
    options, message = WRONG[kind]
    with pytest.raises(UserError, match=message) as raised:
        load(write_model(tmp_path / "wrong.onnx", **options))
    assert str(raised.value).startswith("evaluation.embeddings.conv: ")
    assert len(str(raised.value).splitlines()) == 1


def test_weights_in_another_file_are_a_user_error(tmp_path: Path) -> None:
    model = onnx.load(write_model(tmp_path / "a.onnx", size=64))
    onnx.save(model, tmp_path / "b.onnx", save_as_external_data=True, size_threshold=1024)
    with pytest.raises(UserError, match="export with external_data=False") as raised:
        load(tmp_path / "b.onnx")
    assert len(str(raised.value).splitlines()) == 1


def test_a_missing_changed_or_invalid_file_is_a_user_error(tmp_path: Path) -> None:
    path = tmp_path / "a.onnx"
    with pytest.raises(UserError, match=r"conv\.path: there is no file /.*a\.onnx"):
        read_model("conv", str(path))
    path.write_bytes(b"no model")
    with pytest.raises(UserError, match="onnxruntime can't load the model: ") as raised:
        load(path)
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(UserError, match="changed while it was used"):
        load_onnx_model("conv", str(path), "another", SAMPLES, False)


def test_without_onnxruntime_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UserError, match=r"conv needs onnxruntime: pip install 'raysound\[onnx\]'"):
        import_onnxruntime("conv")
