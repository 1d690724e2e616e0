"""The classifier at work on the tones: numbers, anchors, report, classification accuracy scores."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from jsonschema import Draft202012Validator
from tensorboardX.proto.event_pb2 import Event

from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract, extract_corpus
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.cas import cas
from raysound.distributed.training.runs import split_clips
from raysound.errors import UserError
from raysound.evaluation.part_scoring import (
    Identity,
    References,
    add_nearest_neighbours,
    classifier_digest,
    classify,
    read_references,
    read_shard,
    write_predictions,
)
from raysound.evaluation.predictions import (
    COMPARED,
    PREDICTIONS,
    as_array,
    part_index,
    part_uri,
    read_predictions,
)
from raysound.features import parquet
from raysound.settings.loading import from_tree
from raysound.storage import read_table
from raysound.training import checkpoint

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def metrics(trained: dict[str, Any]) -> dict[str, Any]:
    """What metrics.json says of the tones."""
    return json.loads((Path(trained["config"].output) / "evaluation/metrics.json").read_text())


def test_the_good_generator_scores_better_than_the_bad_one(
    trained: dict[str, Any], metrics: dict[str, Any]
) -> None:
    corpora = metrics["corpora"]
    assert list(corpora) == ["real", "good", "bad"]
    assert corpora["real"]["clips"] == checkpoint.load_metadata(trained["run"]).data["test"]
    assert corpora["good"]["clips"] == 24
    assert corpora["good"]["accuracy"]["value"] > 0.85
    assert corpora["bad"]["accuracy"]["high"] < corpora["good"]["accuracy"]["low"]
    assert corpora["bad"]["mmd2_x100"]["low"] > corpora["good"]["mmd2_x100"]["high"]
    assert corpora["bad"]["coverage"]["value"] < corpora["good"]["coverage"]["value"]
    assert corpora["good"]["role"] == "generated"
    assert metrics["ranking"]["order"] == ["good", "bad"]
    assert metrics["ranking"]["pairs"][0]["significant"] is True
    assert [row["kind"] for row in metrics["mismatch"] if row["corpus"] == "good"] == []
    assert [row["kind"] for row in metrics["mismatch"] if row["corpus"] == "bad"] == ["level"]


def test_metrics_json_fits_its_schema(root: Path, metrics: dict[str, Any]) -> None:
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    validator = Draft202012Validator(schema)

    assert [error.message for error in validator.iter_errors(metrics)] == []
    wrong = {**metrics, "sanity": [{**metrics["sanity"][0], "expected": "hope"}]}
    assert len(list(validator.iter_errors(wrong))) == 1


def test_the_anchors_are_in_the_metrics(metrics: dict[str, Any]) -> None:
    """With three classes of tones every sanity check passes."""
    anchors = metrics["anchors"]
    of_real = {"noise", "silence", "shuffled_labels", "training_copy"}
    assert anchors.keys() == {*of_real, "real_halves"}
    test_clips = metrics["corpora"]["real"]["clips"]
    assert {anchors[name]["clips"] for name in of_real} == {test_clips}
    assert anchors["training_copy"]["authenticity"]["value"] == 0.0
    assert anchors["shuffled_labels"]["mmd2_x100"] == metrics["corpora"]["real"]["mmd2_x100"]
    assert [row for row in metrics["sanity"] if row["passed"] is False] == []
    made = {(row["anchor"], row["metric"]) for row in metrics["sanity"] if row["passed"]}
    assert len(made) >= 12
    # Three test clips per class are too few to repeat one of them.
    skipped_checks = [row for row in metrics["sanity"] if row["anchor"] == "one_clip_per_class"]
    assert {row["why"] for row in skipped_checks} == {"needs more than 5 real test clips per class"}


def test_scores_do_not_depend_on_the_number_of_tasks(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """Shards that are scored one by one in this process give the same predictions."""
    config, run = trained["config"], trained["run"]
    predictions = f"{config.output}/evaluation/predictions"
    clips = split_clips(config, finished_features("real", config))
    chosen = clips.filter(pc.is_in(clips["split"], pa.array(["train", "test"])))
    identity = Identity(classifier_digest(run), config.evaluation.batch_size, "")

    def alone(name: str, uri: str, references: References | None) -> str:
        part = part_uri(str(tmp_path), name, part_index(uri))
        row = {"corpus": name, "shard": uri, "part": part}
        row = read_shard(row, identity, chosen if name == "real" else None)
        write_predictions(classify(row, run, identity, "cpu"), identity, references)
        return part

    shards = {
        name: parquet.shard_uris(finished_features(name, config))
        for name in ("real", "good", "bad")
    }
    references = read_references([alone("real", uri, None) for uri in shards["real"]])
    for name, uris in shards.items():
        for uri in uris:
            part = alone(name, uri, None)
            table = add_nearest_neighbours(read_table(part), references)
            there = read_table(part_uri(predictions, name, part_index(uri)))
            assert there.schema.equals(PREDICTIONS)
            assert there.to_pylist() == table.to_pylist()

    real = pa.concat_tables(read_predictions(predictions, "real", ["clip_id"]))
    assert set(real["clip_id"].to_pylist()) == set(chosen["clip_id"].to_pylist())


def test_each_clip_has_scores(trained: dict[str, Any]) -> None:
    """The scores are target probability, realism and nearest training clip."""
    predictions = f"{trained['config'].output}/evaluation/predictions"
    table = pa.concat_tables(
        part for name in ("real", "good", "bad") for part in read_predictions(predictions, name)
    )
    labels = checkpoint.load_metadata(trained["run"]).labels
    probabilities = as_array(table["probabilities"])
    asked = [labels.index(label) for label in table["label"].to_pylist()]
    assert table["target_probability"].to_pylist() == pytest.approx(
        probabilities[np.arange(len(table)), asked].tolist()
    )
    references = {
        row["clip_id"]: np.array(row["embedding"])
        for row in table.to_pylist()
        if row["split"] == "train"
    }
    realism: dict[str, list[float]] = {"real": [], "good": [], "bad": []}
    for row in table.to_pylist():
        if row["split"] == "train":
            assert [row[name] for name in COMPARED] == [None] * 4
            continue
        distance = {
            name: np.linalg.norm(place - np.array(row["embedding"]))
            for name, place in references.items()
        }
        assert distance[row["nearest_train_clip_id"]] == pytest.approx(
            min(distance.values()), rel=1e-5
        )
        realism[row["corpus"]].append(row["realism"])
    assert np.median(realism["good"]) > 2 * np.median(realism["bad"])


def test_the_report_and_the_events_hold_the_same_numbers(
    trained: dict[str, Any], metrics: dict[str, Any], tmp_path: Path
) -> None:
    page = Path(trained["config"].output, "evaluation", "report.html").read_text()
    # The hardest and the most convincing clip of three classes, of each of three corpora.
    assert page.count("<audio") == 18
    tree = {
        **trained["tree"],
        "evaluation": {"checkpoint": trained["run"], "tensorboard": True, "examples": 0},
    }

    evaluate(from_tree(tree, "test"))

    folder = Path(trained["config"].output) / "evaluation"
    assert json.loads((folder / "metrics.json").read_text()) == metrics
    assert (folder / "report.html").read_text().count("<audio") == 0
    scalars = {}
    for file in (folder / "tensorboard").iterdir():
        scalars |= read_scalars(file)
    assert scalars["accuracy/bad"] == pytest.approx(metrics["corpora"]["bad"]["accuracy"]["value"])
    assert scalars["mmd2_x100/noise"] == pytest.approx(
        metrics["anchors"]["noise"]["mmd2_x100"]["value"]
    )
    assert all(math.isfinite(value) for value in scalars.values())


def read_scalars(file: Path) -> dict[str, float]:
    """The scalars of a TensorBoard event file."""
    content, scalars = file.read_bytes(), {}
    while content:
        size = int.from_bytes(content[:8], "little")
        event = Event.FromString(content[12 : 12 + size])
        scalars |= {value.tag: value.simple_value for value in event.summary.value}
        content = content[16 + size :]
    return scalars


@pytest.fixture(scope="module")
def compared(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The scores of a good generator, and of a bad one that lacks a class."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "bad").mkdir()
    for label in ("high", "low"):
        (folder / "bad" / label).symlink_to(tones["bad"] / label)
    generated = {"good": str(tones["good"]), "bad": str(folder / "bad")}
    tree = {**trained["tree"], "output": str(folder / "out"), "name": "compared"}
    tree |= {
        "corpora": {**tree["corpora"], "generated": generated},
        "evaluation": {"checkpoint": trained["run"], "examples": 0},
        "compute": {"workers": 1, "shard_clips": 16, "use_gpu": False, "precision": "float32"},
    }
    config = from_tree(tree, "test")
    extract(config)
    with capture_log() as log:
        last_line = cas(config)
    scores = json.loads(
        Path(last_line.removeprefix("classification accuracy scores: ")).read_text()
    )
    return {"config": config, "scores": scores, "log": log}


@contextmanager
def capture_log() -> Iterator[list[str]]:
    """What the library logs, while the block runs."""
    lines: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("raysound")
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


def test_a_classifier_trained_on_good_clips_recognises_real_ones(
    trained: dict[str, Any], compared: dict[str, Any]
) -> None:
    """A classifier trained on noisy clips recognises fewer."""
    scores = compared["scores"]
    good, bad = (scores["generated"][name] for name in ("good", "bad"))

    assert scores["test_clips"] == checkpoint.load_metadata(trained["run"]).data["test"]
    assert scores["classifier"]["run"] == trained["run"].rpartition("/")[2]
    assert scores["classifier"]["accuracy"]["value"] > 0.8
    assert good["generated_to_real"]["accuracy"]["value"] > 0.8
    assert good["real_to_generated"]["accuracy"]["value"] > 0.85
    assert set(good["generated_to_real"]["per_class"]) == {"high", "low", "mid"}
    assert bad["lost"]["value"] > good["lost"]["value"]
    for row in (good, bad):
        real, generated = (row[f"{side}_to_real"]["accuracy"] for side in ("real", "generated"))
        assert row["lost"]["value"] == pytest.approx(real["value"] - generated["value"])
        assert row["p_value"] <= row["p_adjusted"] <= 1


def test_both_classifiers_of_a_pair_train_on_equal_numbers_of_clips_per_class(
    compared: dict[str, Any],
) -> None:
    """They use only real clips of the training and validation splits."""
    output = Path(compared["config"].output)
    for row in compared["scores"]["generated"].values():
        real, generated = (
            checkpoint.load_metadata(str(output / "training" / row["runs"][side])).data
            for side in ("real", "generated")
        )
        for part in ("train", "validation"):
            counted = sum(count[part] for count in row["clips_by_class"].values())
            assert real[part] == generated[part] == row[f"{part}_clips"] == counted > 0
        assert real["test"] == generated["test"] == 0
        assert row["train_clips"] < compared["scores"]["classifier"]["train_clips"]


def test_a_class_missing_in_a_generator_is_dropped_on_both_sides_and_named(
    compared: dict[str, Any],
) -> None:
    good, bad = (compared["scores"]["generated"][name] for name in ("good", "bad"))

    assert (good["missing_classes"], bad["missing_classes"]) == ([], ["mid"])
    assert set(bad["clips_by_class"]) == {"high", "low"}
    assert set(bad["real_to_real"]["per_class"]) == {"high", "low"}
    assert bad["test_clips"] < good["test_clips"] == compared["scores"]["test_clips"]
    words = "bad has no clip to train on of mid: compared on the other 2 classes"
    assert any(words in line for line in compared["log"])


def test_the_report_shows_cas_until_the_classifier_changes(
    root: Path, compared: dict[str, Any]
) -> None:
    config, scores = compared["config"], compared["scores"]
    folder = Path(config.output) / "evaluation"
    schema = json.loads((root / "docs/metrics.schema.json").read_text())

    evaluate(config)

    found = json.loads((folder / "metrics.json").read_text())
    assert [error.message for error in Draft202012Validator(schema).iter_errors(found)] == []
    assert found["cas"]["test_clips"] == scores["test_clips"]
    for name, row in found["cas"]["generated"].items():
        assert row["lost"] == scores["generated"][name]["lost"]
    assert "Trained on as many real clips" in (folder / "report.html").read_text()

    file = Path(config.output) / "cas/cas.json"
    file.write_text(
        json.dumps({**scores, "classifier": {**scores["classifier"], "run": "cnn-other"}})
    )
    with capture_log() as log:
        evaluate(config)

    assert json.loads((folder / "metrics.json").read_text())["cas"] is None
    assert "jobs/cas.py CONFIG" in (folder / "report.html").read_text()
    assert any("another classifier: its run differs: run jobs/cas.py again" in x for x in log)


def test_cas_without_generated_corpora_is_a_user_error(trained: dict[str, Any]) -> None:
    tree = {**trained["tree"], "corpora": {"real": trained["tree"]["corpora"]["real"]}}

    with pytest.raises(UserError, match=r"no corpora\.generated"):
        cas(from_tree(tree, "test"))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"n_mels": 20}, "n_mels 24 there, 20 here"),
        ({"loudness": {"rms": -23}}, "loudness none there, {'rms': -23.0} here"),
    ],
)
def test_a_mismatch_is_refused_and_both_values_named(
    trained: dict[str, Any], change: dict[str, Any], words: str
) -> None:
    tree = {
        **trained["tree"],
        "features": {**trained["tree"]["features"], **change},
        "evaluation": {"checkpoint": trained["run"]},
    }

    with pytest.raises(UserError, match=words):
        evaluate(from_tree(tree, "test"))


def test_a_split_that_differs_from_the_classifiers_is_refused(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """Otherwise training clips could be used as test clips."""
    tree = {**trained["tree"], "evaluation": {"checkpoint": trained["run"]}}
    tree["output"] = str(tmp_path)
    tree["corpora"] = {
        "real": {**tree["corpora"]["real"], "split": {"seed": 9}},
        "generated": {},
    }
    config = from_tree(tree, "test")
    extract(config)

    with pytest.raises(UserError, match="was trained with another split of the real corpus"):
        evaluate(config)


def test_a_class_unknown_to_the_classifier_is_refused(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "shrill").symlink_to(tones["good"] / "high")
    tree = {**trained["tree"]}
    tree["corpora"] = {**tree["corpora"], "generated": {"odd": str(tmp_path / "corpus")}}
    config = from_tree(tree, "test")

    with pytest.raises(UserError, match="odd has classes that the real corpus lacks: shrill; it"):
        extract(config)
    # Of another config with the same output, say.
    extract_corpus("real", config)
    extract_corpus("odd", config)

    with pytest.raises(
        UserError, match="odd has classes that the classifier was not trained on: shrill"
    ):
        evaluate(config)
    with pytest.raises(UserError, match="odd has classes that the real corpus lacks: shrill; it"):
        cas(config)


def test_a_corpus_of_one_class_is_refused(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    """The error names it and comes before any training."""
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "high").symlink_to(tones["good"] / "high")
    tree = {**trained["tree"], "output": str(tmp_path / "out")}
    tree["corpora"] = {**tree["corpora"], "generated": {"alone": str(tmp_path / "corpus")}}
    config = from_tree(tree, "test")
    extract(config)

    with pytest.raises(UserError, match="the corpus alone has a single class, 'high'"):
        cas(config)
    assert not (tmp_path / "out" / "training").exists()
