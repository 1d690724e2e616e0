import json
import re
from pathlib import Path

from raysound.metrics.classification import classification_report
from raysound.metrics.declarations import METRICS, METRICS_SCHEMA
from tests.report_sample import metrics

KEYS = [metric.key for metric in METRICS]


def test_the_schema_holds_the_declared_metrics_and_no_others(root: Path) -> None:
    """As measures that every corpus has, in a schema of the declared version."""
    schema = json.loads((root / "raysound/report/metrics.schema.json").read_text())
    corpus = schema["$defs"]["corpus"]
    measures = {
        key for key, entry in corpus["properties"].items()
        if entry.get("$ref") == "#/$defs/measure"
    }  # fmt: skip

    assert len(set(KEYS)) == len(KEYS)
    assert measures == set(KEYS)
    assert measures <= set(corpus["required"])
    assert schema["properties"]["schema"]["const"] == METRICS_SCHEMA


def test_a_report_holds_the_declared_metrics_and_no_others() -> None:
    row = metrics()["corpora"]["faithful"]

    measures = {key for key, entry in row.items() if isinstance(entry, dict) and "value" in entry}
    assert measures == set(KEYS)


def test_each_metric_that_needs_equal_numbers_says_so_where_it_had_fewer() -> None:
    """And no other does."""
    report = classification_report([0, 1] * 10, [[0.8, 0.2]] * 20, ["a", "b"], set_size=30)

    noted = {key for key, entry in report.items() if isinstance(entry, dict) and "note" in entry}
    assert noted == {m.key for m in METRICS if m.needs_equal_n} & report.keys()
    assert report["inception_score"]["note"] == "20 clips, others 30"


def test_the_schema_version_stands_in_one_place(root: Path) -> None:
    """Beside the schema file, which the test above holds to it."""
    found = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "raysound").rglob("*.py"))
        if re.search(r"\bMETRICS_SCHEMA\s*=|[\"']schema[\"']:\s*\d", path.read_text())
    ]

    assert found == ["raysound/metrics/declarations.py"]
