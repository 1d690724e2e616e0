"""The reference file, which replaces the real clips."""

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from raysound.errors import UserError
from raysound.evaluation.reference_file import (
    HEADER_KEY,
    RealEmbedding,
    RealSide,
    check_reference,
    read_reference,
    write_reference,
)
from raysound.metrics.corpus import Scored
from raysound.metrics.frechet import moments_distance
from raysound.metrics.mismatch import CorpusSound, SoundSums
from raysound.metrics.moments import moments

LABELS = ["<b>dog</b>", "chat"]
IDENTITY = {"labels": LABELS, "feature_id": "0123abcd", "weights_sha256": "w", "normalisation": "n"}


def real_side() -> RealSide:
    """Twenty training clips of two classes."""
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet([1, 1], 20).astype(np.float32)
    sums = SoundSums({8000: 30, 44100: 2}, rng.normal(size=(2, 5)))
    measure = {"value": 0.1 + 0.2, "low": None, "high": 1e-300}
    return RealSide(
        classifier={"labels": LABELS, "feature_id": "0123abcd"},
        reference={"split": "train", "clips": 99, "used": 20, "set_size": 12},
        clip_ids=[f"dog/{n} ä.wav" for n in range(20)],
        training=Scored(rng.integers(0, 2, 20), probabilities, embeddings(1, 20, 3)),
        class_sizes=[7, 5],
        row={"role": "real", "clips": 12, "mmd2_x100": measure},
        anchors={"noise": {"role": "anchor", "mmd2_x100": measure}},
        sound=CorpusSound(sums, rng.normal(size=32).astype(np.float32), rng.random(32)),
        embeddings={
            "mel.v2": RealEmbedding("d1", embeddings(2, 20, 4), {"mmd2_x100": measure}, {})
        },
        identity={"weights_sha256": "w", "normalisation": "n"},
    )


def embeddings(seed: int, clips: int, size: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(rng.normal(size=size), 1 + rng.random(size), (clips, size)).astype(np.float32)


@pytest.fixture
def written(tmp_path: Path) -> str:
    """The file of `real_side`."""
    uri = str(tmp_path / "new" / "reference.safetensors")
    write_reference(uri, real_side())
    return uri


def test_a_reference_file_round_trips_bitwise(written: str) -> None:
    ours, theirs = real_side(), read_reference(written)
    plain = ("classifier", "reference", "clip_ids", "class_sizes", "row", "anchors", "classifier")
    for name in (*plain, "digest", "set_size"):
        assert getattr(theirs, name) == getattr(ours, name), name
    assert theirs.sound.sums.rates == ours.sound.sums.rates
    one, other = theirs.embeddings["mel.v2"], ours.embeddings["mel.v2"]
    assert (one.digest, one.row, one.anchors) == (other.digest, other.row, other.anchors)
    pairs = [(one.training, other.training), (theirs.sound.sums.rows, ours.sound.sums.rows)]
    pairs += [(getattr(theirs.sound, x), getattr(ours.sound, x)) for x in ("level_db", "duration")]
    pairs += [(array, vars(ours.training)[name]) for name, array in vars(theirs.training).items()]
    for found, expected in pairs:
        assert found.dtype == expected.dtype
        assert found.shape == expected.shape
        assert found.tobytes() == expected.tobytes()


def test_the_digest_depends_on_names_and_embeddings(written: str) -> None:
    side = read_reference(written)
    other = replace(side, clip_ids=side.clip_ids[::-1])
    moved = replace(side, training=replace(side.training, embedding=side.training.embedding + 1))
    assert len({side.digest, other.digest, moved.digest}) == 3


def test_the_documented_code_computes_a_frechet_distance(
    written: str, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It uses only moments from the file, and agrees with raysound to 1e-9."""
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs/reference.md").read_text(), re.S)
    monkeypatch.chdir(Path(written).parent)
    names = {"own": embeddings(3, 50, 3).astype(np.float64)}
    exec(code, names)
    expected = moments_distance(moments(names["own"]), moments(real_side().training.embedding))
    assert names["distance"] == pytest.approx(expected, rel=1e-9)
    of_model = safetensors.numpy.load_file("reference.safetensors")["embeddings/mel.v2/covariance"]
    expected_covariance = np.cov(real_side().embeddings["mel.v2"].training.T.astype(np.float64))
    np.testing.assert_allclose(of_model, expected_covariance, rtol=1e-12)


def test_a_missing_truncated_or_wrong_file_is_a_user_error(written: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"evaluation\.reference: .*none\.safetensors can't be rea"):
        read_reference(str(tmp_path / "none.safetensors"))
    with pytest.raises(UserError, match="can't be read"):
        read_reference(str(tmp_path))
    whole = Path(written).read_bytes()
    other = safetensors.numpy.save({"embedding": np.zeros((2, 2))}, {"format": "pt"})
    plain = safetensors.numpy.save({"embedding": np.zeros((2, 2))})
    cut = [whole[:length] for length in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1)]
    for data in (*cut, b"name: demo\n" * 50, other, plain, whole + b"x"):
        Path(written).write_bytes(data)
        with pytest.raises(UserError, match="is truncated, or is not a file that jobs/reference"):
            read_reference(written)


def changed(uri: str, change: Callable[[dict, dict], object]) -> None:
    """Changes header and arrays of a file."""
    data = Path(uri).read_bytes()
    length = int.from_bytes(data[:8], "little")
    content = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][HEADER_KEY])
    arrays = safetensors.numpy.load(data)
    change(content, arrays)
    Path(uri).write_bytes(safetensors.numpy.save(arrays, {HEADER_KEY: json.dumps(content)}))


@pytest.mark.parametrize(
    "change",
    [
        lambda content, arrays: arrays.pop("embedding"),
        lambda content, arrays: arrays.pop("embeddings/mel.v2/embedding"),
        lambda content, arrays: content.pop("anchors"),
        lambda content, arrays: content["clip_ids"].pop(),
        lambda content, arrays: content["classifier"]["labels"].pop(),
        lambda content, arrays: content.update(sample_rates=3),
        lambda content, arrays: arrays.update(truth=arrays["truth"][1:]),
    ],
)
def test_a_file_with_missing_content_is_a_user_error(
    written: str, change: Callable[[dict, dict], object]
) -> None:
    changed(written, change)
    with pytest.raises(UserError, match="is truncated, or is not a file that jobs/reference"):
        read_reference(written)


@pytest.mark.parametrize("key", ["version", "metrics_schema"])
def test_a_file_of_another_version_is_a_user_error(written: str, key: str) -> None:
    changed(written, lambda content, arrays: content.update({key: 99}))
    with pytest.raises(
        UserError, match=r"has version .*99.*write it again with jobs/reference\.py"
    ):
        read_reference(written)


def test_another_classifier_or_embedding_is_named() -> None:
    side = real_side()
    check_reference(side, "x", IDENTITY, "run", {"mel.v2": "d1"})
    for key in IDENTITY:
        with pytest.raises(UserError, match=f"x has another classifier .* run: {key} differs"):
            check_reference(side, "x", IDENTITY | {key: "other"}, "run", {})
    two = IDENTITY | {"labels": ["dog"], "weights_sha256": "other"}
    with pytest.raises(UserError, match="labels, weights_sha256 differ"):
        check_reference(side, "x", two, "run", {})
    with pytest.raises(UserError, match=r"embeddings\.panns: .*x has no .*; it has mel\.v2"):
        check_reference(side, "x", IDENTITY, "run", {"mel.v2": "d1", "panns": "d1"})
    with pytest.raises(UserError, match=r"mel\.v2: .* x has another embedding .*: model"):
        check_reference(side, "x", IDENTITY, "run", {"mel.v2": "d2"})
    none = replace(side, embeddings={})
    with pytest.raises(UserError, match="of this name; it has none"):
        check_reference(none, "x", IDENTITY, "run", {"mel.v2": "d1"})
