"""Copies of training clips in an evaluation: found, shared out over tasks, cached, shown."""

import copy
import io
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
import soundfile
from jsonschema import Draft202012Validator

from raysound import storage
from raysound.distributed.evaluation.console import metrics_table
from raysound.distributed.evaluation.copies import copy_metrics
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.evaluation.examples import load_pairs
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.runs import split_clips
from raysound.distributed.training.trainer import train_classifier
from raysound.errors import UserError
from raysound.evaluation.comparison import compare, skipped_lines
from raysound.evaluation.predictions import prediction_parts, read_predictions
from raysound.features import parquet
from raysound.report.events import write_events
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = pytest.mark.timeout(300)

RATE, SAMPLES = 8000, 12000
CLASSES = {"low": (200, 1200), "mid": (1000, 2400), "high": (2200, 3600)}
TRAIN, OTHERS = 24, 4  # of each class; as many test and validation clips
# What is done to the training clips that the generated corpora hold.
CHANGES = {
    "gain": lambda x, rng: 0.4 * x,
    "noise": lambda x, rng: x + 0.03 * np.std(x) * rng.standard_normal(len(x)),
    "roll": lambda x, rng: np.roll(x, 3200),
    "second_window": lambda x, rng: np.concatenate([sound(rng, "mid"), x]),
}


def sound(rng: np.random.Generator, label: str) -> np.ndarray:
    """Bursts of band noise at random times over weak noise, 1.5 s."""
    hertz = np.linspace(0, RATE / 2, SAMPLES // 2 + 1)
    x = 0.003 * rng.standard_normal(SAMPLES)
    for first in rng.integers(0, SAMPLES - 1500, size=6):
        noise = np.fft.rfft(rng.standard_normal(SAMPLES))
        band = np.exp(-(((hertz - rng.uniform(*CLASSES[label])) / 250) ** 2))
        burst = np.fft.irfft(noise * band, SAMPLES)[:1500]
        x[first : first + 1500] += burst * np.exp(-np.arange(1500) / 400)
    return 0.3 * x / np.abs(x).max()


def write(path: Path, x: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, x, RATE)


def write_real(folder: Path) -> None:
    """A real corpus with splits and groups of its own.

    One recording stands in two groups, and one as two clips of one group; one clip is silent.
    """
    rng, lines = np.random.default_rng(0), ["file_name,label,split,group"]
    for label in CLASSES:
        for split, count in (("train", TRAIN), ("validation", OTHERS), ("test", OTHERS)):
            for number in range(count):
                name = f"{label}-{split}-{number}.wav"
                write(folder / name, sound(rng, label))
                lines.append(f"{name},{label},{split},{name}")
    double, again = (soundfile.read(folder / f"{name}-train-0.wav")[0] for name in ("low", "mid"))
    for name, x, group in (
        ("low-double.wav", 0.7 * double, "another"),
        ("mid-again.wav", 0.7 * again, "mid-train-0.wav"),
        ("mid-silence.wav", np.zeros(SAMPLES), "silence"),
    ):
        write(folder / name, x)
        lines.append(f"{name},{name[:3]},train,{group}")
    (folder / "metadata.csv").write_text("\n".join(lines))


def write_generated(folder: Path, real: Path) -> None:
    """New sounds, one silent clip, and of each class a training clip for each change."""
    rng = np.random.default_rng(1)
    for label in CLASSES:
        for number in range(5):
            write(folder / label / f"new-{number}.wav", sound(rng, label))
        for number, (kind, change) in enumerate(CHANGES.items(), start=3):
            x, _ = soundfile.read(real / f"{label}-train-{number}.wav")
            write(folder / label / f"{kind}-{number}.wav", change(x, rng))
    write(folder / "low" / "silence.wav", np.zeros(SAMPLES))


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A config of these corpora; the second generated one is the first without labels."""
    folder = tmp_path_factory.mktemp("copies")
    write_real(folder / "real")
    write_generated(folder / "made", folder / "real")
    (folder / "flat").mkdir()
    for path in (folder / "made").rglob("*.wav"):
        shutil.copy(path, folder / "flat" / f"{path.parent.name}-{path.name}")
    return {
        "name": "copies",
        "output": str(folder / "out"),
        "corpora": {
            "real": {"path": str(folder / "real")},
            "generated": {"made": str(folder / "made"), "flat": str(folder / "flat")},
        },
        "features": {
            "clip_length": SAMPLES / RATE, "sample_rate": RATE, "hop_length": 240, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": RATE / 2,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 1, "batch_size": 8},
        "evaluation": {"copies": {"rate": 0.05}},
        "compute": {"shard_clips": 12, "use_gpu": False, "precision": "float32"},
    }  # fmt: skip


@pytest.fixture(scope="module")
def evaluated(tree: dict[str, Any]) -> dict[str, Any]:
    """Their evaluation."""
    config = from_tree(tree, "test")
    extract(config)
    train_classifier(config)
    evaluate(config)
    output = Path(config.output) / "evaluation"
    metrics = json.loads((output / "metrics.json").read_text())
    return {"config": config, "output": output, "metrics": metrics, "copies": metrics["copies"]}


def changed(tree: dict[str, Any], **copies: Any) -> Config:
    """The config with other settings of copies."""
    other = copy.deepcopy(tree)
    other["evaluation"]["copies"] |= copies
    return from_tree(other, "test")


def searched(config: Config, output: Path, parts_per_task: int = 8) -> dict[str, Any]:
    """`copies` of metrics.json, found in a folder with predictions."""
    folders = {name: finished_features(name, config) for name in ("real", "made", "flat")}
    real = split_clips(config, folders["real"])
    found = copy_metrics(config, real, folders, str(output), parts_per_task)
    assert found is not None
    return found


def rows(output: Path, corpus: str) -> dict[str, dict[str, Any]]:
    """All parts of a corpus by the clip's name."""
    parts = pa.concat_tables(read_predictions(str(output / "copies"), corpus))
    return {row["clip_id"]: row for row in parts.to_pylist()}


def with_predictions(evaluated: dict[str, Any], to: Path) -> Path:
    shutil.copytree(evaluated["output"] / "predictions", to / "predictions")
    return to


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*.parquet")}


def test_exactly_the_changed_training_clips_are_flagged(evaluated: dict[str, Any]) -> None:
    """The match is the clip that the copy was made from; the lag is the roll."""
    limit = evaluated["copies"]["threshold"]["value"]
    found = rows(evaluated["output"], "made")
    assert len(found) == 3 * (5 + len(CHANGES)) + 1
    flagged = {name for name, row in found.items() if row["similarity"] >= limit}
    assert flagged == {
        f"{label}/{kind}-{number}.wav"
        for label in CLASSES
        for number, kind in enumerate(CHANGES, start=3)
    }
    for name in flagged:
        label, kind, number = name.removesuffix(".wav").replace("/", "-").split("-")
        row = found[name]
        assert row["training_clip"] == f"{label}-train-{number}.wav"
        assert row["training_window"] == 0
        assert row["window"] == (kind == "second_window")
        assert row["lag"] == pytest.approx(0.4 if kind == "roll" else 0, abs=0.031)
    silence = found["low/silence.wav"]
    assert silence["similarity"] == pytest.approx(0, abs=1e-3)


def test_metrics_json_holds_shares_pairs_and_what_was_searched(
    evaluated: dict[str, Any], root: Path
) -> None:
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    Draft202012Validator(schema).validate(evaluated["metrics"])
    copies = evaluated["copies"]
    train = 3 * TRAIN + 3
    assert copies["threshold"] == {
        "value": copies["threshold"]["value"], "clips": train, "why": ""
    }  # fmt: skip
    assert {**copies["training"], "digest": ""} == {
        "clips": train, "of": train, "windows": train, "digest": ""
    }  # fmt: skip
    assert list(copies["corpora"]) == ["real", "made", "flat"]
    for name in ("made", "flat"):
        row = copies["corpora"][name]
        assert row["share"]["value"] == pytest.approx(12 / 28)
        assert row["share"]["low"] < 12 / 28 < row["share"]["high"]
        assert row["share"]["of"] == row["clips"] == 28
        similarities = [pair["similarity"] for pair in row["pairs"]]
        assert len(similarities) == 10
        assert similarities == sorted(similarities, reverse=True)
    real = copies["corpora"]["real"]
    assert (real["clips"], real["share"]["value"]) == (3 * OTHERS, 0)


def test_duplicates_among_the_real_clips_come_first_unless_of_one_group(
    evaluated: dict[str, Any],
) -> None:
    pairs = evaluated["copies"]["real_pairs"]
    named = [{pair["clip_id"], pair["training_clip"]} for pair in pairs]
    assert named[0] == {"low-train-0.wav", "low-double.wav"}
    assert pairs[0]["similarity"] > 0.99 > pairs[1]["similarity"]
    assert {"mid-train-0.wav", "mid-again.wav"} not in named
    assert len(pairs) == len({frozenset(pair) for pair in named}) == 10


def test_clips_without_labels_are_searched_too(evaluated: dict[str, Any]) -> None:
    made, flat = (rows(evaluated["output"], name) for name in ("made", "flat"))
    assert {row["label"] for row in flat.values()} == {None}
    assert {row["label"] for row in made.values()} == {*CLASSES}
    for name, row in made.items():
        other = flat[name.replace("/", "-")]
        for key in ("training_clip", "window", "training_window"):
            assert row[key] == other[key]
        assert row["similarity"] == pytest.approx(other["similarity"], abs=1e-6)


def test_every_clip_scored_outside_of_training_has_a_row(evaluated: dict[str, Any]) -> None:
    for corpus in ("real", "made", "flat"):
        for scored, part in zip(
            prediction_parts(str(evaluated["output"] / "predictions"), corpus),
            prediction_parts(str(evaluated["output"] / "copies"), corpus),
            strict=True,
        ):
            clips = storage.read_table(scored, ["clip_id", "split", "label"])
            is_train = pc.fill_null(pc.equal(clips["split"], "train"), False)
            found = storage.read_table(part, ["clip_id", "split", "label"])
            assert found.equals(clips.filter(pc.invert(is_train)))


def test_results_do_not_depend_on_parts_per_task(evaluated: dict[str, Any], tmp_path: Path) -> None:
    for together in (1, 8):
        to = with_predictions(evaluated, tmp_path / str(together))
        assert searched(evaluated["config"], to, together) == evaluated["copies"]
        for corpus in ("real", "made", "flat"):
            assert rows(to, corpus) == rows(evaluated["output"], corpus)
        (one, other) = (
            storage.read_table(str(out / "copies" / "training.parquet"))
            for out in (to, evaluated["output"])
        )
        assert one.equals(other)


def test_a_rerun_computes_only_missing_parts(
    evaluated: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = evaluated["output"] / "copies"
    before = times(folder)
    parts = sum(
        len(parquet.shard_uris(finished_features(name, evaluated["config"])))
        for name in ("real", "made", "flat")
    )
    assert len(before) == parts + 1
    with monkeypatch.context() as patch:
        # Not even the training windows are read.
        patch.setattr("raysound.distributed.evaluation.copies.collect_training", None)
        evaluate(evaluated["config"])
    assert times(folder) == before
    metrics = evaluated["output"] / "metrics.json"
    assert json.loads(metrics.read_text()) == evaluated["metrics"]

    gone = Path(prediction_parts(str(folder), "made")[0])
    gone.unlink()
    assert searched(evaluated["config"], evaluated["output"]) == evaluated["copies"]
    after = times(folder)
    assert {path for path in after if after[path] != before[path]} == {gone}


def test_whole_clips_are_sampled_up_to_the_limit_of_windows(
    evaluated: dict[str, Any], tree: dict[str, Any], tmp_path: Path
) -> None:
    """The console shows it, and copies of other clips are not flagged."""
    train = 3 * TRAIN + 3
    config = changed(tree, training_windows=30)
    found = searched(config, with_predictions(evaluated, tmp_path))
    assert {**found["training"], "digest": ""} == {
        "clips": 30, "of": train, "windows": 30, "digest": ""
    }  # fmt: skip
    assert found["training"]["digest"] != evaluated["copies"]["training"]["digest"]
    assert found["threshold"]["clips"] == 30
    shown = "\n".join(metrics_table({**evaluated["metrics"], "copies": found}))
    assert f"30 of {train} training clips searched" in shown
    real = storage.read_table(str(tmp_path / "copies" / "training.parquet"))
    drawn = {*real["clip_id"].to_pylist()}
    limit = evaluated["copies"]["threshold"]["value"]
    mine, kept = rows(tmp_path, "made"), 0
    assert {row["training_clip"] for row in mine.values()} <= drawn
    for name, row in rows(evaluated["output"], "made").items():
        if row["similarity"] >= limit and row["training_clip"] in drawn:
            assert mine[name]["training_clip"] == row["training_clip"]
            assert mine[name]["similarity"] == pytest.approx(row["similarity"], abs=1e-6)
            kept += 1
        elif row["similarity"] >= limit:
            assert mine[name]["similarity"] < row["similarity"]
    assert 0 < kept < 12

    (line,) = skipped_lines(evaluated["metrics"], {**evaluated["metrics"], "copies": found})
    assert line == "not compared: the share of copies: training clips or threshold differ"


def test_no_training_clip_within_the_limit_is_a_user_error(
    tree: dict[str, Any], tmp_path: Path, evaluated: dict[str, Any]
) -> None:
    """Clips of 1.5 s have eight windows of 0.2 s."""
    other = copy.deepcopy(tree)
    other["output"] = str(tmp_path)
    other["features"]["clip_length"] = 0.2
    other["evaluation"]["copies"]["training_windows"] = 5
    config = from_tree(other, "test")
    extract(config)
    with pytest.raises(UserError, match="training_windows: 5 windows hold no whole training clip"):
        searched(config, tmp_path)


def test_too_few_real_clips_have_no_threshold_and_the_reason_is_shown(
    evaluated: dict[str, Any], tree: dict[str, Any], tmp_path: Path, root: Path
) -> None:
    """Another rate needs no new search."""
    other = copy.deepcopy(tree)
    other["evaluation"]["copies"]["rate"] = 0.01
    before = times(evaluated["output"] / "copies")
    shutil.copytree(Path(tree["output"]), tmp_path / "out", copy_function=shutil.copy2)
    other["output"] = str(tmp_path / "out")

    evaluate(from_tree(other, "test"))

    output = tmp_path / "out" / "evaluation"
    assert [*times(output / "copies").values()] == [*before.values()]
    metrics = json.loads((output / "metrics.json").read_text())
    schema = json.loads((root / "docs/metrics.schema.json").read_text())
    Draft202012Validator(schema).validate(metrics)
    why = "75 real clips: a threshold at 1.00% needs at least 99"
    assert metrics["copies"]["threshold"] == {"value": None, "clips": 75, "why": why}
    for row in metrics["copies"]["corpora"].values():
        assert (row["share"]["value"], row["share"]["why"]) == (None, why)
    assert why in "\n".join(metrics_table(metrics))
    assert why in (output / "report.html").read_text()


def test_copies_are_in_page_events_console_and_comparison(
    evaluated: dict[str, Any], tmp_path: Path
) -> None:
    metrics = evaluated["metrics"]
    page = (evaluated["output"] / "report.html").read_text()
    section = page[page.index('<section id="copies">') :]
    section = section[: section.index("</section>")]
    # Three pairs of each generated corpus, two of real clips.
    assert section.count('<li class="pair"') == 8
    assert section.count("<audio") == section.count("<img") == 16
    lines = [line.split() for line in metrics_table(metrics)]
    best = metrics["copies"]["corpora"]["made"]["pairs"][0]
    (made,) = (line for line in lines if line[-1] == best["training_clip"] and line[0] == "made")
    assert made[1:4] == ["28", "42.9%", "26.5%"]
    assert made[-2] == f"{best['clip_id']},"
    write_events(metrics, str(tmp_path / "events"))
    (file,) = (tmp_path / "events").iterdir()
    for tag in (b"copies.share/made", b"copies.share/real"):
        assert tag in file.read_bytes()
    shares = [row for row in compare(metrics, metrics) if row["metric"] == "copies.share"]
    assert [row["corpus"] for row in shares] == ["made", "flat"]
    assert list(skipped_lines(metrics, metrics)) == []
    off = {**metrics, "copies": None}
    assert list(skipped_lines(metrics, off)) == [
        "not compared: the share of copies, which only the first has"
    ]
    assert not [row for row in compare(off, metrics) if row["metric"] == "copies.share"]


def test_pairs_take_a_quarter_of_the_capacity_for_sounds(
    evaluated: dict[str, Any], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A pair with a missing sound is left out with a warning."""
    config, copies = evaluated["config"], evaluated["copies"]
    folders = {name: finished_features(name, config) for name in ("real", "made", "flat")}
    for room, most in ((1000, 8), (40, 5), (8, 1), (7, 0)):
        shown = load_pairs(copies, folders, config, room)
        assert len(shown) == most
        assert [(one.corpus, one.rank) for one in shown[:3]] == [
            ("made", 0), ("flat", 0), (None, 0)
        ][:most]  # fmt: skip
    assert load_pairs(None, folders, config, 1000) == []
    best = copies["corpora"]["made"]["pairs"][0]
    (one, *_) = load_pairs(copies, folders, config, 1000)
    expected, _ = soundfile.read(Path(config.corpora.real.path) / best["training_clip"])
    found, _ = soundfile.read(io.BytesIO(one.training.audio))
    assert np.abs(found - expected).max() < 1e-3

    path = Path(config.corpora.generated["made"]) / best["clip_id"]
    away = path.rename(tmp_path / "away.wav")
    try:
        shown = load_pairs(copies, folders, config, 1000)
    finally:
        away.rename(path)
    assert len(shown) == 7
    assert ("made", 0) not in [(one.corpus, one.rank) for one in shown]
    assert f"made: {best['clip_id']} can't be shown in the report: no such file" in caplog.text


def test_the_search_for_copies_is_off_by_default(trained: dict[str, Any]) -> None:
    output = Path(trained["config"].output) / "evaluation"
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["copies"] is None
    assert not (output / "copies").exists()
    assert 'id="copies"' not in (output / "report.html").read_text()
    assert not [line for line in metrics_table(metrics) if line.startswith("copies")]
