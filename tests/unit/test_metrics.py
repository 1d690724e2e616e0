import doctest
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from raysound.metrics import classification
from raysound.metrics.classification import classification_report
from raysound.metrics.intervals import wilson_interval
from raysound.metrics.probabilities import map_at_k

fast = settings(max_examples=60, deadline=None)


@st.composite
def scored(draw, min_clips=0):
    """Truth and probabilities of one to six classes, with many ties."""
    classes = draw(st.integers(1, 6))
    clips = draw(st.integers(min_clips, 25))
    truth = draw(arrays.arrays(np.int64, clips, elements=st.integers(0, classes - 1)))
    weights = draw(arrays.arrays(np.int64, (clips, classes), elements=st.integers(1, 4)))
    return truth, weights / weights.sum(axis=1, keepdims=True)


def test_docstring_examples_run():
    """The examples of the docstrings give the documented results."""
    result = doctest.testmod(classification)

    assert result.attempted >= 3
    assert result.failed == 0


@pytest.mark.parametrize(
    ("correct", "n", "low", "high"),
    [
        # R. G. Newcombe, Statistics in Medicine 17, 1998, table I, method 3.
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
        # Computed by hand with z = 1.959964.
        (80, 100, 0.7112, 0.8666),
        (294, 300, 0.9571, 0.9908),
        (5, 10, 0.2366, 0.7634),
    ],
)
def test_wilson_interval_equals_published_values(correct, n, low, high):
    """The 95 % interval agrees with Newcombe's table and hand computation to four places."""
    assert wilson_interval(correct, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_interval_without_clips_is_0_to_1():
    """Without clips nothing is known about the share."""
    assert wilson_interval(0, 0) == (0.0, 1.0)


@fast
@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_interval_contains_the_share_and_is_symmetric(pair):
    """The interval is inside [0, 1] and contains the share; swapping right and wrong mirrors it."""
    correct, n = pair

    low, high = wilson_interval(correct, n)
    mirrored_low, mirrored_high = wilson_interval(n - correct, n)

    assert 0 <= low <= correct / n <= high <= 1
    assert low < high
    assert (1 - mirrored_high, 1 - mirrored_low) == pytest.approx((low, high))


@fast
@given(st.integers(0, 50), st.floats(0.5, 0.94))
def test_wilson_interval_widens_with_confidence_and_narrows_with_clips(correct, confidence):
    """It is wider for a higher confidence and narrower for ten times the clips."""

    def width(correct, n, confidence):
        low, high = wilson_interval(correct, n, confidence)
        return high - low

    assert width(correct, 50, confidence) < width(correct, 50, 0.95)
    assert width(10 * correct, 500, confidence) < width(correct, 50, confidence)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [((5, 4), ["5", "4"]), ((-1, 4), ["-1", "4"]), ((1, 4, 1.0), ["1.0"]), ((1, 4, 0), ["0"])],
)
def test_wilson_interval_raises_on_invalid_arguments(arguments, message):
    """The error names counts outside 0..n and a confidence outside (0, 1)."""
    with pytest.raises(ValueError, match="must be in") as caught:
        wilson_interval(*arguments)

    assert all(value in str(caught.value) for value in message)


def test_report_of_known_clips():
    """The metrics of a small corpus equal hand-computed values."""
    probabilities = [
        [0.7, 0.1, 0.1, 0.1],  # dog, right
        [0.1, 0.7, 0.1, 0.1],  # dog, predicted as rain; rank 2 by the tie
        [0.0, 0.6, 0.3, 0.1],  # rain, right
        [0.3, 0.3, 0.3, 0.1],  # siren, predicted as dog by the tie
        [0.4, 0.3, 0.2, 0.1],  # siren, predicted as dog
    ]

    report = classification_report(
        [0, 0, 1, 2, 2], probabilities, ["dog", "rain", "siren", "train"]
    )

    assert report["clips"] == 5
    assert report["accuracy"]["value"] == 0.4
    assert (report["accuracy"]["low"], report["accuracy"]["high"]) == wilson_interval(2, 5)
    assert report["top_3"]["value"] == 1.0
    assert report["confusion"] == [[1, 1, 0, 0], [0, 1, 0, 0], [2, 0, 0, 0], [0, 0, 0, 0]]
    assert list(report["per_class"]) == ["dog", "rain", "siren", "train"]
    assert report["per_class"]["dog"]["clips"] == 2
    assert report["per_class"]["dog"]["accuracy"]["value"] == 0.5
    assert report["per_class"]["train"] == {
        "clips": 0,
        "accuracy": {"value": None, "low": 0.0, "high": 1.0, "of": 0},
    }


@fast
@given(scored())
def test_report_is_unchanged_by_json(clips):
    """The report has only plain values without NaN, so that JSON returns an equal report."""
    truth, probabilities = clips
    labels = [f"class {index}" for index in range(probabilities.shape[1])]

    report = classification_report(truth, probabilities, labels)

    assert json.loads(json.dumps(report, allow_nan=False)) == report
    assert sum(entry["clips"] for entry in report["per_class"].values()) == report["clips"]
    if len(truth) and len(labels) > 3:
        # In a stable sort, the lower index comes first among equal probabilities, as in argmax.
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :3]
        expected = np.mean([own in row for own, row in zip(truth, best, strict=True)])
        assert report["accuracy"]["value"] <= report["top_3"]["value"]
        assert report["top_3"]["value"] == pytest.approx(expected)


@pytest.mark.parametrize("classes", [1, 2, 3, 4])
def test_top_3_has_no_value_for_three_classes_or_fewer(classes):
    """Every class is among the three most probable, so there is a reason instead of a value."""
    probabilities = np.random.default_rng(0).dirichlet(np.ones(classes), 40)
    truth = np.arange(40) % classes

    report = classification_report(truth, probabilities, [f"class {n}" for n in range(classes)])

    for name in ("top_3", "map_3"):
        if classes > 3:
            assert 0 < report[name]["value"] < 1
        else:
            assert report[name]["value"] is None
            assert report[name]["why"] == f"{classes} classes: each is among the 3 most probable"


def test_report_of_no_clips():
    """The values of a corpus without scored clips are None, not zero."""
    report = classification_report([], np.zeros((0, 2)), ["dog", "rain"])

    assert report["clips"] == 0
    assert report["accuracy"] == {"value": None, "low": 0.0, "high": 1.0, "of": 0}
    assert report["top_3"]["value"] is None
    assert report["confusion"] == [[0, 0], [0, 0]]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: map_at_k([0.5, 1.0], np.eye(2), 1), ["float64"]),
        (lambda: map_at_k([[0, 1]], np.eye(2), 1), ["(1, 2)"]),
        (lambda: map_at_k([0, -7], np.eye(2), 1), ["-7", "clip 1"]),
        (lambda: map_at_k([0, 1], [[0.5, 0.5]], 1), ["2", "1"]),
        (lambda: map_at_k([5], [[0.5, 0.5]], 1), ["5", "0..1"]),
        (lambda: map_at_k([0], [[0.5, math.nan]], 1), ["clip 0", "class 1", "nan"]),
        (lambda: map_at_k([0], [0.5, 0.5], 1), ["(2,)"]),
        (lambda: classification_report([0], [[1.0, math.inf]], ["a", "b"]), ["inf"]),
        (lambda: classification_report([0], [[1.0, 0.0]], ["a"]), ["1", "2"]),
        (lambda: classification_report([0], [[1.0, 0.0]], ["a", "a"]), ["'a'", "2", "1"]),
    ],
)
def test_errors_name_the_invalid_values(call, message):
    """Invalid lengths, classes and probabilities raise errors that name them."""
    with pytest.raises(ValueError, match=r"\d|float") as caught:
        call()

    assert all(value in str(caught.value) for value in message)
