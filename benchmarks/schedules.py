"""The four schedules of configs/seed-*.yaml, for four models and two clip lengths, on one fold.

python benchmarks/schedules.py [--models cnn ...] [--clip-lengths 2.5 ...] [key=value ...]

Trains each once for equal epochs, tests it, prints a markdown table and draws the validation curves
into docs/schedules-2.5s.svg and the like. Interrupted, it goes on where it was.
As many are trained at a time as the machine has CPUs for.
"""

import argparse
import logging
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

from raysound import storage
from raysound.distributed.cluster.session import ray_session
from raysound.distributed.extraction.extract import extract_corpus
from raysound.distributed.training.train import Variant, train_variants
from raysound.settings.loading import load
from raysound.training.history import read_history

ROOT = Path(__file__).resolve().parents[1]
SCHEDULES = {
    "fixed": "fixed rate",
    "step": "StepLR",
    "plateau-loss": "plateau on loss",
    "plateau-accuracy": "plateau on accuracy",
}
MODELS = ("cnn", "alexnet", "resnetish18", "resnetish34")
CLIP_LENGTHS = (2.5, 5.0)


def classifier(schedule: str, model: str, length: float, overrides: list[str]) -> Variant:
    """One cell of the table."""
    config = load(
        str(ROOT / "configs" / f"seed-{schedule}.yaml"),
        [f"model.name={model}", f"features.clip_length={length}", *overrides],
    )
    name = f"{model}, {SCHEDULES[schedule]}, {length:g} s"
    return Variant(None, config.training.seed, config, name)


def trained(
    length: float, models: list[str], overrides: list[str]
) -> dict[tuple[str, str, float], dict[str, Any]]:
    """The cells of a clip length: their curves, and how they do on the test fold."""
    keys = [(schedule, model, length) for model in models for schedule in SCHEDULES]
    classifiers = [classifier(*key, overrides) for key in keys]
    rows = train_variants(classifiers, extract_corpus("real", classifiers[0].config))
    cells = {}
    for key, row in zip(keys, rows, strict=True):
        history = read_history(storage.join(row["run"], "history.jsonl"))
        best = max(history, key=lambda epoch: epoch["validation_accuracy"])
        cells[key] = {**row, "history": history, "best": best}
    return cells


def draw(
    cells: dict[tuple[str, str, float], dict[str, Any]], models: list[str], lengths: list[float]
) -> None:
    """Validation accuracy by epoch: a picture a length, a column a model, a line a schedule."""
    for length in lengths:
        figure, (axes,) = plt.subplots(
            1, len(models), figsize=(3.5 * len(models), 3), sharey=True, layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for axis, model in zip(axes, models, strict=True):
            for schedule, words in SCHEDULES.items():
                history = cells[schedule, model, length]["history"]
                epochs = [row["epoch"] for row in history]
                accuracy = [row["validation_accuracy"] for row in history]
                axis.plot(epochs, accuracy, label=words, linewidth=1)
            axis.set_title(f"{model}, {length:g} s", fontsize=10)
            axis.set_xlabel("epoch")
            axis.grid(alpha=0.3)
        axes[0].set_ylabel("validation accuracy")
        axes[0].legend(fontsize=8)
        picture = ROOT / "docs" / f"schedules-{length:g}s.svg"
        figure.savefig(picture, metadata={"Date": None})
        plt.close(figure)


def main() -> None:
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--clip-lengths", nargs="+", type=float, default=list(CLIP_LENGTHS))
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    models, lengths, overrides = given.models, given.clip_lengths, given.overrides
    first = load(str(ROOT / "configs" / "seed-fixed.yaml"), overrides)
    with ray_session(first.compute):
        cells = {
            key: cell
            for length in lengths
            for key, cell in trained(length, models, overrides).items()
        }
    draw(cells, models, lengths)
    print("| model | clip length | " + " | ".join(SCHEDULES.values()) + " |")
    print("|---" * (2 + len(SCHEDULES)) + "|")
    for length in lengths:
        for model in models:
            found = [cells[schedule, model, length] for schedule in SCHEDULES]
            best = max(cell["best"]["validation_accuracy"] for cell in found)
            texts = (
                f"{'**' if cell['best']['validation_accuracy'] == best else ''}"
                f"{cell['best']['validation_accuracy']:.1%}"
                f"{'**' if cell['best']['validation_accuracy'] == best else ''}"
                f" ({cell['best']['epoch']}) / {cell['accuracy']:.1%}"
                for cell in found
            )
            print(f"| {model} | {length:g} s | {' | '.join(texts)} |")


if __name__ == "__main__":
    main()
