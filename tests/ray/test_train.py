import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray.data

from raysound import checkpoint, features
from raysound.config import UserError, from_tree
from raysound.distributed.evaluate import evaluate
from raysound.distributed.extract import extract, finished_features
from raysound.distributed.train import placement, read_history, train_judge
from raysound.distributed.training_data import dataset, normalisation
from raysound.features import MelStatistics
from raysound.storage import read_table


@pytest.fixture(scope="module")
def trained(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The whole road over the tones, gone once for all tests of this file."""
    tree = {
        "name": "tones",
        "output": str(tmp_path_factory.mktemp("trained")),
        "corpora": {
            "real": {"path": str(tones["real"])},
            "generated": {"good": str(tones["good"]), "bad": str(tones["bad"])},
        },
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 6, "batch_size": 8, "scheduler": {"name": "StepLR", "step_size": 4}},
        "compute": {"workers": 2, "shard_clips": 16, "use_gpu": False},
    }  # fmt: skip
    config = from_tree(tree, "test")
    extract(config)
    run = train_judge(config)
    report = evaluate(config)
    return {"config": config, "tree": tree, "run": run, "report": report}


@pytest.mark.timeout(300)
def test_the_judge_learns_and_leaves_history_weights_and_note(trained: dict[str, Any]) -> None:
    history = read_history(f"{trained['run']}/history.jsonl")
    note = checkpoint.read_note(trained["run"])

    assert [row["epoch"] for row in history] == [1, 2, 3, 4, 5, 6]
    assert [row["lr"] for row in history] == pytest.approx([1e-3] * 4 + [1e-4] * 2)
    best = max(row["validation_accuracy"] for row in history)
    assert best > 0.9
    assert note.metrics["validation_accuracy"] == best
    assert note.labels == ["high", "low", "mid"]
    assert note.features == trained["config"].features
    assert note.training["scheduler"]["step_size"] == 4
    assert {path.name for path in Path(trained["run"]).iterdir()} == {
        "history.jsonl",
        "model.safetensors",
        "checkpoint.json",
    }


def test_every_validation_clip_is_counted_once_over_both_workers(trained: dict[str, Any]) -> None:
    """An equal split over two workers would have cut an odd number of clips to an even one."""
    clips = checkpoint.read_note(trained["run"]).data["validation"]

    assert clips % 2 == 1
    counted = [row["validation_clips"] for row in read_history(f"{trained['run']}/history.jsonl")]
    assert counted == [clips] * 6


def test_a_trained_judge_is_not_trained_again(trained: dict[str, Any]) -> None:
    before = Path(trained["run"], "model.safetensors").stat().st_mtime_ns

    assert train_judge(trained["config"]) == trained["run"]

    assert Path(trained["run"], "model.safetensors").stat().st_mtime_ns == before


def test_normalisation_is_that_of_the_training_rows_alone(trained: dict[str, Any]) -> None:
    folder = finished_features("real", trained["config"])
    tables = [read_table(uri) for uri in features.part_uris(folder)]
    rows = [
        log_mel
        for table in tables
        for split, log_mel in zip(
            table["split"].to_pylist(), features.log_mel_array(table["log_mel"]), strict=True
        )
        if split == "train"
    ]
    expected = MelStatistics.of(np.stack(rows))

    actual = normalisation(folder)

    np.testing.assert_allclose(actual.mean, expected.mean, rtol=1e-6)
    np.testing.assert_allclose(actual.std, expected.std, rtol=1e-6)


@pytest.mark.parametrize("keep", [True, False])
def test_a_split_is_fed_whole_and_with_the_right_targets(
    trained: dict[str, Any], keep: bool
) -> None:
    folder = finished_features("real", trained["config"])
    clips = features.usable_clips(folder)
    labels = ["high", "low", "mid"]

    rows = dataset(folder, "test", labels, keep).take_all()

    expected = [
        labels.index(label)
        for label, split in zip(clips["label"].to_pylist(), clips["split"].to_pylist(), strict=True)
        if split == "test"
    ]
    assert sorted(row["target"] for row in rows) == sorted(expected)
    assert rows[0]["log_mel"].shape == (24, 26)


def test_what_the_cluster_lacks_is_told_before_ray_waits_for_it(trained: dict[str, Any]) -> None:
    def asking(**compute: Any) -> Any:
        return from_tree({**trained["tree"], "compute": {"shard_clips": 16, **compute}}, "test")

    with pytest.raises(UserError, match=r"want a GPU each; the cluster has 0"):
        placement(asking(workers=2, use_gpu=True))
    with pytest.raises(UserError, match=r"leave less than 1 of .* 2 CPUs"):
        placement(asking(workers=2, cpus_per_worker=1))
    scaling, threads = placement(asking(workers=2))
    assert scaling.resources_per_worker == {"CPU": 0.5}
    assert threads == 1


def test_the_good_generator_is_told_from_the_bad_one(trained: dict[str, Any]) -> None:
    metrics = json.loads((Path(trained["config"].output) / "evaluation/metrics.json").read_text())

    corpora = metrics["corpora"]
    assert list(corpora) == ["real", "good", "bad"]
    assert corpora["real"]["clips"] == checkpoint.read_note(trained["run"]).data["test"]
    assert corpora["good"]["clips"] == 24
    assert corpora["good"]["accuracy"]["value"] > 0.85
    assert corpora["bad"]["accuracy"]["high"] < corpora["good"]["accuracy"]["low"]
    assert corpora["good"]["role"] == "generated"
    page = Path(trained["report"].removeprefix("report: ")).read_text()
    assert page.count("<audio") == 24


def test_scores_do_not_depend_on_how_many_tasks_share_the_work(
    trained: dict[str, Any], tmp_path: Path
) -> None:
    """Shards are scored whole: alone, one after the other, they give the same bytes."""
    from raysound.distributed.evaluate import PREDICTIONS, score_shard

    config = trained["config"]
    predictions = read_table(f"{config.output}/evaluation/predictions.parquet")
    alone = [
        score_shard(
            {"corpus": np.array([name]), "uri": np.array([uri])},
            trained["run"],
            config.evaluation.batch_size,
        )
        for name in ("real", "good", "bad")
        for uri in features.part_uris(finished_features(name, config))
    ]

    assert predictions.schema.equals(PREDICTIONS)
    expected = [row for table in alone for row in table.to_pylist()]
    assert predictions.to_pylist() == expected


def test_a_mismatch_is_refused_and_both_values_named(trained: dict[str, Any]) -> None:
    tree = {
        **trained["tree"],
        "features": {**trained["tree"]["features"], "n_mels": 20},
        "evaluation": {"checkpoint": trained["run"]},
    }

    with pytest.raises(UserError, match="n_mels 24 there, 20 here"):
        evaluate(from_tree(tree, "test"))


def test_another_split_than_the_judges_is_refused(trained: dict[str, Any], tmp_path: Path) -> None:
    """Else clips that it learned could test it."""
    tree = {**trained["tree"], "evaluation": {"checkpoint": trained["run"]}}
    tree["output"] = str(tmp_path)
    tree["corpora"] = {
        "real": {**tree["corpora"]["real"], "split": {"seed": 9}},
        "generated": {},
    }
    config = from_tree(tree, "test")
    extract(config)

    with pytest.raises(UserError, match="split otherwise than when the judge"):
        evaluate(config)


def test_a_class_that_the_judge_never_learned_is_refused(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "shrill").symlink_to(tones["good"] / "high")
    tree = {**trained["tree"]}
    tree["corpora"] = {**tree["corpora"], "generated": {"odd": str(tmp_path / "corpus")}}
    config = from_tree(tree, "test")
    extract(config)

    with pytest.raises(UserError, match="odd has classes that the judge never learned: shrill"):
        evaluate(config)


def test_clips_added_since_the_extraction_are_noticed(
    trained: dict[str, Any], tones: dict[str, Path], tmp_path: Path
) -> None:
    """A score must not stay the same because a cache did."""
    corpus = tmp_path / "corpus"
    for label in ("high", "low"):
        (corpus / label).mkdir(parents=True)
        for wav in sorted((tones["good"] / label).iterdir())[:3]:
            (corpus / label / wav.name).write_bytes(wav.read_bytes())
    tree = {**trained["tree"]}
    tree["corpora"] = {**tree["corpora"], "generated": {"growing": str(corpus)}}
    config = from_tree(tree, "test")
    extract(config)
    evaluate(config)
    (corpus / "low" / "new.wav").write_bytes((corpus / "low" / "000.wav").read_bytes())

    with pytest.raises(UserError, match="growing has changed since its features were extracted"):
        evaluate(config)
    extract(config)
    evaluate(config)

    metrics = json.loads((Path(config.output) / "evaluation/metrics.json").read_text())
    assert metrics["corpora"]["growing"]["clips"] == 7


def test_jobs_tell_what_has_to_run_first(tone_config: dict[str, Any]) -> None:
    config = from_tree(tone_config, "test")

    with pytest.raises(UserError, match=r"run jobs/extract\.py first"):
        train_judge(config)
    with pytest.raises(UserError, match=r"run jobs/extract\.py first"):
        evaluate(config)
    extract(config)
    with pytest.raises(UserError, match=r"run jobs/train\.py first"):
        evaluate(config)
    assert ray.data.DataContext.get_current().execution_options.preserve_order


@pytest.mark.timeout(200)
def test_a_loss_that_is_no_number_is_told_as_the_users_mistake(trained: dict[str, Any]) -> None:
    """From a worker's depths to one line, not a traceback."""
    tree = {**trained["tree"], "training": {"epochs": 2, "batch_size": 8}}
    tree["training"]["optimizer"] = {"name": "SGD", "lr": 1e38}

    with pytest.raises(UserError, match=r"try a smaller training\.optimizer\.lr than 1e\+38"):
        train_judge(from_tree(tree, "test"))
