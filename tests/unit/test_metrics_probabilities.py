import doctest
import json
import math
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import rel_entr
from scipy.stats import entropy
from sklearn import metrics as sklearn_metrics
from sklearn.metrics import average_precision_score, f1_score, top_k_accuracy_score

from raysound.metrics import probabilities as module
from raysound.metrics.classification import classification_report
from raysound.metrics.probabilities import (
    MIN_PROBABILITY,
    am_score,
    clip_log_losses,
    effective_num_classes,
    expected_calibration_error,
    inception_score,
    map_at_k,
    modified_inception_score,
)

SPREAD = ("macro_f1", "map_3", "log_loss", "ece")
NEW = (*SPREAD, "inception_score", "effective_num_classes", "balanced_accuracy")


def sample_predictions(seed, clips=200, classes=7, sharpness=0.3):
    """Calibrated predictions: random probabilities, and truth sampled from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(classes, sharpness), clips)
    truth = (probabilities.cumsum(axis=1) < rng.random((clips, 1))).sum(axis=1)
    return np.minimum(truth, classes - 1), probabilities


def named(classes):
    return [f"class {index}" for index in range(classes)]


def test_docstring_examples_run():
    """The examples of the docstrings give the documented results."""
    result = doctest.testmod(module)

    assert result.attempted >= 5
    assert result.failed == 0


@settings(max_examples=80, deadline=None)
@given(
    st.integers(2, 6).flatmap(
        lambda classes: st.lists(
            st.tuples(st.integers(0, classes - 1), st.integers(0, classes - 1)),
            min_size=1, max_size=25,
        ).map(lambda pairs: (classes, pairs))
    )
)  # fmt: skip
@pytest.mark.filterwarnings("ignore")
def test_counts_of_predictions_equal_scikit_learn(case):
    """Within 1e-12, including classes without clips or predictions."""
    classes, pairs = case
    truth, prediction = np.array(pairs).T

    report = classification_report(truth, np.eye(classes)[prediction], named(classes))

    assert report["confusion"] == (
        sklearn_metrics.confusion_matrix(truth, prediction, labels=range(classes)).tolist()
    )
    for name, expected in (
        ("accuracy", sklearn_metrics.accuracy_score(truth, prediction)),
        ("balanced_accuracy", sklearn_metrics.balanced_accuracy_score(truth, prediction)),
        ("macro_f1", f1_score(truth, prediction, average="macro")),
    ):
        assert report[name]["value"] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_likelihood_and_top_k_equal_scikit_learn(seed):
    """Within 1e-12, for probabilities above the floor and without ties."""
    truth, probabilities = sample_predictions(seed, sharpness=1.0)
    labels = range(7)

    report = classification_report(truth, probabilities, named(7))

    assert probabilities.min() > MIN_PROBABILITY
    assert report["log_loss"]["value"] == pytest.approx(
        sklearn_metrics.log_loss(truth, probabilities, labels=labels), abs=1e-12
    )
    assert report["top_3"]["value"] == pytest.approx(
        top_k_accuracy_score(truth, probabilities, k=3, labels=labels), abs=1e-12
    )
    # With one true class the average precision over all classes is 1 / rank.
    assert map_at_k(truth, probabilities, 7) == pytest.approx(
        np.mean([
            average_precision_score(np.arange(7) == label, row)
            for label, row in zip(truth, probabilities, strict=True)
        ]), abs=1e-12,
    )  # fmt: skip


def test_map_at_k_is_between_accuracy_and_top_k():
    """It is 1 / rank, 0 beyond rank k; of equally probable classes the lower index comes first."""
    even = [[0.25] * 4] * 4

    assert map_at_k([0, 1, 2, 3], even, 3) == pytest.approx((1 + 1 / 2 + 1 / 3) / 4)
    assert map_at_k([0, 1, 2, 3], even, 1) == 0.25
    truth, probabilities = sample_predictions(0)
    scores = [map_at_k(truth, probabilities, k) for k in range(1, 8)]
    assert scores == sorted(scores)
    report = classification_report(truth, probabilities, named(7))
    assert scores[0] == report["accuracy"]["value"]
    assert scores[2] < report["top_3"]["value"]


def test_the_log_loss_of_one_hot_rows_is_finite():
    """It is 0 nats for right clips and 27.6 for wrong ones, also for float32."""
    one_hot = np.eye(3, dtype=np.float32)

    assert clip_log_losses([0, 1, 2], one_hot).tolist() == [0, 0, 0]
    assert clip_log_losses([1, 2, 0], one_hot) == pytest.approx(-math.log(1e-12))
    assert clip_log_losses([0], [[0.25] * 4]) == pytest.approx(math.log(4))


def test_calibration_error_by_hand():
    """Bins are (k/15, (k+1)/15]; differences inside a bin cancel, those of two bins do not."""
    # 0.6 is 9/15, in the same bin as 0.55; accuracy of this bin 1/2, confidence 0.575.
    rows = [[0.6, 0.4], [0.55, 0.45], [1.0, 0.0], [0.9, 0.1]]

    assert expected_calibration_error([0, 1, 0, 0], rows) == pytest.approx(
        2 / 4 * abs(0.5 - 0.575) + 1 / 4 * 0 + 1 / 4 * abs(1 - 0.9)
    )
    assert expected_calibration_error([0, 1], [[1.0, 0.0], [0.0, 1.0]]) == 0
    assert expected_calibration_error([1, 0], [[1.0, 0.0], [0.0, 1.0]]) == 1


def test_calibration_error_increases_with_overconfidence():
    """It is near 0 for calibrated probabilities, but not for their normalised fourth powers."""
    truth, probabilities = sample_predictions(3, clips=20_000)
    overconfident = probabilities**4 / (probabilities**4).sum(axis=1, keepdims=True)

    assert expected_calibration_error(truth, probabilities) < 0.015
    assert expected_calibration_error(truth, overconfident) > 0.1


@pytest.mark.parametrize("seed", range(3))
def test_inception_score_equals_its_definition(seed):
    """Exp of the mean KL to the marginal by scipy, within 1e-12, including zeros."""
    _, probabilities = sample_predictions(seed, sharpness=0.05)
    probabilities[:20] = np.eye(7)[seed]
    marginal = probabilities.mean(axis=0)
    expected = np.exp(rel_entr(probabilities, marginal).sum(axis=1).mean())

    assert inception_score(probabilities) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("clips", [2, 60])
def test_modified_inception_score_equals_its_definition(clips):
    """Exp of the mean KL over all pairs of different clips, by scipy, within 1e-9."""
    _, probabilities = sample_predictions(0, clips=clips)
    divergences = [
        entropy(a, b) for i, a in enumerate(probabilities)
        for j, b in enumerate(probabilities) if i != j
    ]  # fmt: skip

    expected = np.exp(np.mean(divergences))
    assert modified_inception_score(probabilities) == pytest.approx(expected, rel=1e-9)


def test_modified_inception_score_of_extremes():
    """It is 1 for equal clips and NaN for a single clip; a probability of 0 counts as 1e-12."""
    assert modified_inception_score(np.full((5, 10), 0.1)) == pytest.approx(1, rel=1e-12)
    assert math.isnan(modified_inception_score(np.eye(3)[:1]))
    assert modified_inception_score(np.eye(2)) == pytest.approx(1 / MIN_PROBABILITY, rel=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_am_score_equals_its_definition(seed):
    """KL of the real mean to the mean, plus the mean entropy, by scipy, within 1e-9."""
    _, probabilities = sample_predictions(seed, sharpness=0.2)
    _, real = sample_predictions(seed + 10, clips=90)
    expected = entropy(real.mean(axis=0), probabilities.mean(axis=0))
    expected += entropy(probabilities, axis=1).mean()

    assert am_score(probabilities, real) == pytest.approx(expected, rel=1e-9)
    assert am_score(np.eye(7), np.eye(7)) == 0
    assert am_score(np.eye(7)[:3], np.eye(7)) > am_score(np.eye(7)[:6], np.eye(7)) > 1
    assert math.isnan(am_score(np.empty((0, 7)), real))


def test_a_report_without_labels_has_the_metrics_that_need_none():
    """They equal those with labels; clips are counted by predicted class."""
    truth, probabilities = sample_predictions(4)
    prediction = probabilities.argmax(axis=1)
    arguments = {"set_size": 150, "real_marginal": np.full(7, 1 / 7)}
    labelled = classification_report(truth, probabilities, named(7), **arguments)

    report = classification_report(
        prediction, probabilities, named(7), is_labelled=False, **arguments
    )

    assert labelled["labelled"]
    assert not report["labelled"]
    assert report["confusion"] is None
    counts = np.bincount(prediction, minlength=7).tolist()
    assert report["predicted"] == labelled["predicted"] == dict(zip(named(7), counts, strict=True))
    for name in (
        "inception_score",
        "modified_inception_score",
        "am_score",
        "effective_num_classes",
    ):
        assert report[name] == labelled[name]
        assert report[name]["low"] < report[name]["value"] < report[name]["high"]
    assert report["accuracy"] == {"value": None, "low": None, "high": None, "why": "no labels"}
    assert [row["clips"] for row in report["per_class"].values()] == counts
    assert {row["accuracy"]["value"] for row in report["per_class"].values()} == {None}


def test_inception_score_of_extremes():
    """Balanced one-hot rows give the number of classes; one class or uniform rows give 1."""
    for clips in (10, 100, 400):
        one_hot = np.eye(10)[np.arange(clips) % 10]
        assert inception_score(one_hot) == pytest.approx(10, rel=1e-12)
        assert inception_score(np.eye(10)[np.zeros(clips, dtype=int)]) == 1
        assert inception_score(np.full((clips, 10), 0.1)) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_effective_num_classes_equals_its_definition(seed):
    """Exp of the entropy by scipy, within 1e-12; 1 for one class, n for n equally frequent ones."""
    prediction = np.random.default_rng(seed).integers(0, 4, 60) ** 2

    expected = np.exp(entropy(np.bincount(prediction)))

    assert effective_num_classes(prediction, 12) == pytest.approx(expected, rel=1e-12)
    assert effective_num_classes([3] * 9, 12) == 1
    assert effective_num_classes(list(range(12)), 12) == pytest.approx(12)


def test_metrics_without_clips_are_nan():
    """Functions return NaN, the report has None with the reason."""
    nothing = np.zeros((0, 3))

    assert all(
        math.isnan(value)
        for value in (
            map_at_k([], nothing, 3), expected_calibration_error([], nothing),
            inception_score(nothing), effective_num_classes([], 3),
        )
    )  # fmt: skip
    report = classification_report([], nothing, named(3))
    for name in NEW:
        assert report[name] == {"value": None, "low": None, "high": None, "why": "no clips"}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: clip_log_losses([0], [[0.7, 0.7]]), ["clip 0", "1.4"]),
        (lambda: inception_score([[0.5, 0.5], [1.5, -0.5]]), ["clip 1", "-0.5"]),
        (lambda: expected_calibration_error([0, 1], [[0.5, 0.5]]), ["2", "1"]),
        (lambda: map_at_k([0], [[1.0]], 0), ["k", "0"]),
        (lambda: inception_score([0.5, 0.5]), ["(2,)"]),
        (lambda: effective_num_classes([4], 4), ["4", "0..3"]),
        (lambda: clip_log_losses([0], [[math.nan, 1.0]]), ["nan", "clip 0"]),
    ],
)
def test_errors_name_the_invalid_values(call, message):
    """Rows that are not a distribution and invalid classes raise errors that name them."""
    with pytest.raises(ValueError, match=r"\d") as caught:
        call()

    assert all(value in str(caught.value) for value in message)


def test_report_equals_the_functions():
    """Each value of the report equals its function, is in its interval, and is reproducible."""
    truth, probabilities = sample_predictions(8)
    prediction = probabilities.argmax(axis=1)
    expected = {
        "balanced_accuracy": sklearn_metrics.balanced_accuracy_score(truth, prediction),
        "macro_f1": f1_score(truth, prediction, average="macro"),
        "map_3": map_at_k(truth, probabilities, 3),
        "log_loss": clip_log_losses(truth, probabilities).mean(),
        "ece": expected_calibration_error(truth, probabilities),
        "inception_score": inception_score(probabilities),
        "effective_num_classes": effective_num_classes(prediction, 7),
    }

    report = classification_report(truth, probabilities, named(7))

    assert set(expected) == set(NEW)
    for name, value in expected.items():
        assert report[name]["value"] == pytest.approx(value, rel=1e-12)
        assert report[name]["low"] < value < report[name]["high"]
    again = classification_report(truth, probabilities, named(7))
    assert json.dumps(again, allow_nan=False) == json.dumps(report)


@pytest.mark.parametrize("clips", [1, 2, 3, 4, 9])
def test_report_of_few_clips_has_values_without_intervals(clips):
    """Below ten clips resampling gives no interval; the reason names the number of clips."""
    truth, probabilities = sample_predictions(1, clips=clips)

    report = classification_report(truth, probabilities, named(7))

    for name in (*SPREAD, "inception_score", "effective_num_classes"):
        assert report[name]["value"] is not None
        assert report[name]["low"] is None
        assert f"{clips} clips" in report[name]["why"]
    assert report["balanced_accuracy"]["low"] < report["balanced_accuracy"]["high"]


def test_metrics_that_depend_on_the_number_of_clips_use_equal_numbers():
    """They increase with the number of clips; for samples of equal size the mean is the same."""

    def report(clips, set_size, seed):
        rng = np.random.default_rng([seed, clips, set_size])
        truth = rng.integers(50, size=clips)
        predicted = np.where(rng.random(clips) < 0.7, truth, rng.integers(50, size=clips))
        rows = 0.9 * np.eye(50)[predicted] + 0.002
        return classification_report(truth, rows, named(50), set_size=set_size)

    few, many, equal = (
        [report(clips, set_size, seed) for seed in range(10)]
        for clips, set_size in ((100, 100), (1000, 1000), (1000, 100))
    )

    for name in ("inception_score", "effective_num_classes", "macro_f1"):
        a, b, c = (np.array([one[name]["value"] for one in of]) for of in (few, many, equal))
        assert a.mean() + 3 * a.std() / 10**0.5 < b.mean(), name
        assert abs(a.mean() - c.mean()) < 3 * (a.std() + c.std()) / 10**0.5, name


def test_the_balanced_accuracy_of_a_perfect_classifier_has_an_interval():
    """If all of few clips are right, the Wilson interval has a width; the bootstrap has none."""
    report = classification_report(np.arange(20) % 2, np.eye(2)[np.arange(20) % 2], named(2))

    assert report["balanced_accuracy"]["value"] == 1
    assert report["balanced_accuracy"]["low"] < 0.85
    assert report["macro_f1"]["low"] is None


def test_intervals_cover_the_expectation():
    """At least 89 of 100 intervals of 150 clips contain it, and the intervals are not too wide."""
    reports = [
        classification_report(*sample_predictions(seed, clips=150), named(7)) for seed in range(100)
    ]

    for name in NEW:
        expectation = np.mean([report[name]["value"] for report in reports])
        inside = [report[name]["low"] <= expectation <= report[name]["high"] for report in reports]
        assert 0.89 <= np.mean(inside) <= 1.0, name
        widths = [report[name]["high"] - report[name]["low"] for report in reports]
        spread = np.std([report[name]["value"] for report in reports])
        assert np.mean(widths) < 2 * 1.96 * spread * 1.5, name


def test_the_report_of_a_large_corpus_is_fast():
    """20,000 clips of 50 classes take under 5 s of CPU time; 100,000 take 3 s on an idle core."""
    truth, probabilities = sample_predictions(0, clips=20_000, classes=50)
    start = time.process_time()

    classification_report(truth, probabilities, named(50))

    assert time.process_time() - start < 5
