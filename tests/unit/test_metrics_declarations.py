import copy
import json
import re
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

from raysound.evaluation.metrics_schema import metrics_schema
from raysound.metrics.classification import classification_report
from raysound.metrics.declarations import METRICS, METRICS_SCHEMA
from tests.report_sample import metrics

KEYS = [metric.key for metric in METRICS]


def test_the_schema_file_is_generated_from_the_types(root: Path) -> None:
    """With the declared metrics as required keys of each corpus."""
    text = (root / "docs/metrics.schema.json").read_text()
    corpus = json.loads(text)["$defs"]["Corpus"]
    measures = {
        key for key, entry in corpus["properties"].items()
        if entry.get("$ref") == "#/$defs/Estimate"
    }  # fmt: skip

    assert text == metrics_schema()
    assert len(set(KEYS)) == len(KEYS)
    assert measures == set(KEYS)
    assert measures <= set(corpus["required"])


def test_the_schema_rejects_invalid_metrics() -> None:
    """Missing or unknown keys, another version, and numbers out of range are invalid."""
    validator = Draft202012Validator(json.loads(metrics_schema()))
    accuracy = ("corpora", "faithful", "accuracy")
    changes: list[tuple[tuple[str, ...], Any]] = [
        (("schema",), METRICS_SCHEMA - 1),
        (("unknown",), 1),
        ((*accuracy, "unknown"), 1),
        ((*accuracy, "of"), -1),
        ((*accuracy, "value"), "high"),
        (("corpora", "faithful", "role"), "best"),
    ]

    validator.validate(metrics())
    for path, value in changes:
        content = copy.deepcopy(metrics())
        entry = content
        for key in path[:-1]:
            entry = entry[key]
        entry[path[-1]] = value
        assert not validator.is_valid(content), path
    for key in metrics():
        assert not validator.is_valid({k: v for k, v in metrics().items() if k != key}), key


def test_a_report_has_exactly_the_declared_metrics() -> None:
    row = metrics()["corpora"]["faithful"]

    measures = {key for key, entry in row.items() if isinstance(entry, dict) and "value" in entry}
    assert measures == set(KEYS)


def test_metrics_that_need_equal_numbers_have_a_note_if_there_are_fewer_clips() -> None:
    """Other metrics have no note."""
    report = classification_report([0, 1] * 10, [[0.8, 0.2]] * 20, ["a", "b"], set_size=30)

    noted = {key for key, entry in report.items() if isinstance(entry, dict) and "note" in entry}
    assert noted == {m.key for m in METRICS if m.needs_equal_n} & report.keys()
    assert report["inception_score"]["note"] == "20 clips, others 30"


def test_the_schema_version_is_defined_in_one_place(root: Path) -> None:
    found = [
        path.relative_to(root).as_posix()
        for path in sorted((root / "raysound").rglob("*.py"))
        if re.search(r"\bMETRICS_SCHEMA\s*=|[\"']schema[\"']:\s*\d", path.read_text())
    ]

    assert found == ["raysound/metrics/declarations.py"]
