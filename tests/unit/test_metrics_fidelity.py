import json
import time

import numpy as np
import pytest

from raysound.metrics.declarations import METRICS
from raysound.metrics.fidelity import fidelity_report, per_class_fidelity, prepare
from raysound.metrics.frechet import fad_inf, frechet_distance
from raysound.metrics.kernel import mmd2_x100
from raysound.metrics.neighbours import (
    authenticity,
    density,
    neighbour_metrics,
    per_clip,
    precision,
)

MEASURES = (
    "frechet_distance", "fad_inf", "mmd2_x100",
    "precision", "recall", "density", "coverage", "authenticity",
)  # fmt: skip


def normal(seed, n, d=8, scale=1.0, shift=0.0):
    values = np.random.default_rng([seed, n, d]).standard_normal((n, d)) * scale + shift
    return values.astype(np.float32)


def report(x, y, set_size=10_000, seed=0):
    return fidelity_report(x, y, seed=seed, set_size=set_size)


def test_report_equals_the_functions():
    """For complete sets each value equals its function, within 1e-7, and is in its interval."""
    x, y = normal(0, 150, scale=0.9), normal(1, 200)

    found = report(x, y, set_size=150)

    assert set(found) == {"compared", *MEASURES}
    assert found["compared"] == 150
    expected = {
        "frechet_distance": frechet_distance(x, y),
        "fad_inf": fad_inf(x, y)["value"],
        "mmd2_x100": mmd2_x100(x, y),
        **neighbour_metrics(x, y),
    }  # fmt: skip
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, rel=1e-7), name
        assert found[name]["low"] < value < found[name]["high"], name
        assert "note" not in found[name]


def test_a_prepared_reference_gives_the_same_report():
    """Results are bitwise equal if the reference is prepared once or each time."""
    x, y = normal(0, 80), normal(1, 90)

    once = report(x, prepare(y))

    assert once == report(x, y)
    assert json.loads(json.dumps(once, allow_nan=False)) == once
    assert once != report(x[:40], y)


def test_set_size_clips_are_sampled_and_smaller_corpora_have_a_note():
    """Metrics that depend on the number of clips use a seeded sample, the others all clips."""
    x, y = normal(0, 300, shift=0.5), normal(1, 200)

    sampled = report(x, y, set_size=60)

    assert sampled["compared"] == 60
    assert sampled == report(x, y, set_size=60)
    assert sampled["recall"] != report(x, y, set_size=60, seed=1)["recall"]
    of_all = per_clip(x, y)
    for name, function in (("precision", precision), ("authenticity", authenticity)):
        assert (sampled[name]["value"], sampled[name]["of"]) == (function(of_all), 300)
    assert sampled["density"]["value"] == pytest.approx(density(of_all))
    # The distance of 60 clips has a larger bias than that of 300 clips.
    assert sampled["frechet_distance"]["value"] > report(x, y, 300)["frechet_distance"]["value"]
    assert sampled["mmd2_x100"]["value"] == pytest.approx(mmd2_x100(x, y))
    small = report(x[:30], y, set_size=60)
    noted = {name for name in MEASURES if "note" in small[name]}
    assert noted == {metric.key for metric in METRICS if metric.needs_equal_n} & set(MEASURES)
    assert small["recall"]["note"] == "30 clips, others 60"


@pytest.mark.parametrize("clips", [0, 1, 2, 3, 5, 6, 12])
def test_measures_of_few_clips_have_a_reason(clips):
    """Every measure has a value with an interval, or a reason why it is missing."""
    found = report(normal(0, clips), normal(1, 100))

    assert found["compared"] == clips
    for name in MEASURES:
        one = found[name]
        assert one.get("why") or None not in (one["value"], one["low"], one["high"]), name
    assert (found["recall"]["value"] is None) == (clips <= 5)
    assert (found["precision"]["value"] is None) == (clips == 0)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize(
    ("x", "y"),
    [
        (np.ones((40, 8)), normal(1, 50)),
        (normal(1, 50), np.ones((40, 8))),
        (normal(0, 40, 64), normal(1, 50, 64)),
        (np.repeat(normal(0, 4), 10, axis=0), normal(1, 50)),
        (normal(0, 40) + 1e6, normal(1, 50) + 1e6),
        (normal(0, 40) * 1e-9, normal(1, 50) * 1e-9),
        (np.maximum(normal(0, 40), 0), np.maximum(normal(1, 50), 0)),
        (normal(1, 50), normal(1, 50)),
        (normal(0, 40), normal(1, 3)),
    ],
    ids=["one sound", "one real sound", "n < d", "copies", "far", "tiny", "relu", "same", "3 real"],
)
@pytest.mark.filterwarnings("error")
def test_degenerate_corpora_have_finite_values_or_reasons(x, y):
    """Collapse, low rank, offsets and copies raise no error and no warning."""
    found = report(x, y)

    json.dumps(found, allow_nan=False)
    for name in MEASURES:
        one = found[name]
        assert one.get("why") or None not in (one["value"], one["low"], one["high"]), name


def test_a_copied_training_set_has_zero_authenticity():
    """Fidelity and coverage are perfect, but no clip is authentic."""
    y = normal(1, 300)

    found = report(y[::-1], y)

    assert found["frechet_distance"]["value"] < 1e-6
    assert found["coverage"]["value"] == 1
    assert found["authenticity"]["value"] == 0
    assert report(normal(0, 300), y)["authenticity"]["value"] > 0.3


def test_worse_generators_score_worse():
    """With the shift, every distance increases and every share except authenticity decreases."""
    y = prepare(normal(1, 400))
    reports = [report(normal(0, 300, shift=by), y) for by in (0, 0.5, 1, 2)]

    for name in ("frechet_distance", "fad_inf", "mmd2_x100"):
        values = [one[name]["value"] for one in reports]
        assert values == sorted(values), name
    for name in ("precision", "recall", "density", "coverage"):
        values = [one[name]["value"] for one in reports]
        assert values == sorted(values, reverse=True), name


def test_per_class_finds_the_class_that_fails():
    """A class that sounds like another one is far from it; a class with few clips has a reason."""
    labels = np.arange(240) % 3
    centres = np.eye(3)[:, [0, 1, 2] + [0] * 5].astype(np.float32) * 4
    y = normal(1, 240) + centres[labels]
    x = normal(0, 240) + centres[np.where(labels == 2, 1, labels)]
    keep = (labels != 0) | (np.arange(240) < 27)

    names = ["dog", "rain", "siren"]
    found = per_class_fidelity(x[keep], labels[keep], y, labels, names, set_sizes=[80] * 3)

    assert list(found) == ["dog", "rain", "siren"]
    assert found["dog"]["generated"] == 9
    assert found["dog"]["mmd2_x100"] == {
        "value": None, "low": None, "high": None, "why": "9 generated clips: fewer than 10"
    }  # fmt: skip
    assert found["siren"]["mmd2_x100"]["low"] > found["rain"]["mmd2_x100"]["high"]
    assert found["siren"]["coverage"]["high"] < found["rain"]["coverage"]["low"]
    assert found["siren"]["fad_inf"]["value"] > 10 * abs(found["rain"]["fad_inf"]["value"])
    json.dumps(found, allow_nan=False)


def test_per_class_coverage_uses_equal_numbers_of_clips():
    """For one distribution, many generated clips do not cover more than few test clips."""
    y, labels = normal(1, 65), np.zeros(65, int)

    def coverage(clips, set_size):
        of = np.zeros(clips, int)
        return per_class_fidelity(
            normal(clips, clips), of, y, labels, ["dog"], set_sizes=[set_size]
        )["dog"]["coverage"]  # fmt: skip

    real, generated = coverage(20, 20), coverage(400, 20)
    assert abs(real["value"] - generated["value"]) < 0.2
    assert coverage(400, 65)["value"] > real["value"]
    assert coverage(12, 20)["note"] == "12 clips, others 20"
    assert coverage(400, 9)["why"] == "9 real test clips of the class: fewer than 10"


def of_one_class(labels):
    """Nine generated clips with `labels` against nine real clips of one class."""
    return per_class_fidelity(
        normal(0, 9), labels, normal(1, 9), [0] * 9, ["a"], set_sizes=[9]
    )  # fmt: skip


def test_per_class_uses_the_bandwidth_of_the_complete_reference():
    """The MMD of a class with a small spread is not increased by a small bandwidth."""
    labels = np.arange(100) % 2
    y = normal(1, 100) * np.where(labels == 0, 0.01, 5)[:, None]
    x = y + 0.05

    found = per_class_fidelity(x, labels, y, labels, ["tight", "wide"], set_sizes=[50] * 2)

    assert abs(found["tight"]["mmd2_x100"]["value"]) < 1
    assert mmd2_x100(x[labels == 0], y[labels == 0]) > 50


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: report(normal(0, 9, 3), normal(1, 9, 4)), ["3", "4"]),
        (lambda: report(normal(0, 9), normal(1, 1)), ["2 clips", "1"]),
        (lambda: report(normal(0, 9), normal(1, 9), set_size=0), ["set_size", "0"]),
        (lambda: report(np.full((9, 8), np.nan), normal(1, 9)), ["generated", "nan"]),
        (lambda: report(normal(0, 9), np.full((9, 8), np.inf)), ["inf"]),
        (lambda: report(np.ones(9), normal(1, 9)), ["(9,)"]),
        (lambda: of_one_class([0] * 8), ["8", "9"]),
        (lambda: of_one_class([1] * 9), ["0..0"]),
    ],
)
def test_errors_name_the_invalid_values(call, message):
    """Different dimensions, no reference, NaN and invalid labels raise errors that name them."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()

    assert all(value in str(caught.value) for value in message)


def test_the_report_of_a_small_corpus_is_fast():
    """300 clips of 512 dimensions take under 2 s of CPU time with a prepared reference."""
    y = prepare(normal(1, 600, 512))
    start = time.process_time()

    report(normal(0, 300, 512), y, set_size=300)

    assert time.process_time() - start < 2
