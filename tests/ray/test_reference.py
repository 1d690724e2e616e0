"""Evaluation against a published file in place of the real recordings."""

import copy
import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import safetensors.numpy
from jsonschema import Draft202012Validator

from raysound import storage
from raysound.distributed.evaluation.console import metrics_table
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.evaluation.reference import reference
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.synthesize import synthesize
from raysound.distributed.pipeline import run_all
from raysound.distributed.search.tune import tune
from raysound.distributed.training.cas import cas
from raysound.distributed.training.train import train
from raysound.distributed.training.trainer import train_classifier
from raysound.errors import UserError
from raysound.evaluation.comparison import compare, compare_files, skipped_lines
from raysound.evaluation.predictions import as_array, prediction_parts
from raysound.metrics.sampling import sample_rows
from raysound.metrics.selection import keys
from raysound.settings.loading import from_tree
from tests.html_tree import Tree, assert_harmless
from tests.onnx_models import write_model

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)

GENERATED = ("good", "bad", "flat")


@pytest.fixture(scope="module")
def with_clips(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The tones evaluated with the recordings, one corpus without labels; and their file."""
    folder = tmp_path_factory.mktemp("reference")
    flat = folder / "flat"
    flat.mkdir()
    for clip in sorted(tones["good"].rglob("*.wav")):
        shutil.copy(clip, flat / f"{clip.parent.name}-{clip.name}")
    generated = {"good": str(tones["good"]), "bad": str(tones["bad"]), "flat": str(flat)}
    model = write_model(folder / "conv.onnx")
    tree = {
        **copy.deepcopy(trained["tree"]),
        "output": str(folder / "with"),
        "corpora": {"real": {"path": str(tones["real"])}, "generated": generated},
        "evaluation": {
            "checkpoint": trained["run"],
            "csv": True,
            "embeddings": {
                "conv": {"path": str(model), "sample_rate": 4000, "clip_length": 0.2},
                "mel": "log_mel_statistics",
            },
        },
    }
    config = from_tree(tree, "test")
    extract(config)
    evaluate(config)
    line = reference(config)
    return {
        "folder": folder,
        "tree": tree,
        "file": line.removeprefix("reference: "),
        "metrics": metrics_of(config.output),
    }


def metrics_of(output: str) -> dict[str, Any]:
    return json.loads((Path(output) / "evaluation" / "metrics.json").read_text())


def without_real(with_clips: dict[str, Any], output: Path, **evaluation: Any) -> dict[str, Any]:
    """The same config with the file in place of the recordings."""
    tree: dict[str, Any] = copy.deepcopy(with_clips["tree"])
    del tree["corpora"]["real"]
    tree["output"] = str(output)
    tree["evaluation"] |= {"reference": with_clips["file"], **evaluation}
    return tree


@pytest.fixture(scope="module")
def against(with_clips: dict[str, Any]) -> dict[str, Any]:
    """The same evaluation by who has the file, and the classifier under another name."""
    folder = with_clips["folder"]
    shutil.copytree(with_clips["tree"]["evaluation"]["checkpoint"], folder / "downloaded")
    tree = without_real(with_clips, folder / "without", checkpoint=str(folder / "downloaded"))
    line = run_all(from_tree(tree, "test"))
    output = folder / "without" / "evaluation"
    return {
        "tree": tree,
        "output": output,
        "page": Path(line.removeprefix("report: ")).read_text(),
        "metrics": metrics_of(tree["output"]),
    }


def test_metrics_equal_those_of_an_evaluation_with_the_clips(
    with_clips: dict[str, Any], against: dict[str, Any], root: Path
) -> None:
    ours, theirs = against["metrics"], with_clips["metrics"]
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    Draft202012Validator(schema).validate(ours)
    assert [*theirs["corpora"]] == ["real", *GENERATED]
    for key in (
        "classifier", "corpora", "anchors", "sanity", "ranking", "mismatch", "embeddings"
    ):  # fmt: skip
        assert ours[key] == theirs[key], key
    assert ours["reference"] == theirs["reference"] | {"file": "reference.safetensors"}
    assert {*ours} == {*theirs}
    assert theirs["corpora"]["bad"]["worst_clips"][0]["nearest_train_clip_id"]
    assert theirs["mismatch"]
    assert {*theirs["embeddings"]} == {"conv", "mel"}


def test_scores_of_single_clips_are_the_same(
    with_clips: dict[str, Any], against: dict[str, Any]
) -> None:
    """All columns are equal, among them nearest training clip, realism and decrease of MMD."""
    theirs = Path(with_clips["tree"]["output"]) / "evaluation"
    for name in GENERATED:
        csv = f"csv/{name}.csv"
        assert (against["output"] / csv).read_text() == (theirs / csv).read_text()
        for one, other in zip(
            prediction_parts(str(against["output"] / "predictions"), name),
            prediction_parts(str(theirs / "predictions"), name),
            strict=True,
        ):
            assert storage.read_table(one).equals(storage.read_table(other))


def test_nothing_of_the_real_corpus_is_extracted_or_written(against: dict[str, Any]) -> None:
    names = [path.name for path in Path(against["tree"]["output"]).rglob("*") if path.is_dir()]
    assert {name for name in names if name.startswith("good")} != set()
    assert [name for name in names if name.startswith("real")] == []


def test_the_file_is_written_again_from_existing_predictions(with_clips: dict[str, Any]) -> None:
    """Predictions and embeddings of generated corpora are kept, and the file does not change."""
    folder = Path(with_clips["tree"]["output"]) / "evaluation"
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert {path.parent.name for path in before} >= {"real", *GENERATED}
    content = Path(with_clips["file"]).read_bytes()
    reference(from_tree(with_clips["tree"], "test"))
    after = {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}
    assert after == before
    assert Path(with_clips["file"]).read_bytes() == content


def test_the_moments_give_the_frechet_distance_of_metrics_json(
    with_clips: dict[str, Any], against: dict[str, Any], root: Path
) -> None:
    """They are used as in docs/reference.md, for clips without labels."""
    uris = prediction_parts(str(against["output"] / "embeddings" / "conv"), "flat")
    tables = pa.concat_tables([storage.read_table(uri) for uri in uris])
    found = against["metrics"]["embeddings"]["conv"]["corpora"]["flat"]
    order = np.argsort(keys(tables["clip_id"].to_pylist()))
    own = sample_rows(as_array(tables["embedding"]).astype(np.float64)[order], found["compared"], 0)
    (code,) = re.findall(r"```python\n(.*?)```", (root / "docs/reference.md").read_text(), re.S)
    of_conv = {
        key.rpartition("/")[2]: array
        for key, array in safetensors.numpy.load_file(with_clips["file"]).items()
        if key.startswith("embeddings/conv/")
    }
    lines = code.replace('load_file("reference.safetensors")', "of_conv")
    assert lines != code
    names = {"own": own, "of_conv": of_conv}
    exec(lines, names)
    assert found["frechet_distance"]["value"] == pytest.approx(names["distance"], rel=1e-6)


def test_the_report_says_that_the_real_clips_are_not_available(against: dict[str, Any]) -> None:
    page = Tree(against["page"]).root
    assert_harmless(page)
    note = page.one("p", id="reference-file").text
    assert "real clips are not available" in note
    assert "reference.safetensors" in note
    assert "hollow" not in page.one("section", id="map").text
    cards = page.all("li", _class="card")
    assert {card.attributes["data-corpus"] for card in cards} == {*GENERATED}
    cells = json.loads(page.one("script", id="data").text)["cells"]
    assert cells[0] == {}
    assert all(cells[1:])
    assert page.one("tr", _class="own").one("th").text.startswith("real")
    assert [line for line in metrics_table(against["metrics"]) if "reference.safetensors" in line]


def test_compare_finds_no_difference(with_clips: dict[str, Any], against: dict[str, Any]) -> None:
    old, new = with_clips["metrics"], against["metrics"]
    rows = compare(old, new)
    assert {row["corpus"] for row in rows} == {*GENERATED}
    assert [row for row in rows if row["verdict"] in ("better", "worse", "differs")] == []
    assert {row["difference"]["value"] for row in rows} <= {0, None}
    assert list(skipped_lines(old, new)) == []
    first, second = (
        str(Path(tree["output"]) / "evaluation" / "metrics.json")
        for tree in (with_clips["tree"], against["tree"])
    )
    assert "no significant difference" in compare_files(first, second)


def test_another_classifier_is_refused_before_extraction(
    with_clips: dict[str, Any], tmp_path: Path
) -> None:
    """A training with another seed has other weights."""
    tree = copy.deepcopy(with_clips["tree"])
    tree["training"] |= {"seed": 5, "epochs": 2, "scheduler": None}
    run = train_classifier(from_tree(tree, "test"))
    refused = without_real(with_clips, tmp_path / "out", checkpoint=run)
    for job in (run_all, evaluate):
        with pytest.raises(UserError, match=r"has another classifier .*: weights_sha256 differs"):
            job(from_tree(refused, "test"))
    assert not (tmp_path / "out").exists()


def test_another_embedding_is_refused(with_clips: dict[str, Any], tmp_path: Path) -> None:
    embeddings = copy.deepcopy(with_clips["tree"]["evaluation"]["embeddings"])
    embeddings["conv"]["path"] = str(write_model(tmp_path / "other.onnx", size=7))
    tree = without_real(with_clips, tmp_path / "out", embeddings=embeddings)
    with pytest.raises(UserError, match=r"embeddings\.conv: .* has another embedding"):
        evaluate(from_tree(tree, "test"))
    tree["evaluation"]["embeddings"] = {"statistics": "log_mel_statistics"}
    with pytest.raises(UserError, match=r"embeddings\.statistics: .* no .*; it has conv, mel"):
        evaluate(from_tree(tree, "test"))


def test_other_features_and_classes_are_refused(
    with_clips: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    tree = without_real(with_clips, tmp_path / "out")
    tree["features"]["n_mels"] = 20
    for job in (run_all, evaluate):
        with pytest.raises(UserError, match="n_mels 24 there, 20 here"):
            job(from_tree(tree, "test"))
    assert not (tmp_path / "out").exists()
    shutil.copytree(tones["good"] / "mid", tmp_path / "odd" / "middle")
    tree = without_real(with_clips, tmp_path / "out")
    tree["corpora"]["generated"] = {"odd": str(tmp_path / "odd")}
    with pytest.raises(UserError, match=r"odd has classes that the real corpus lacks: .*middle"):
        extract(from_tree(tree, "test"))


def test_steps_that_need_the_recordings_refuse_in_one_line(
    with_clips: dict[str, Any], tmp_path: Path
) -> None:
    tree = without_real(with_clips, tmp_path / "out")
    tree["synthesis"] = {"griffin_lim": {"output": str(tmp_path / "gl")}}
    config = from_tree(tree, "test")
    for job in (train, tune, cas, synthesize, reference, run_all):
        with pytest.raises(UserError, match=r"^corpora\.real is missing, and this step needs"):
            job(config)
    assert not (tmp_path / "out").exists()


def test_a_reference_is_read_from_an_object_store(
    with_clips: dict[str, Any], against: dict[str, Any], object_store: str
) -> None:
    uri = f"{object_store}/published/reference.safetensors"
    storage.write_bytes(uri, Path(with_clips["file"]).read_bytes())
    tree = copy.deepcopy(against["tree"])
    tree["evaluation"]["reference"] = uri
    evaluate(from_tree(tree, "test"))
    assert metrics_of(tree["output"]) == against["metrics"]
