"""ESC-10's five folds with a frame every 10 ms, in as many epochs as the time allows.

python benchmarks/gpu_folds.py extract data/esc10 benchmarks/gpu
python benchmarks/gpu_folds.py train benchmarks/gpu --seconds 240 [--output DIR] [--smoke]

`extract` makes the features, which are small enough to be carried to a host that has no sounds:
those of configs/esc10-folds.yaml with a frame every 10 ms, as float16. `train` follows the recipe
of that config: it measures some epochs of the first fold, fixes the number of epochs so that all
folds fit, then trains a classifier for each fold and tests it on the clips that it never saw, with
the last epoch's weights. A line of the table is printed as each fold ends. `--smoke` takes sounds
by formula, two folds and a small model instead.
"""

import argparse
import csv
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import torch

from raysound.distributed.cluster.placement import plan_workers
from raysound.distributed.cluster.session import ray_session
from raysound.distributed.evaluation.score import score_corpora
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.extraction.synthesize import make_formula_corpus
from raysound.distributed.training.runs import run_folder, split_clips
from raysound.distributed.training.train import Variant, variants
from raysound.distributed.training.trainer import (
    classifier_metadata,
    export_classifier,
    make_loop_config,
    run_workers,
)
from raysound.distributed.training.training_data import load_training_data
from raysound.distributed.training.worker import train_alone
from raysound.evaluation.predictions import read_predictions
from raysound.features import parquet
from raysound.settings.loading import load
from raysound.settings.schema import Config
from raysound.settings.synthesis import FormulaSettings
from raysound.training.history import read_history

ROOT = Path(__file__).resolve().parents[1]
FEATURES = ["features.hop_length=441", "features.dtype=float16"]
SMALL = [
    "features.clip_length=0.5", "features.sample_rate=8000", "features.hop_length=160",
    "features.n_fft=512", "features.n_mels=24", "features.f_max=4000", "features.dtype=float16",
    "model.name=cnn", "training.warmup_epochs=0",
]  # fmt: skip
# Epochs by which the time of one is measured; the first, which warms up, is not counted.
MEASURED = 6
# Left of the time for what the measured epochs don't show.
SPARE = 0.1


def with_epochs(config: Config, epochs: int) -> Config:
    tree = config.model_dump()
    tree["training"]["epochs"] = epochs
    return Config.model_validate(tree)


def small_corpus(folder: Path) -> str:
    """Sounds by formula, in two folds."""
    settings = FormulaSettings(output=str(folder), clips_per_class=4, seconds=0.5, sample_rate=8000)
    corpus = Path(make_formula_corpus("real", settings))
    with open(corpus / "metadata.csv", "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["file_name", "label", "fold"])
        for number, wav in enumerate(sorted(corpus.rglob("*.wav"))):
            rows.writerow([wav.relative_to(corpus), wav.parent.name, 1 + number % 2])
    return str(corpus)


def job_for(config: Config, folder: str, run: str) -> tuple[dict[str, Any], Any, Any]:
    """The settings, the data and the metadata of a worker."""
    material = load_training_data(folder, split_clips(config, folder))
    note = classifier_metadata(config, material)
    return make_loop_config(config, material, note, run, plan_workers(config)[1]), material, note


def seconds_an_epoch(config: Config, folder: str) -> tuple[float, float]:
    """Of a training in this process, with its checkpoint; and of the training alone."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    ends: list[float] = []
    with tempfile.TemporaryDirectory() as run:
        job, material, _ = job_for(with_epochs(config, MEASURED), folder, run)
        datasets = material.datasets(job)
        train_alone(job, device, datasets, lambda *_, **__: ends.append(time.monotonic()))
        history = read_history(f"{run}/history.jsonl")
    between = median(after - before for before, after in pairwise(ends))
    return between, median(row["seconds"] for row in history[1:])


def train_and_test(config: Config, folder: str) -> tuple[int, int]:
    """Clips of the fold that were recognised, and all of them.

    As `jobs/train.py` does, which would first compare the features with the sounds: they are not
    here.
    """
    run = run_folder(config, folder)
    job, material, note = job_for(config, folder, run)
    result = run_workers(job, plan_workers(config)[0], material)
    export_classifier(run, result, note, config.training)
    clips = split_clips(config, folder)
    test = clips.filter(pc.equal(clips["split"], "test"))
    score_corpora({"real": folder}, test, run, config, f"{run}/predictions")
    parts = read_predictions(f"{run}/predictions", "real", ["label", "prediction"])
    rows = pa.concat_tables(parts)
    return pc.sum(pc.equal(rows["label"], rows["prediction"])).as_py(), len(rows)


def fitting_epochs(seconds: float, folds: int, fixed: float, epoch: float, most: int) -> int:
    """Epochs of each fold, so that all folds fit, but no more than the recipe has.

    Args:
        seconds: for all folds.
        folds: how many there are.
        fixed: seconds of a fold beside its epochs.
        epoch: seconds of one.
        most: that the recipe has.
    """
    return max(1, min(most, int((seconds * (1 - SPARE) / folds - fixed) / epoch)))


def cross_validate(classifiers: list[Variant], folder: str, deadline: float) -> None:
    """Prints the table, fold by fold."""
    first, most = classifiers[0].config, classifiers[0].config.training.epochs
    whole, alone = seconds_an_epoch(first, folder)
    began = time.monotonic()
    train_and_test(with_epochs(first, 1), folder)
    fixed = time.monotonic() - began
    left = deadline - time.monotonic()
    epochs = fitting_epochs(left, len(classifiers), fixed, whole, most)
    print(
        f"{first.model.name}, ({first.features.n_mels}, {first.features.n_frames}), {epochs} of "
        f"the recipe's {most} epochs: an epoch takes {whole:.2f} s with its checkpoint, "
        f"{alone:.2f} s without, a fold {fixed:.1f} s beside its epochs.\n\n"
        "| fold | accuracy | clips | mean so far | seconds |\n|---|---|---|---|---|",
        flush=True,
    )
    accuracies: list[float] = []
    for classifier in classifiers:
        began = time.monotonic()
        right, clips = train_and_test(with_epochs(classifier.config, epochs), folder)
        accuracies.append(right / clips)
        print(
            f"| {classifier.fold} | {accuracies[-1]:.1%} | {clips} | {mean(accuracies):.1%} "
            f"| {time.monotonic() - began:.1f} |",
            flush=True,
        )
    print(f"\nmean {mean(accuracies):.1%}, standard deviation over folds {stdev(accuracies):.1%}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    extract = commands.add_parser("extract")
    extract.add_argument("corpus", help="ESC-10 as wav")
    extract.add_argument("carried", help="the folder that gets the features")
    train = commands.add_parser("train")
    train.add_argument("carried", help="the folder that has the features")
    train.add_argument("--output", default="runs/gpu-folds")
    train.add_argument("--seconds", type=float, default=240)
    train.add_argument("--smoke", action="store_true")
    options = parser.parse_args()
    deadline = time.monotonic() + getattr(options, "seconds", 0)
    recipe = str(ROOT / "configs" / "esc10-folds.yaml")
    if options.command == "extract":
        given = [f"output={options.carried}", f"corpora.real.path={options.corpus}"]
        config = load(recipe, [*FEATURES, *given])
        with ray_session(config.compute):
            print(extract_corpus("real", config))
        return
    config = load(recipe, [*(SMALL if options.smoke else FEATURES), f"output={options.output}"])
    with ray_session(config.compute), tempfile.TemporaryDirectory() as made:
        folder = parquet.folder(options.carried, "real", config.features)
        if options.smoke:
            config = with_epochs(config, 2)
            tree = config.model_dump()
            tree["corpora"]["real"]["path"] = small_corpus(Path(made))
            config = Config.model_validate(tree)
            folder = extract_corpus("real", config)
        cross_validate(list(variants(config, folder)), folder, deadline)


if __name__ == "__main__":
    main()
