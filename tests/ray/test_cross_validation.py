"""A classifier for each fold and seed: its training clips, its test clips, and the sums."""

import csv
import json
import math
import statistics
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import soundfile

from raysound.distributed.commands import train_command
from raysound.distributed.evaluation.evaluate import evaluate
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import finished_features
from raysound.distributed.training.cas import train_on_real
from raysound.distributed.training.runs import split_clips, split_digest
from raysound.distributed.training.train import train
from raysound.errors import UserError
from raysound.evaluation.predictions import read_predictions
from raysound.settings.loading import from_tree
from raysound.settings.schema import Config
from raysound.training import checkpoint
from raysound.training.history import read_history

# The fixture, which trains, counts towards the first test that wants it.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]
FOLDS, SEEDS = ["2", "10"], [5, 6]


def with_folds(tones: Path, folder: Path, folds: dict[str, str], noise: float = 0.0) -> Path:
    """A copy of the tones with a table that says each one's fold, by the end of its name."""
    rng = np.random.default_rng(0)
    rows = [("file_name", "label", "fold")]
    for wav in sorted(tones.rglob("*.wav")):
        name = str(wav.relative_to(tones))
        waveform, rate = soundfile.read(wav)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        noisy = waveform + noise * rng.standard_normal(len(waveform))
        soundfile.write(folder / name, noisy.clip(-1, 1), rate)
        (fold,) = (fold for end, fold in folds.items() if wav.stem.endswith(end))
        rows.append((name, wav.parent.name, fold))
    with open(folder / "metadata.csv", "w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder


def tree_of(corpus: Path, output: Path) -> dict[str, Any]:
    return {
        "name": "folds",
        "output": str(output),
        "corpora": {"real": {"path": str(corpus)}},
        "features": {
            "clip_length": 0.5, "sample_rate": 8000, "hop_length": 160, "n_fft": 512,
            "n_mels": 24, "f_min": 0, "f_max": 4000,
        },
        "model": {"name": "cnn"},
        "training": {"epochs": 2, "batch_size": 8, "folds": "all", "seeds": 2, "seed": SEEDS[0]},
        "compute": {
            "workers": 1, "cpus_per_worker": 0.5, "shard_clips": 16, "use_gpu": False,
            "num_cpus": 2,
        },
    }  # fmt: skip


def run(config: Config) -> tuple[Path, str]:
    """The file with the sums, and the table above its name."""
    table, _, last_line = train_command(config).rpartition("\n")
    return Path(last_line.removeprefix("cross-validation: ")), table


@pytest.fixture(scope="module")
def validated(tones: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Four classifiers of two folds and two seeds; in so much noise they err now and then."""
    folder = tmp_path_factory.mktemp("folds")
    ends = dict.fromkeys("01234", "10") | dict.fromkeys("56789", "2")
    config = from_tree(
        tree_of(with_folds(tones["real"], folder / "corpus", ends, 0.5), folder / "out"), "test"
    )
    extract(config)
    uri, printed = run(config)
    return {"config": config, "uri": uri, "printed": printed, "sums": json.loads(uri.read_text())}


def predictions(classifier: dict[str, Any]) -> list[dict[str, Any]]:
    """What a classifier said of its test clips."""
    return pa.concat_tables(
        read_predictions(f"{classifier['run']}/predictions", "real")
    ).to_pylist()


def test_each_clip_is_tested_once_per_seed_by_the_classifier_of_its_fold(
    validated: dict[str, Any],
) -> None:
    """Folds are sorted by number."""
    sums = validated["sums"]
    with open(Path(validated["config"].corpora.real.path) / "metadata.csv") as file:
        fold_of = {row["file_name"]: row["fold"] for row in csv.DictReader(file)}

    assert (sums["folds"], sums["seeds"]) == (FOLDS, SEEDS)
    assert [(classifier["fold"], classifier["seed"]) for classifier in sums["classifiers"]] == [
        (fold, seed) for fold in FOLDS for seed in SEEDS
    ]
    for seed in SEEDS:
        tested = Counter(
            (row["clip_id"], classifier["fold"])
            for classifier in sums["classifiers"]
            if classifier["seed"] == seed
            for row in predictions(classifier)
        )
        assert tested == dict.fromkeys(fold_of.items(), 1)
    assert len({classifier["run"] for classifier in sums["classifiers"]}) == 4


def test_no_classifier_trains_on_its_test_fold(validated: dict[str, Any]) -> None:
    config: Config = validated["config"]
    folder = finished_features("real", config)
    for classifier in validated["sums"]["classifiers"]:
        tree = config.model_dump()
        tree["corpora"]["real"]["split"]["test_folds"] = [classifier["fold"]]
        clips = split_clips(Config.model_validate(tree), folder)
        parts: dict[str, set[str]] = {"train": set(), "validation": set(), "test": set()}
        for row in clips.to_pylist():
            parts[row["split"]].add(row["clip_id"])
        metadata = checkpoint.load_metadata(classifier["run"])

        assert metadata.data == {
            "split_digest": split_digest(clips), **{name: len(of) for name, of in parts.items()}
        }  # fmt: skip
        assert parts["test"] == {row["clip_id"] for row in predictions(classifier)}
        assert not parts["test"] & (parts["train"] | parts["validation"])
        assert len(parts["train"]) + len(parts["validation"]) + len(parts["test"]) == 66
        assert parts["validation"]
        history = read_history(f"{classifier['run']}/history.jsonl")
        assert {row["train_clips"] for row in history} == {len(parts["train"])}
        assert metadata.training["seed"] == classifier["seed"]


def test_seeds_train_different_classifiers_on_the_same_clips(validated: dict[str, Any]) -> None:
    for one, other in zip(*[iter(validated["sums"]["classifiers"])] * 2, strict=True):
        all_metadata = [checkpoint.load_metadata(classifier["run"]) for classifier in (one, other)]
        losses = [
            read_history(f"{classifier['run']}/history.jsonl")[0]["train_loss"]
            for classifier in (one, other)
        ]
        assert all_metadata[0].data == all_metadata[1].data
        assert losses[0] != losses[1]


def test_the_summary_matches_the_predictions(validated: dict[str, Any]) -> None:
    sums = validated["sums"]
    rights, accuracies, clips = [], {}, 0
    for classifier in sums["classifiers"]:
        console = predictions(classifier)
        right = [row["prediction"] == row["label"] for row in console]
        rights += right
        clips += len(console)
        accuracies[classifier["fold"], classifier["seed"]] = sum(right) / len(right)
        assert (classifier["clips"], classifier["right"]) == (len(right), sum(right))
        assert classifier["accuracy"] == sum(right) / len(right)
    by_fold = [statistics.mean(accuracies[fold, seed] for seed in SEEDS) for fold in FOLDS]
    by_seed = [statistics.mean(accuracies[fold, seed] for fold in FOLDS) for seed in SEEDS]
    # Wilson 1927, at 1.96 standard deviations.
    p, z, n = sum(rights) / clips, 1.959964, clips
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))

    assert clips == 2 * 66
    assert len(set(accuracies.values())) > 1
    assert sums["by_fold"] == pytest.approx(by_fold)
    assert sums["by_seed"] == pytest.approx(by_seed)
    assert sums["accuracy"] == pytest.approx(statistics.mean(by_fold))
    assert sums["spread_over_folds"] == pytest.approx(statistics.stdev(by_fold))
    assert sums["spread_over_seeds"] == pytest.approx(statistics.stdev(by_seed))
    counts = sums["of_all_clips"]
    assert (counts["clips"], counts["right"]) == (clips, sum(rights))
    assert counts["low"] == pytest.approx((middle - half) / (1 + z * z / n), abs=1e-5)
    assert counts["high"] == pytest.approx((middle + half) / (1 + z * z / n), abs=1e-5)


def test_the_seeds_of_a_fold_are_tested_as_an_ensemble(validated: dict[str, Any]) -> None:
    """It predicts the class of the highest mean probability."""
    sums = validated["sums"]

    assert [row["fold"] for row in sums["ensembles"]] == FOLDS
    for ensemble in sums["ensembles"]:
        runs = [row["run"] for row in sums["classifiers"] if row["fold"] == ensemble["fold"]]
        mean = np.mean(
            [[row["probabilities"] for row in predictions({"run": run})] for run in runs], axis=0
        )
        found = predictions(ensemble)
        labels = checkpoint.load_metadata(ensemble["run"]).labels
        assert [row["prediction"] for row in found] == [labels[i] for i in mean.argmax(axis=1)]
        right = sum(row["prediction"] == row["label"] for row in found)
        assert (ensemble["right"], ensemble["accuracy"]) == (right, right / len(found))


def test_several_seeds_without_folds_evaluate_as_an_ensemble(validated: dict[str, Any]) -> None:
    """The classifiers of fold 2 exist already."""
    tree = validated["config"].model_dump()
    tree["training"]["folds"] = None
    tree["corpora"]["real"]["split"] |= {"test_folds": ["2"], "validation_folds": []}
    config = from_tree(tree, "test")
    train(config)

    metrics = evaluate(config)

    ensemble = validated["sums"]["ensembles"][0]
    assert metrics["classifier"]["run"] == Path(ensemble["run"]).name
    assert train_on_real(config) == ensemble["run"]
    assert metrics["classifier"]["validation_accuracy"] is None
    assert metrics["corpora"]["real"]["accuracy"]["value"] == ensemble["accuracy"]


def test_the_table_shows_each_classifier_and_the_means(validated: dict[str, Any]) -> None:
    sums = validated["sums"]
    cells = [f"{classifier['accuracy']:.1%}" for classifier in sums["classifiers"]]
    ensembles = [row["accuracy"] for row in sums["ensembles"]]
    expected = [["fold", "seed", "5", "seed", "6", "mean", "ensemble"]]
    for index, fold in enumerate(FOLDS):
        last = f"{ensembles[index]:.1%}"
        of_fold = f"{sums['by_fold'][index]:.1%}"
        expected.append([fold, *cells[2 * index : 2 * index + 2], of_fold, last])
    means = [*sums["by_seed"], sums["accuracy"], statistics.mean(ensembles)]
    expected.append(["mean", *(f"{value:.1%}" for value in means)])
    for kind in ("folds", "seeds"):
        spread = f"{sums[f'spread_over_{kind}']:.1%}"
        expected.append(["standard", "deviation", "over", f"{kind}:", spread])

    assert [line.split() for line in validated["printed"].splitlines()] == expected


def test_a_second_run_trains_nothing(validated: dict[str, Any]) -> None:
    runs = Path(validated["config"].output) / "training"

    def trained() -> dict[Path, int]:
        return {
            path: path.stat().st_mtime_ns
            for pattern in ("*/history.jsonl", "*/checkpoint.json", "*/model.safetensors")
            for path in runs.glob(pattern)
        }

    before = trained()

    uri, printed = run(validated["config"])

    # Four classifiers with three files each, and two ensembles without a history.
    assert len(before) == 16
    assert trained() == before
    assert (uri, printed) == (validated["uri"], validated["printed"])
    assert json.loads(uri.read_text()) == validated["sums"]


def without_folds(tree: dict[str, Any]) -> Config:
    """The config of one classifier on the same features."""
    return from_tree(tree | {"training": tree["training"] | {"folds": None}}, "test")


def test_a_corpus_without_folds_is_refused(tones: dict[str, Path], tmp_path: Path) -> None:
    tree = tree_of(tones["real"], tmp_path)
    config = from_tree(tree, "test")

    with pytest.raises(UserError, match=r"needs a real corpus with a column fold.*; it has 0$"):
        extract(config)
    extract(without_folds(tree))
    with pytest.raises(UserError, match=r"needs a real corpus with a column fold.*; it has 0$"):
        train(config)
    assert not (tmp_path / "training").exists()


def test_a_single_fold_is_refused(tones: dict[str, Path], tmp_path: Path) -> None:
    corpus = with_folds(tones["real"], tmp_path / "corpus", {"": "1"})
    tree = tree_of(corpus, tmp_path / "out")
    extract(without_folds(tree))

    with pytest.raises(UserError, match=r"of two or more folds; it has 1$"):
        train(from_tree(tree, "test"))


def test_a_fold_without_training_clips_of_a_class_raises_before_any_training(
    tones: dict[str, Path], tmp_path: Path
) -> None:
    """All clips of `mid` are in fold 2, so the second of three classifiers can't be trained."""
    corpus = with_folds(tones["real"], tmp_path / "corpus", {"": "1"})
    table = corpus / "metadata.csv"
    rows = list(csv.reader(table.read_text().splitlines()))
    for index, row in enumerate(rows[1:]):
        row[2] = "2" if row[1] == "mid" else "13"[index % 2]
    table.write_text("\n".join(map(",".join, rows)))
    tree = tree_of(corpus, tmp_path / "out")
    extract(without_folds(tree))

    with pytest.raises(UserError, match="no training clip is left for the classes mid"):
        train(from_tree(tree, "test"))

    assert not (tmp_path / "out" / "training").exists()
