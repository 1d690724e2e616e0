"""How often two equal generators seem to differ: random halves of one corpus, compared.

python benchmarks/equal_halves.py EVALUATION CORPUS [--draws 20]

EVALUATION is the folder `evaluation` of an output, CORPUS one of its generated corpora. Each draw
splits the clips into two halves at random, computes all metrics of both, in the classifier's
embedding and in those of `evaluation.embeddings`, and compares them as `raysound compare` does.
Every difference is false. Prints a Markdown table: by metric, in how many draws p is below 0.05 for
this metric alone, and after Holm's correction over all metrics of a draw.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from raysound.evaluation.comparison import compare
from raysound.evaluation.partial_sums import to_scored
from raysound.evaluation.predictions import as_array, read_predictions
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import EMBEDDING_METRICS, METRICS
from raysound.metrics.fidelity import Reference, fidelity_report, prepare
from raysound.metrics.intervals import wilson_interval
from raysound.metrics.significance import p_value, significant


def read(folder: Path, corpus: str, columns: list[str]) -> tuple[pa.Table, pa.Table]:
    """Training clips, and all others, of a corpus."""
    table = pa.concat_tables(read_predictions(str(folder), corpus, ["split", *columns]))
    is_train = pc.fill_null(pc.equal(table["split"], "train"), False)
    return table.filter(is_train), table.filter(pc.invert(is_train))


def halves(clips: int, draws: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Row numbers of two random halves of as many clips."""
    for draw in range(draws):
        rows = np.random.default_rng(draw).permutation(clips)
        yield rows[: clips // 2], rows[clips // 2 : clips // 2 * 2]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("evaluation", type=Path)
    parser.add_argument("corpus")
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    metrics = json.loads((given.evaluation / "metrics.json").read_text())
    labels = metrics["classifier"]["labels"]
    set_size = metrics["reference"]["set_size"]
    columns = ["label", "probabilities", "embedding"]
    predictions = given.evaluation / "predictions"
    real = RealClips.of(to_scored(read(predictions, "real", columns)[0], labels))
    clips = to_scored(read(predictions, given.corpus, columns)[1], labels)
    found = {name: read_embedding(given.evaluation, name, given.corpus)
             for name in metrics["embeddings"]}  # fmt: skip

    def side(rows: np.ndarray) -> dict[str, Any]:
        """What metrics.json says of a corpus of these clips."""
        some: Scored = clips.take(rows)
        sizes = np.bincount(some.truth, minlength=len(labels)).tolist()
        report = corpus_report(some, real, labels, min(set_size, len(rows)), sizes)
        embeddings = {
            name: {
                "digest": name,
                "corpora": {
                    given.corpus: fidelity_report(
                        embedding[rows], reference, seed=0, set_size=min(set_size, len(rows))
                    )
                },
            }
            for name, (reference, embedding) in found.items()
        }
        return {
            "classifier": metrics["classifier"],
            "corpora": {given.corpus: {"role": "generated", **report}},
            "embeddings": embeddings,
            "copies": None,
        }

    alone, corrected = Counter[str](), Counter[str]()
    tested: dict[str, int] = Counter()
    any_alone = any_corrected = 0
    for one, other in halves(len(clips.truth), given.draws):
        first, second = side(one), side(other)
        by_metric = {row["metric"]: row["p_adjusted"] for row in compare(first, second)}
        small = {key for key, p in raw(first, second, given.corpus) if p < 0.05}
        tested.update(key for key, p in by_metric.items() if p is not None)
        alone.update(small)
        wrong = {key for key, p in by_metric.items() if significant(p)}
        corrected.update(wrong)
        any_alone += bool(small)
        any_corrected += bool(wrong)
    draws = given.draws
    print(f"{given.corpus}: {len(clips.truth)} clips, {draws} draws of two halves\n")
    print("| metric | draws with a test | p < 0.05, uncorrected | after Holm's correction |")
    print("|---|---|---|---|")
    for key, count in tested.items():
        print(f"| {key} | {count} | {alone[key]} | {corrected[key]} |")
    low, high = wilson_interval(any_corrected, draws)
    print(f"| **any** | {draws} | {any_alone} | {any_corrected} ({low:.1%} – {high:.1%}) |")


def read_embedding(folder: Path, name: str, corpus: str) -> tuple[Reference, np.ndarray]:
    """Real training clips in an embedding as a reference, and the embeddings of a corpus."""
    parts = folder / "embeddings" / name
    train, _ = read(parts, "real", ["embedding"])
    _, others = read(parts, corpus, ["embedding"])
    return prepare(as_array(train["embedding"])), as_array(others["embedding"])


def raw(first: dict[str, Any], second: dict[str, Any], corpus: str) -> Iterator[tuple[str, float]]:
    """Each metric that both have an interval of, and the uncorrected p."""
    tests = [(metric.key, metric.key, side["corpora"][corpus], other["corpora"][corpus])
             for metric in METRICS for side, other in [(first, second)]]  # fmt: skip
    for name, embedding in first["embeddings"].items():
        both = embedding["corpora"][corpus], second["embeddings"][name]["corpora"][corpus]
        tests += [(f"{name}.{metric.key}", metric.key, *both) for metric in EMBEDDING_METRICS]
    for name, key, one, other in tests:
        p = p_value(other[key], one[key])
        if p is not None:
            yield name, p


if __name__ == "__main__":
    main()
