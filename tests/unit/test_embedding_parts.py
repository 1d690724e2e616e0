"""Parts of further embeddings: their digests, and the sample of clips."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from raysound.errors import UserError
from raysound.evaluation.derived_parts import PART_KEY, DerivedRecord, write_derived
from raysound.evaluation.embedding_parts import (
    EmbeddingSource,
    mean_of_windows,
    sample_of_parts,
    window_settings,
    with_embedding,
)
from raysound.evaluation.predictions import (
    as_array,
    part_uri,
    prediction_parts,
    read_metadata,
    read_prediction_rows,
)
from raysound.metrics.selection import keys
from raysound.settings.evaluation import OnnxEmbedding
from raysound.settings.features import FeatureSettings


def source(
    sha256: str = "a", long_clips: str = "split", path: str = "m.onnx", **changes
) -> EmbeddingSource:
    embedding = OnnxEmbedding(**{"path": path, "sample_rate": 8000, "clip_length": 1, **changes})
    return EmbeddingSource("conv", path, sha256, 2, window_settings(embedding, long_clips), False)


def test_the_digest_depends_on_model_and_windows() -> None:
    """It does not depend on name, path or device."""
    digests = {
        source().digest,
        source(sha256="b").digest,
        source(sample_rate=16000).digest,
        source(clip_length=2).digest,
        source(long_clips="center").digest,
        EmbeddingSource("mel", "", "", 640, FeatureSettings(), False).digest,
        EmbeddingSource("mel", "", "", 640, FeatureSettings(hop_length=220), False).digest,
    }
    assert len(digests) == 7
    same = source(path="/elsewhere/n.onnx")._replace(name="other", on_gpu=True)
    assert same.digest == source().digest


@pytest.mark.parametrize("length", [0.0004, 0.1, 60.0])
@pytest.mark.parametrize("rate", [8000, 96000])
def test_every_valid_clip_length_and_rate_has_window_settings(length: float, rate: int) -> None:
    embedding = OnnxEmbedding(path="m", sample_rate=rate, clip_length=length)
    settings = window_settings(embedding, "split")
    assert settings.clip_samples == embedding.clip_samples == round(length * rate)


def test_windows_are_averaged_in_float64() -> None:
    windows = iter([(np.array([0, 1]), np.array([[1, 2], [1e8, 0]], np.float32)),
                    (np.array([1, 1]), np.array([[1, 0], [-1e8, 3]], np.float32))])  # fmt: skip
    found = mean_of_windows(pa.array(["a", "b"]), windows, source())
    np.testing.assert_array_equal(found, np.array([[1, 2], [1 / 3, 1]], np.float32))


def test_an_infinite_embedding_is_a_user_error_with_the_clip() -> None:
    windows = iter([(np.array([0, 1, 1]), np.array([[1, 2], [3, np.nan], [4, 5]]))])
    with pytest.raises(UserError, match=r"conv: the embedding of b\.wav is not finite"):
        mean_of_windows(pa.array(["a.wav", "b.wav"]), windows, source())


def test_a_sample_holds_the_clips_with_the_smallest_hashes(tmp_path: Path) -> None:
    """The sample is of training clips or of all others, in the order of the hashes."""
    names = [f"{number}.wav" for number in range(60)]
    splits = ["train" if number % 3 else None if number % 2 else "test" for number in range(60)]
    embedding = np.arange(120, dtype=np.float32).reshape(60, 2)
    for part, rows in ((0, slice(0, 25)), (7, slice(25, 25)), (12, slice(25, 60))):
        clips = pa.table({
            "clip_id": pa.array(names[rows]), "split": pa.array(splits[rows], pa.string()),
            "label": pa.nulls(len(names[rows]), pa.string()),
        })  # fmt: skip
        uri = part_uri(str(tmp_path), "real", part)
        write_derived(uri, with_embedding(clips, embedding[rows]), "digest")
        assert read_metadata(uri, PART_KEY, DerivedRecord) == ("digest", len(clips))

    for is_train in (True, False):
        own = [place for place in range(60) if (splits[place] == "train") == is_train]
        order = sorted(own, key=lambda place: int(keys([names[place]])[0]))
        for most in (5, 100):
            entries, clips = sample_of_parts(
                prediction_parts(str(tmp_path), "real"), is_train, most
            )
            assert clips == len(own)
            columns = ["clip_id", "embedding"]
            found = read_prediction_rows(
                str(tmp_path), "real", entries["part"], entries["row"], columns
            )
            assert found["clip_id"].to_pylist() == [names[place] for place in order[:most]]
            np.testing.assert_array_equal(as_array(found["embedding"]), embedding[order[:most]])
