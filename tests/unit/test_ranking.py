import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raysound.errors import UserError
from raysound.evaluation.comparison import compare, read_metrics, skipped_lines, table_lines
from raysound.metrics.corpus import RealClips, Scored, corpus_report
from raysound.metrics.declarations import METRICS, METRICS_SCHEMA
from raysound.metrics.intervals import proportion_estimate
from raysound.metrics.ranking import ranking
from raysound.report.formatting import differing_from_real

EMPTY = {"value": None, "low": None, "high": None, "why": "no clips"}


def row(right: int, of: int, **measures: dict[str, Any]) -> dict[str, Any]:
    """A generated corpus with this accuracy; other metrics have no value unless given."""
    return {
        **dict.fromkeys((metric.key for metric in METRICS), EMPTY),
        "role": "generated",
        "compared": 100,
        "accuracy": proportion_estimate(right, of),
        **measures,
    }


def metrics(**corpora: dict[str, Any]) -> dict[str, Any]:
    classifier = {"run": "cnn-1", "model": "cnn", "labels": ["a", "b"]}
    classifier |= {"feature_id": "f", "split_digest": "s"}
    real = {"real": {"role": "real"}}
    corpora = {**real, **corpora}
    found = {"schema": METRICS_SCHEMA, "classifier": classifier, "corpora": corpora}
    return found | {"embeddings": {}, "copies": None}


def estimate(rng: np.random.Generator) -> dict[str, Any]:
    """An estimate of 0 with the standard error 1, and its 95 % interval."""
    value = float(rng.normal())
    return {"value": value, "low": value - 1.96, "high": value + 1.96}


def ranking_alarm(rng: np.random.Generator) -> bool:
    """Whether the ranking of ten equal generators has a significant pair."""
    rights = rng.binomial(200, 0.8, 10)
    found = ranking({f"generator {i}": row(int(right), 200) for i, right in enumerate(rights)})
    return any(pair["significant"] for pair in found["pairs"])


def comparison_alarm(rng: np.random.Generator) -> bool:
    """Whether a new evaluation of an unchanged generator has a verdict on any metric."""
    old, new = (
        metrics(mine=row(1, 2) | {metric.key: estimate(rng) for metric in METRICS})
        for _ in range(2)
    )
    found = compare(old, new)
    assert len(found) == len(METRICS)
    return any(row["verdict"] != "no significant difference" for row in found)


def reading_alarm(rng: np.random.Generator) -> bool:
    """Whether one of ten generators as good as real sounds differs significantly from them."""
    real, *corpora = ({metric.key: estimate(rng) for metric in METRICS} for _ in range(11))
    return any(differing_from_real(dict(enumerate(corpora)), real).values())


@pytest.mark.parametrize("alarm", [ranking_alarm, comparison_alarm, reading_alarm])
def test_at_most_one_table_of_twenty_has_a_false_positive(
    alarm: Callable[[np.random.Generator], bool],
) -> None:
    """At most 10 of 200 tables are expected; 20 would be 3.2 standard deviations more."""
    alarms = sum(alarm(np.random.default_rng(seed)) for seed in range(200))

    assert alarms < 20


@pytest.mark.parametrize("seed", range(3))
def test_more_clips_do_not_change_the_verdict(seed: int) -> None:
    """100 and 1,000 clips of one distribution over 50 classes: nothing differs in `compare`."""
    rng = np.random.default_rng(seed)
    labels = [f"class {number}" for number in range(50)]

    def scored(clips: int) -> Scored:
        truth = rng.integers(50, size=clips)
        predicted = np.where(rng.random(clips) < 0.7, truth, rng.integers(50, size=clips))
        probabilities = 0.05 * rng.dirichlet(np.ones(50), clips) + 0.95 * np.eye(50)[predicted]
        embedding = rng.normal(0, 1, (clips, 3)).astype(np.float32)
        return Scored(truth, probabilities.astype(np.float32), embedding)

    real = RealClips.of(scored(300))
    old, new = (
        metrics(
            mine={"role": "generated"} | corpus_report(scored(clips), real, labels, 100, [2] * 50)
        )
        for clips in (100, 1000)
    )

    found = compare(old, new)

    assert {row["verdict"] for row in found if row["p_adjusted"] is not None} == {
        "no significant difference"
    }
    assert {row["metric"] for row in found} >= {
        "inception_score",
        "effective_num_classes",
        "macro_f1",
    }


def test_generators_are_ranked_and_significant_differences_marked() -> None:
    found = ranking(
        {"poor": row(200, 1000), "none": row(0, 0), "best": row(800, 1000), "close": row(790, 1000)}
    )

    assert found["order"] == ["best", "close", "poor", "none"]
    apart = {(pair["a"], pair["b"]): pair["significant"] for pair in found["pairs"]}
    assert apart == {("best", "close"): False, ("best", "poor"): True, ("close", "poor"): True}
    first = found["pairs"][0]["difference"]
    assert first["value"] == pytest.approx(0.01)
    assert first["low"] < 0 < first["high"]


def test_generators_without_labels_are_ranked_by_mmd_unless_one_has_labels() -> None:
    low, high = ({"value": value, "low": value - 1, "high": value + 1} for value in (1.0, 9.0))
    unlabelled = {
        "far": row(0, 0, mmd2_x100=high),
        "near": row(0, 0, mmd2_x100=low),
        "none": row(0, 0),
    }

    found = ranking(unlabelled)
    mixed = ranking({**unlabelled, "labelled": row(5, 10)})

    assert (found["metric"], found["order"]) == ("mmd2_x100", ["near", "far", "none"])
    assert [(pair["a"], pair["b"], pair["significant"]) for pair in found["pairs"]] == [
        ("near", "far", True)
    ]
    assert (mixed["metric"], mixed["order"][0], mixed["pairs"]) == ("accuracy", "labelled", [])


def test_a_generator_with_zero_accuracy_ranks_above_one_without_clips() -> None:
    assert ranking({"none": row(0, 0), "zero": row(0, 10)})["order"] == ["zero", "none"]


def test_a_new_checkpoint_is_better_worse_or_not_significantly_different() -> None:
    low_is_good = {"value": 5.0, "low": 4.0, "high": 6.0}
    old = metrics(mine=row(500, 1000, mmd2_x100=low_is_good))
    high = {"value": 0.9, "low": 0.8, "high": 1.0}
    old["corpora"]["mine"]["authenticity"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    new = metrics(
        mine=row(700, 1000, mmd2_x100={"value": 9.0, "low": 8.0, "high": 10.0}, authenticity=high)
    )

    verdicts = {row["metric"]: row["verdict"] for row in compare(old, new)}

    assert verdicts == {"accuracy": "better", "mmd2_x100": "worse", "authenticity": "differs"}
    assert {row["verdict"] for row in compare(old, old)} == {"no significant difference"}
    *_, shown, last = table_lines(compare(old, new))
    assert shown.split()[:2] == ["mine", "authenticity"]
    assert shown.endswith(" <0.0001  differs")
    assert last.startswith("p: adjusted by Holm's method for the 3 comparisons of this table")
    assert "+0.2" in "\n".join(table_lines(compare(old, new)))


def test_metrics_that_depend_on_the_sample_size_are_not_compared() -> None:
    """Metrics that grow with the sample size are not compared."""
    few = {"value": 0.1, "low": 0.05, "high": 0.15}
    many = {"value": 0.9, "low": 0.85, "high": 0.95}
    old = metrics(mine=row(500, 1000, coverage=few, mmd2_x100=few, compared=60))
    new = metrics(mine=row(500, 1000, coverage=many, mmd2_x100=many, compared=100))

    verdicts = {row["metric"]: row["verdict"] for row in compare(old, new)}

    assert verdicts == {
        "accuracy": "no significant difference",
        "coverage": "not comparable: 60 and 100 clips",
        "mmd2_x100": "worse",
    }


def test_a_metric_that_drops_to_zero_is_shown_without_interval() -> None:
    """A collapsed metric has no interval, but must be shown."""
    old = metrics(mine=row(900, 1000, recall={"value": 0.97, "low": 0.95, "high": 0.99}))
    gone = {"value": 0.0, "low": None, "high": None, "why": "any part gives this value"}
    new = metrics(mine=row(900, 1000, recall=gone))

    found = {row["metric"]: row for row in compare(old, new)}

    assert found["recall"]["verdict"] == "no interval: any part gives this value"
    assert found["recall"]["difference"]["value"] == pytest.approx(-0.97)
    shown = next(line for line in table_lines(compare(old, new)) if " recall " in line)
    assert "0.97" in shown
    assert shown.endswith("no interval: any part gives this value")


def test_corpora_in_only_one_file_are_named() -> None:
    both = row(5, 10)
    old, new = metrics(gan=both, old=both), metrics(gan=both, new=both)

    assert list(skipped_lines(old, new)) == [
        "not compared: old, which only the first has",
        "not compared: new, which only the second has",
    ]
    assert list(skipped_lines(metrics(a=both), metrics(b=both))) == []


def test_single_corpora_with_different_names_are_compared() -> None:
    rows = compare(metrics(epoch_10=row(5, 10)), metrics(epoch_20=row(6, 10)))

    assert [row["corpus"] for row in rows] == ["epoch_20"]


def test_another_classifier_is_refused() -> None:
    old, new = metrics(mine=row(5, 10)), metrics(mine=row(5, 10))
    new["classifier"]["run"] = "cnn-2"

    with pytest.raises(UserError, match=r"classifier\.run is cnn-1 in the first, cnn-2"):
        compare(old, new)


def test_files_without_a_common_corpus_are_refused() -> None:
    old, new = metrics(a=row(1, 2)), metrics(b=row(1, 2), c=row(1, 2))

    with pytest.raises(UserError, match="in both: a in the first, b, c in the second"):
        compare(old, new)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no"),
        ("not json", "is not a metrics.json"),
        ("[]", "is not a metrics.json"),
        (
            json.dumps({"schema": METRICS_SCHEMA - 1}),
            f"has schema {METRICS_SCHEMA - 1}, this version reads {METRICS_SCHEMA}: run jobs/eval",
        ),
    ],
)
def test_a_file_that_is_not_metrics_json_is_refused(
    tmp_path: Path, content: str | None, message: str
) -> None:
    uri = tmp_path / "metrics.json"
    if content is not None:
        uri.write_text(content)

    with pytest.raises(UserError, match=message):
        read_metrics(str(uri))


def with_copies(copied: int, value: float | None = 0.9, digest: str = "x") -> dict[str, Any]:
    """Metrics of one generated corpus of 100 clips, some of which are copies."""
    found = metrics(gan=row(50, 100))
    found["copies"] = {
        "threshold": {"value": value},
        "training": {"digest": digest},
        "corpora": {"gan": {"share": proportion_estimate(copied, 100)}},
    }
    return found


def test_fewer_copies_are_better_with_equal_training_clips_and_threshold() -> None:
    def verdicts(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
        return [one["verdict"] for one in compare(old, new) if one["metric"] == "copies.share"]

    assert verdicts(with_copies(40), with_copies(5)) == ["better"]
    assert verdicts(with_copies(5), with_copies(40)) == ["worse"]
    assert verdicts(with_copies(5), with_copies(6)) == ["no significant difference"]
    for other in (with_copies(5, value=0.8), with_copies(5, digest="y")):
        assert verdicts(with_copies(40), other) == []
        assert list(skipped_lines(with_copies(40), other)) == [
            "not compared: the share of copies: training clips or threshold differ"
        ]
    assert verdicts(metrics(gan=row(5, 9)), with_copies(5)) == []
    assert list(skipped_lines(metrics(gan=row(5, 9)), with_copies(5))) == [
        "not compared: the share of copies, which only the second has"
    ]
    assert list(skipped_lines(with_copies(1), with_copies(2))) == []
