"""Distances in other embeddings than the classifier's: an ONNX model's, and log-mel statistics."""

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from jsonschema import Draft202012Validator

from raysound import storage
from raysound.audio.decode import read_clip
from raysound.distributed.evaluation.console import metrics_table
from raysound.distributed.evaluation.embeddings import check_embeddings, embed_corpora
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.pipeline import run_all
from raysound.errors import UserError
from raysound.evaluation.comparison import compare, skipped_lines
from raysound.evaluation.embedding_parts import window_settings
from raysound.evaluation.log_mel_statistics import log_mel_statistics
from raysound.evaluation.predictions import as_array, read_predictions
from raysound.features import parquet
from raysound.metrics.declarations import EMBEDDING_METRICS
from raysound.metrics.fidelity import fidelity_report
from raysound.metrics.selection import keys
from raysound.report.events import write_events
from raysound.settings.evaluation import OnnxEmbedding
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config
from tests.onnx_models import embedded, write_model

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)

# Of the model: another rate than the features', and three windows a clip.
RATE, LENGTH = 4000, 0.2
CORPORA = ("real", "good", "bad")


@pytest.fixture(scope="module")
def tree(trained: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The tones, with two embeddings, in an output that has their features."""
    folder = tmp_path_factory.mktemp("embeddings")
    shutil.copytree(Path(trained["config"].output) / "features", folder / "out" / "features")
    model = write_model(folder / "conv.onnx")
    return {
        **copy.deepcopy(trained["tree"]),
        "output": str(folder / "out"),
        "evaluation": {
            "checkpoint": trained["run"],
            "embeddings": {
                "conv": {"path": str(model), "sample_rate": RATE, "clip_length": LENGTH},
                "mel": "log_mel_statistics",
            },
        },
    }


@pytest.fixture(scope="module")
def evaluated(tree: dict[str, Any]) -> dict[str, Any]:
    """Their evaluation."""
    config = from_tree(tree, "test")
    evaluate(config)
    output = Path(config.output) / "evaluation"
    metrics = json.loads((output / "metrics.json").read_text())
    return {"config": config, "output": output, "metrics": metrics}


def read(evaluated: dict[str, Any], name: str, corpus: str) -> pa.Table:
    """All parts of an embedding."""
    return pa.concat_tables(
        read_predictions(str(evaluated["output"] / "embeddings" / name), corpus)
    )


def paths_of(config: Config, corpus: str) -> dict[str, Path]:
    """The sound of each clip."""
    root = config.corpora.real.path if corpus == "real" else config.corpora.generated[corpus]
    return {path.relative_to(root).as_posix(): path for path in Path(root).rglob("*.wav")}


def by_numpy(evaluated: dict[str, Any], corpus: str) -> tuple[pa.Table, np.ndarray]:
    """The clips that the classifier scored, and what numpy makes of their windows."""
    settings = window_settings(
        OnnxEmbedding(path="x", sample_rate=RATE, clip_length=LENGTH), "split"
    )
    clips = pa.concat_tables(
        read_predictions(str(evaluated["output"] / "predictions"), corpus, ["clip_id", "split"])
    )
    paths = paths_of(evaluated["config"], corpus)
    windows = [
        read_clip(str(paths[name]), settings).windows for name in clips["clip_id"].to_pylist()
    ]
    assert {len(one) for one in windows} == {3}
    return clips, np.stack([embedded(one).mean(axis=0) for one in windows])


def test_onnx_embeddings_equal_numpy_to_1e_6(evaluated: dict[str, Any]) -> None:
    """The rows match those of the predictions."""
    for corpus in CORPORA:
        clips, expected = by_numpy(evaluated, corpus)
        found = read(evaluated, "conv", corpus)
        assert found.select(["clip_id", "split"]).equals(clips)
        np.testing.assert_allclose(as_array(found["embedding"]), expected, rtol=1e-6, atol=1e-6)


def test_distances_equal_those_of_numpy_embeddings_to_1e_6(evaluated: dict[str, Any]) -> None:
    clips, embedding = by_numpy(evaluated, "real")
    is_train = pc.equal(clips["split"], "train").to_numpy()
    order = np.argsort(keys(clips["clip_id"].to_pylist()))
    train, test = embedding[order][is_train[order]], embedding[order][~is_train[order]]
    metrics = evaluated["metrics"]
    set_size = metrics["reference"]["set_size"]
    rows = metrics["embeddings"]["conv"]["corpora"]
    assert list(rows) == [*CORPORA]
    for corpus in CORPORA:
        own = test
        if corpus != "real":
            clips, embedding = by_numpy(evaluated, corpus)
            own = embedding[np.argsort(keys(clips["clip_id"].to_pylist()))]
        expected = fidelity_report(own, train, seed=0, set_size=set_size)
        row = rows[corpus]
        assert (row["clips"], row["compared"]) == (len(own), min(len(own), set_size))
        for metric in EMBEDDING_METRICS:
            value = expected[metric.key]["value"]
            assert row[metric.key]["value"] == (
                value if value is None else pytest.approx(value, rel=1e-6, abs=1e-6)
            ), metric.key
        if len(own) <= set_size:
            assert row["frechet_distance"]["value"] == pytest.approx(frechet(own, train), rel=1e-6)
    assert rows["bad"]["mmd2_x100"]["low"] > rows["good"]["mmd2_x100"]["high"]


def frechet(x: np.ndarray, y: np.ndarray) -> float:
    """The squared Fréchet distance of two Gaussians, by its definition."""
    a, b = np.cov(x.T), np.cov(y.T)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(a @ b).real, 0)).sum()
    gap = x.mean(axis=0) - y.mean(axis=0)
    return float(gap @ gap + np.trace(a) + np.trace(b) - 2 * roots)


def test_log_mel_statistics_equal_those_of_the_feature_shards(evaluated: dict[str, Any]) -> None:
    folder = finished_features("good", evaluated["config"])
    tables = [storage.read_table(uri) for uri in parquet.shard_uris(folder)]
    rows = pa.concat_tables(tables)
    found = read(evaluated, "mel", "good")
    assert found["clip_id"].to_pylist() == rows["clip_id"].to_pylist()
    expected = log_mel_statistics(parquet.tensor_array(rows["log_mel"]))
    assert (as_array(found["embedding"]) == expected).all()
    assert evaluated["metrics"]["embeddings"]["mel"]["size"] == expected.shape[1] == 240


def test_anchors_have_the_expected_order(evaluated: dict[str, Any]) -> None:
    for name in ("conv", "mel"):
        embedding = evaluated["metrics"]["embeddings"][name]
        anchors = embedding["anchors"]
        assert {*anchors} == {"training_copy", "real_halves", "noise", "silence"}
        assert anchors["training_copy"]["authenticity"]["value"] == 0
        real = embedding["corpora"]["real"]
        for kind in ("noise", "silence"):
            assert anchors[kind]["mmd2_x100"]["value"] > real["mmd2_x100"]["value"]
            assert anchors[kind]["coverage"]["value"] < real["coverage"]["value"]


def test_embeddings_are_in_metrics_json_page_and_console(
    evaluated: dict[str, Any], root: Path
) -> None:
    metrics = evaluated["metrics"]
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    Draft202012Validator(schema).validate(metrics)
    assert metrics["embeddings"]["conv"]["source"] == "conv.onnx, 4000 Hz, 0.2 s"
    page = (evaluated["output"] / "report.html").read_text()
    assert "Distances in other embeddings" in page
    assert page.count("data-embedding=") == 2
    lines = [line.split() for line in metrics_table(metrics)]
    for name in ("conv", "mel"):
        assert [line[1] for line in lines if line[0] == name][:3] == [*CORPORA]


def test_embeddings_are_in_events(evaluated: dict[str, Any], tmp_path: Path) -> None:
    write_events(evaluated["metrics"], str(tmp_path / "events"))
    (file,) = (tmp_path / "events").iterdir()
    for tag in (b"conv.mmd2_x100/good", b"mel.coverage/real", b"mel.mmd2_x100/noise"):
        assert tag in file.read_bytes()


def test_a_rerun_computes_only_what_changed(
    evaluated: dict[str, Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    folder = evaluated["output"] / "embeddings"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}
    assert len(before) == 2 * sum(
        len(parquet.shard_uris(finished_features(name, evaluated["config"]))) for name in CORPORA
    )
    evaluate(evaluated["config"])
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")} == before
    again = json.loads((evaluated["output"] / "metrics.json").read_text())
    assert again == evaluated["metrics"]

    gone = next((folder / "conv" / "good").iterdir())
    gone.unlink()
    config = evaluated["config"]
    source = check_embeddings(config)[0]
    folders = {name: finished_features(name, config) for name in CORPORA}
    predictions = str(evaluated["output"] / "predictions")
    made = embed_corpora(source, folders, predictions, str(folder / "conv"))
    assert (made["derive"], made["done"]) == (1, len(before) // 2 - 1)

    other = write_model(tmp_path / "other.onnx", size=7)
    changed = copy.deepcopy(tree)
    changed["evaluation"]["embeddings"]["conv"]["path"] = str(other)
    assert check_embeddings(from_tree(changed, "test"))[0].digest != source.digest


def test_embeddings_do_not_depend_on_parts_per_task(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    config = evaluated["config"]
    folders = {name: finished_features(name, config) for name in CORPORA}
    predictions = str(evaluated["output"] / "predictions")
    for source in check_embeddings(config):
        for together in (1, 8):
            to = tmp_path / f"{source.name}-{together}"
            embed_corpora(source, folders, predictions, str(to), together)
            for corpus in CORPORA:
                parts = pa.concat_tables(read_predictions(str(to), corpus))
                assert parts.equals(read(evaluated, source.name, corpus))


def test_only_embeddings_of_equal_digests_are_compared(evaluated: dict[str, Any]) -> None:
    old = evaluated["metrics"]
    rows = [row for row in compare(old, old) if row["metric"].startswith(("conv.", "mel."))]
    assert {row["metric"] for row in rows} >= {"conv.mmd2_x100", "mel.mmd2_x100", "conv.coverage"}
    assert list(skipped_lines(old, old)) == []

    new = copy.deepcopy(old)
    new["embeddings"]["conv"]["digest"] = "other"
    del new["embeddings"]["mel"]
    assert not [row for row in compare(old, new) if "." in row["metric"]]
    assert list(skipped_lines(old, new)) == [
        "not compared: the embedding conv, because model, sample rate, clip length, long_clips or "
        "features differ",
        "not compared: the embedding mel, which only the first has",
    ]


def test_a_missing_sound_file_is_a_user_error(evaluated: dict[str, Any], tmp_path: Path) -> None:
    """The classifier needs only the log-mels, but the model needs the wav file."""
    config = evaluated["config"]
    source = check_embeddings(config)[0]
    folders = {"good": finished_features("good", config)}
    path = sorted(paths_of(config, "good").values())[0]
    away = path.rename(tmp_path / path.name)
    try:
        with pytest.raises(UserError, match=r"conv: .*can't be read any more .* no such file"):
            embed_corpora(
                source, folders, str(evaluated["output"] / "predictions"), str(tmp_path / "to")
            )
    finally:
        away.rename(path)


def test_an_unusable_model_is_a_user_error_before_scoring(
    tree: dict[str, Any], tmp_path: Path
) -> None:
    """tests/unit/test_onnx_model.py tests each kind of error."""
    config = with_model(tree, tmp_path / "wrong.onnx", tmp_path / "out")
    with pytest.raises(UserError, match=r"conv\.path: there is no file /.*wrong\.onnx"):
        evaluate(config)
    write_model(tmp_path / "wrong.onnx", shape=("batch", 900))
    with pytest.raises(UserError, match="takes 900 samples, but sample_rate × clip_length are 800"):
        evaluate(config)
    with pytest.raises(UserError, match="takes 900 samples"):
        run_all(config)
    assert not (tmp_path / "out").exists()


def with_model(tree: dict[str, Any], model: Path, output: Path) -> Config:
    """The config of the tones with another model."""
    changed = copy.deepcopy(tree)
    changed["output"] = str(output)
    changed["evaluation"]["embeddings"]["conv"]["path"] = str(model)
    return from_tree(changed, "test")


def test_a_model_is_read_from_an_object_store(
    evaluated: dict[str, Any], tree: dict[str, Any], object_store: str
) -> None:
    config = evaluated["config"]
    model = Path(config.evaluation.embeddings["conv"].path)
    uri = f"{object_store}/models/conv.onnx"
    storage.write_bytes(uri, model.read_bytes())
    changed = copy.deepcopy(tree)
    changed["evaluation"]["embeddings"]["conv"]["path"] = uri
    there, here = (check_embeddings(one)[0] for one in (from_tree(changed, "test"), config))
    assert there.path == uri
    assert there.digest == here.digest
