"""Generated corpora whose clips have no labels, beside labelled ones: the whole pipeline."""

import json
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from jsonschema import Draft202012Validator
from pyarrow.csv import read_csv
from scipy.special import rel_entr

from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.training.cas import cas
from raysound.errors import UserError
from raysound.evaluation.comparison import compare_files
from raysound.evaluation.predictions import as_array, read_predictions
from raysound.metrics.declarations import METRICS
from raysound.metrics.kernel import mmd2_x100
from raysound.metrics.sampling import drawn
from raysound.metrics.selection import keys
from raysound.settings.loading import from_tree
from raysound.storage import read_table

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def unlabelled(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Any]:
    """The good tones evaluated four times: with labels, without, in a tar file, and the bad."""
    folder = tmp_path_factory.mktemp("unlabelled")
    flat, bad = folder / "flat", folder / "bad"
    for corpus, to in (("good", flat), ("bad", bad)):
        to.mkdir()
        for clip in sorted(tones[corpus].rglob("*.wav")):
            shutil.copy(clip, to / f"{clip.parent.name}-{clip.name}")
    with tarfile.open(folder / "packed.tar", "w") as tar:
        for clip in sorted(flat.iterdir()):
            tar.add(clip, clip.name)
    tree = {
        **trained["tree"],
        "output": str(folder / "out"),
        "corpora": {
            "real": {"path": str(tones["real"])},
            "generated": {
                "good": str(tones["good"]), "flat": str(flat), "packed": str(folder / "packed.tar"),
                "flat_bad": str(bad),
            },
        },
        "evaluation": {"checkpoint": trained["run"], "csv": True},
    }  # fmt: skip
    config = from_tree(tree, "test")
    extract(config)
    evaluate(config)
    output = folder / "out" / "evaluation"
    return {
        "tree": tree,
        "config": config,
        "output": output,
        "metrics": json.loads((output / "metrics.json").read_text()),
    }


def test_metrics_without_labels_equal_those_of_labelled_clips(
    unlabelled: dict[str, Any], root: Path
) -> None:
    metrics = unlabelled["metrics"]
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    Draft202012Validator(schema).validate(metrics)
    good = metrics["corpora"]["good"]
    for name in ("flat", "packed"):
        row = metrics["corpora"][name]
        assert (row["labelled"], row["clips"], row["confusion"]) == (False, 24, None)
        assert row["predicted"] == good["predicted"]
        for metric in METRICS:
            if metric.needs_labels:
                none = {"value": None, "low": None, "high": None, "why": "no labels"}
                assert row[metric.key] == none
            elif metric.needs_equal_n:
                # Of other clips: which ones are drawn follows from their names.
                assert row[metric.key]["value"] is not None
            else:
                assert row[metric.key]["value"] == pytest.approx(good[metric.key]["value"])
        by_class = {label: of["clips"] for label, of in row["per_class"].items()}
        assert by_class == row["predicted"]
        assert sum(of["generated"] for of in row["per_class"].values()) == 24


def test_scores_of_probabilities_equal_plain_numpy(unlabelled: dict[str, Any]) -> None:
    """Inception score, modified inception score and AM score of the sample agree to 1e-9."""
    metrics, predictions = unlabelled["metrics"], str(unlabelled["output"] / "predictions")
    real = read_table_of(predictions, "real")
    train = as_array(real.filter(pc.equal(real["split"], "train"))["probabilities"])
    reference = train.mean(axis=0, dtype=np.float64)
    for name in ("flat", "flat_bad"):
        row = metrics["corpora"][name]
        table = read_table_of(predictions, name)
        assert table["label"].null_count == table["target_probability"].null_count == len(table)
        in_order = np.argsort(keys(table["clip_id"].to_pylist()))
        p = as_array(table["probabilities"]).astype(np.float64)[in_order]
        p = drawn(p / p.sum(axis=1, keepdims=True), row["compared"], 0)
        log = np.log(np.maximum(p, 1e-12))
        divergences = [
            (p[i] * (log[i] - log[j])).sum() for i in range(len(p)) for j in range(len(p)) if i != j
        ]
        marginal = p.mean(axis=0)
        entropies = -(p * log).sum(axis=1)
        gap = rel_entr(reference, np.maximum(marginal, 1e-12)).sum()
        expected = {
            "inception_score": np.exp(rel_entr(p, marginal).sum(axis=1).mean()),
            "modified_inception_score": np.exp(np.mean(divergences)),
            "am_score": gap + entropies.mean(),
        }
        for key, value in expected.items():
            assert row[key]["value"] == pytest.approx(value, rel=1e-9), key


def read_table_of(predictions: str, corpus: str) -> Any:
    return pa.concat_tables(read_predictions(predictions, corpus))


def test_corpora_without_labels_are_in_the_report_and_the_comparison(
    unlabelled: dict[str, Any],
) -> None:
    metrics = unlabelled["metrics"]
    assert metrics["ranking"]["metric"] == "accuracy"
    assert metrics["ranking"]["order"] == ["good", "flat", "packed", "flat_bad"]
    page = (unlabelled["output"] / "report.html").read_text()
    assert "flat</b>\nhas no labels" in page
    assert "Predicted classes of flat" in page
    uri = str(unlabelled["output"] / "metrics.json")
    text = compare_files(uri, uri)
    assert not [line for line in text.splitlines() if line.startswith("flat ") and "accu" in line]
    assert [line for line in text.splitlines() if line.startswith("flat ") and "mmd2_x100" in line]


def test_the_worst_clips_increase_mmd_most(unlabelled: dict[str, Any]) -> None:
    """The metric is computed again without each clip; the CSV has the decrease of each."""
    predictions = str(unlabelled["output"] / "predictions")
    real = read_table_of(predictions, "real")
    reference = as_array(real.filter(pc.equal(real["split"], "train"))["embedding"])
    for corpus in ("flat_bad", "good"):
        table = read_table_of(predictions, corpus)
        embedding, names = as_array(table["embedding"]), table["clip_id"].to_pylist()
        rows = read_csv(unlabelled["output"] / "csv" / f"{corpus}.csv").to_pylist()
        assert [row["clip_id"] for row in rows] == names
        assert {row["label"] for row in rows} == (
            {"high", "low", "mid"} if corpus == "good" else {None}
        )
        whole = mmd2_x100(embedding, reference)
        for place, row in enumerate(rows):
            without = mmd2_x100(np.delete(embedding, place, axis=0), reference)
            assert row["mmd_decrease"] == pytest.approx(whole - without, abs=1e-8)
        worst = unlabelled["metrics"]["corpora"][corpus]["worst_clips"]
        ordered = sorted(rows, key=lambda row: (-row["mmd_decrease"], row["clip_id"]))[:10]
        assert [clip["clip_id"] for clip in worst] == [
            row["clip_id"] for row in ordered if row["mmd_decrease"] > 0
        ]
    page = (unlabelled["output"] / "report.html").read_text()
    assert "Clips that raise MMD most" in page


def test_generators_without_labels_are_ranked_by_mmd(unlabelled: dict[str, Any]) -> None:
    tree = unlabelled["tree"]
    generated = {name: tree["corpora"]["generated"][name] for name in ("flat_bad", "flat")}
    corpora = {**tree["corpora"], "generated": generated}
    config = from_tree({**tree, "corpora": corpora}, "test")
    evaluate(config)
    metrics = json.loads((unlabelled["output"] / "metrics.json").read_text())
    assert metrics["ranking"]["metric"] == "mmd2_x100"
    assert metrics["ranking"]["order"] == ["flat", "flat_bad"]
    page = (unlabelled["output"] / "report.html").read_text()
    assert "By MMD, best first" in page
    with pytest.raises(UserError, match="no generated corpus has labels"):
        cas(config)


def test_a_corpus_with_labels_for_some_clips_is_refused(
    unlabelled: dict[str, Any], tmp_path: Path
) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(unlabelled["tree"]["corpora"]["generated"]["flat"], mixed)
    (mixed / "dog").mkdir()
    shutil.copy(next(mixed.glob("*.wav")), mixed / "dog" / "1.wav")
    tree = {**unlabelled["tree"], "output": str(tmp_path / "out")}
    tree["corpora"] = {**tree["corpora"], "generated": {"mixed": str(mixed)}}
    with pytest.raises(UserError, match="24 sound files are in no class folder"):
        extract(from_tree(tree, "test"))
    tree["corpora"] = {"real": {"path": unlabelled["tree"]["corpora"]["generated"]["flat"]}}
    with pytest.raises(UserError, match="the real clips have no labels"):
        extract(from_tree(tree, "test"))
    assert not read_rejects(tmp_path)


def read_rejects(folder: Path) -> list[Any]:
    """Of all corpora that were extracted."""
    paths = folder.rglob("rejects.parquet")
    return [row for path in paths for row in read_table(str(path)).to_pylist()]
