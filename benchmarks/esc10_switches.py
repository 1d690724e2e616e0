"""The gain of each part of the recipe for ESC-10, on fold 1.

python benchmarks/esc10_switches.py data/esc10 [--rows recipe crops] [--seeds 2] [--epochs 120]

Each row trains the recipe of configs/esc10-folds.yaml with one change, one classifier per seed,
and tests the last epoch on fold 1. Folds 2 to 5 are not tested. A finished row is not trained
again.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FOLD_1 = ["training.folds=null", "corpora.real.split.test_folds=[1]"]
CROPS = ["training.crop_length=2", "training.test_crops=10"]
# Name of a row → the settings that it changes. The log-mels of 22 kHz have the same 33 frames per
# second as the recipe's.
ROWS = {
    "recipe": [],
    "no mixing": ["training.augment.mixup=0"],
    "between-class": ["training.augment.mixup=0", "training.augment.between_class=true"],
    "time stretch": ["training.augment.time_stretch=0.25"],
    "crops": CROPS,
    "padded crops": [*CROPS, "training.augment.padding=0.5"],
    "22 kHz": [
        "features.sample_rate=22050", "features.hop_length=662", "features.f_max=11025",
    ],
    "50 frames per second": ["features.hop_length=882"],
    "240 epochs": ["training.epochs=240"],
    "cnn10": ["model.name=cnn10"],
    "cnn": ["model.name=cnn"],
}  # fmt: skip


def train_row(changes: list[str], options: argparse.Namespace) -> tuple[list[float], float]:
    """Accuracies of the seeds, their mean, and that of their ensemble; and the minutes taken."""
    settings = [
        f"corpora.real.path={options.corpus}", f"output={options.output}", *FOLD_1,
        f"training.seeds={options.seeds}", f"training.epochs={options.epochs}", *changes,
    ]  # fmt: skip
    began = time.monotonic()
    for job in ("extract", "train"):
        command = [sys.executable, f"jobs/{job}.py", "configs/esc10-folds.yaml", *settings]
        printed = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    minutes = (time.monotonic() - began) / 60
    written = next(line for line in printed.stdout.splitlines() if line.startswith("cross-valid"))
    summary = json.loads(Path(written.split(": ", 1)[1]).read_text())
    ensembles = [row["accuracy"] for row in summary["ensembles"]]
    return [*summary["by_seed"], summary["accuracy"], *ensembles], minutes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("corpus", type=Path, help="ESC-10 as wav")
    parser.add_argument("--rows", nargs="+", choices=[*ROWS], default=[*ROWS])
    parser.add_argument("--seeds", type=int, default=2, choices=range(2, 10))
    parser.add_argument("--epochs", type=int, default=120)
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "esc10-switches")
    options = parser.parse_args()
    options.corpus, options.output = options.corpus.resolve(), options.output.resolve()
    seeds = [f"seed {seed}" for seed in range(options.seeds)]
    columns = ["", *seeds, "mean", "ensemble", "minutes"]
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|", flush=True)
    for name in options.rows:
        accuracies, minutes = train_row(ROWS[name], options)
        cells = [name, *(f"{accuracy:.1%}" for accuracy in accuracies), f"{minutes:.0f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
