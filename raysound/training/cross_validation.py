"""Summary of a cross-validation over folds and seeds: means, standard deviations and a table."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np

from raysound.metrics.intervals import wilson_interval


def natural_sort_key(name: str) -> tuple[tuple[bool, int, str], ...]:
    """A sort key that puts 10 after 9."""
    return tuple((not part.isdigit(), int(part) if part.isdigit() else 0, part)
                 for part in re.findall(r"\d+|\D+", name))  # fmt: skip


def summarise(results: list[dict[str, Any]], ensembles: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and sample standard deviation of the accuracy over folds and over seeds.

    Args:
        results: a row per classifier with fold, seed, clips, right and accuracy.
        ensembles: the same for the ensemble of the seeds of each fold; empty with one seed.
    """
    folds, seeds = (list(dict.fromkeys(row[key] for row in results)) for key in ("fold", "seed"))
    accuracy = np.array([row["accuracy"] for row in results]).reshape(len(folds), len(seeds))
    clips, right = (sum(row[key] for row in results) for key in ("clips", "right"))
    low, high = wilson_interval(right, clips)
    return {
        "folds": folds,
        "seeds": seeds,
        "accuracy": float(accuracy.mean()),
        "by_fold": accuracy.mean(axis=1).tolist(),
        "by_seed": accuracy.mean(axis=0).tolist(),
        "spread_over_folds": spread(accuracy.mean(axis=1)),
        "spread_over_seeds": spread(accuracy.mean(axis=0)),
        "of_all_clips": {"clips": clips, "right": right, "low": low, "high": high},
        "classifiers": results,
        "ensembles": [{key: row[key] for key in row if key != "seed"} for row in ensembles],
    }


def spread(values: np.ndarray) -> float | None:
    """Sample standard deviation; None for a single value."""
    return float(values.std(ddof=1)) if len(values) > 1 else None


def summary_table(summary: dict[str, Any]) -> Iterator[str]:
    """The summary as lines of text: a row per fold, a column per seed."""
    seeds = summary["seeds"]
    ensembles = [row["accuracy"] for row in summary["ensembles"]]
    last = "  ensemble" if ensembles else ""
    yield "fold        " + "".join(f"{f'seed {seed}':>10}" for seed in seeds) + f"      mean{last}"
    classifiers, of_fold = iter(summary["classifiers"]), iter(ensembles)
    for fold, mean in zip(summary["folds"], summary["by_fold"], strict=True):
        cells = "".join(f"{next(classifiers)['accuracy']:10.1%}" for _ in seeds)
        last = f"{next(of_fold):10.1%}" if ensembles else ""
        yield f"{fold if fold is not None else 'own split':<12}{cells}{mean:10.1%}{last}"
    cells = "".join(f"{value:10.1%}" for value in summary["by_seed"])
    last = f"{np.mean(ensembles):10.1%}" if ensembles else ""
    yield f"{'mean':<12}{cells}{summary['accuracy']:10.1%}{last}"
    for kind in ("folds", "seeds"):
        if summary[f"spread_over_{kind}"] is not None:
            yield f"standard deviation over {kind}: {summary[f'spread_over_{kind}']:.1%}"
