import json
from pathlib import Path
from typing import Any

import pytest

from raysound.comparison import compare, lines, read_metrics
from raysound.config import UserError
from raysound.metrics.intervals import share_measure
from raysound.metrics.ranking import HIGHER_IS_BETTER, ranking

EMPTY = {"value": None, "low": None, "high": None, "why": "no clips"}


def row(right: int, of: int, **measures: dict[str, Any]) -> dict[str, Any]:
    """A generated corpus of that accuracy; other metrics have no value unless given."""
    return {
        **dict.fromkeys(HIGHER_IS_BETTER, EMPTY),
        "role": "generated",
        "accuracy": share_measure(right, of),
        **measures,
    }


def metrics(**corpora: dict[str, Any]) -> dict[str, Any]:
    judge = {"run": "cnn-1", "model": "cnn", "labels": ["a", "b"]}
    judge |= {"feature_id": "f", "split_digest": "s"}
    return {"schema": 2, "judge": judge, "corpora": {"real": {"role": "real"}, **corpora}}


def test_generators_are_ranked_and_close_ones_marked() -> None:
    found = ranking(
        {"poor": row(200, 1000), "none": row(0, 0), "best": row(800, 1000), "close": row(790, 1000)}
    )

    assert found["order"] == ["best", "close", "poor", "none"]
    apart = {(pair["a"], pair["b"]): pair["told_apart"] for pair in found["pairs"]}
    assert apart == {("best", "close"): False, ("best", "poor"): True, ("close", "poor"): True}
    first = found["pairs"][0]["difference"]
    assert first["value"] == pytest.approx(0.01)
    assert first["low"] < 0 < first["high"]


def test_a_generator_that_is_never_right_ranks_above_one_without_clips() -> None:
    assert ranking({"none": row(0, 0), "zero": row(0, 10)})["order"] == ["zero", "none"]


def test_a_new_checkpoint_is_better_worse_or_not_told_apart() -> None:
    low_is_good = {"value": 5.0, "low": 4.0, "high": 6.0}
    old = metrics(mine=row(500, 1000, mmd=low_is_good))
    high = {"value": 0.9, "low": 0.8, "high": 1.0}
    old["corpora"]["mine"]["authenticity"] = {"value": 0.5, "low": 0.4, "high": 0.6}
    new = metrics(
        mine=row(700, 1000, mmd={"value": 9.0, "low": 8.0, "high": 10.0}, authenticity=high)
    )

    verdicts = {row["metric"]: row["verdict"] for row in compare(old, new)}

    assert verdicts == {"accuracy": "better", "mmd": "worse", "authenticity": "differs"}
    assert {row["verdict"] for row in compare(old, old)} == {"not told apart"}
    assert "+0.2" in "\n".join(lines(compare(old, new)))


def test_a_single_corpus_may_have_changed_its_name() -> None:
    rows = compare(metrics(epoch_10=row(5, 10)), metrics(epoch_20=row(6, 10)))

    assert [row["corpus"] for row in rows] == ["epoch_20"]


def test_another_judge_is_refused() -> None:
    old, new = metrics(mine=row(5, 10)), metrics(mine=row(5, 10))
    new["judge"]["run"] = "cnn-2"

    with pytest.raises(UserError, match=r"judge\.run is cnn-1 in the first and cnn-2"):
        compare(old, new)


def test_no_corpus_in_common_is_told() -> None:
    old, new = metrics(a=row(1, 2)), metrics(b=row(1, 2), c=row(1, 2))

    with pytest.raises(UserError, match="in both: a in the first, b, c in the second"):
        compare(old, new)


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (None, "there is no"),
        ("not json", "no metrics.json"),
        ("[]", "no metrics.json"),
        (json.dumps({"schema": 1}), "has schema 1, not 2"),
    ],
)
def test_what_is_no_metrics_json_is_told(tmp_path: Path, content: str | None, told: str) -> None:
    uri = tmp_path / "metrics.json"
    if content is not None:
        uri.write_text(content)

    with pytest.raises(UserError, match=told):
        read_metrics(str(uri))
