import doctest
import math

import numpy as np
import pytest
from scipy.stats import binomtest

from raysound.metrics import intervals
from raysound.metrics.intervals import (
    bootstrap_interval,
    difference,
    estimate,
    half_sample_interval,
    half_samples,
    mean_estimate,
    paired_difference,
    paired_p_value,
    proportion_estimate,
    resampling_estimate,
    wilson_interval,
)


def covered(experiments, truth):
    """Share of the intervals that contain the true value."""
    return np.mean([low <= truth <= high for low, high in experiments])


def test_docstring_examples_run():
    """The examples of the docstrings give the documented results."""
    result = doctest.testmod(intervals)

    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.parametrize("interval", [bootstrap_interval, half_sample_interval])
def test_interval_of_a_mean_equals_the_formula(interval):
    """For 400 clips both give mean ± 1.96 s/√n, within the noise of the samples (15 %)."""
    values = np.random.default_rng(0).exponential(size=400)
    keywords = (
        {"resamples": 2000} if interval is bootstrap_interval else {"value": values.mean()}
    ) | ({"draws": 400} if interval is half_sample_interval else {})

    low, high = interval(lambda chosen: values[chosen].mean(), 400, **keywords)

    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.15 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.15 * half)


@pytest.mark.parametrize("n", [51, 60])
def test_half_samples_cover_the_expectation(n):
    """90 to 99 % of 300 intervals contain the mean, for even and odd n."""
    rng = np.random.default_rng(n)
    experiments = []
    for seed in range(300):
        values = rng.standard_normal(n) + 3
        experiments.append(
            half_sample_interval(
                lambda chosen, v=values: v[chosen].mean(), n, values.mean(), seed=seed
            )
        )

    assert 0.90 <= covered(experiments, 3) <= 0.99


def test_bootstrap_covers_the_expectation():
    """90 to 99 % of 200 intervals contain the mean of a skewed distribution."""
    rng = np.random.default_rng(4)
    experiments = []
    for seed in range(200):
        values = rng.exponential(size=80)
        experiments.append(
            bootstrap_interval(lambda chosen, v=values: v[chosen].mean(), 80, seed=seed)
        )

    assert 0.90 <= covered(experiments, 1) <= 0.99


def test_half_samples_of_an_odd_number_of_clips_are_scaled():
    """The variance of halves of 2 of 5 clips is (1/2 - 1/5) / (1/5) = 1.5 times that of 5 clips."""
    values = np.array([0.0, 1.0, 5.0, 2.0, 9.0])

    low, high = half_sample_interval(lambda chosen: values[chosen].mean(), 5, 3.4, draws=20000)

    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(5), rel=0.03)


def test_a_statistic_may_be_a_vector():
    """Each entry of a vector has the same interval as alone."""
    values = np.random.default_rng(1).standard_normal((40, 2))

    together = bootstrap_interval(lambda chosen: values[chosen].mean(axis=0), 40)
    second = bootstrap_interval(lambda chosen: values[chosen, 1].mean(), 40)
    mean = values.mean(axis=0)
    half_both = half_sample_interval(lambda chosen: values[chosen].mean(axis=0), 40, mean)

    assert together[0].shape == (2,)
    assert (together[0][1], together[1][1]) == pytest.approx(second, rel=1e-12)
    assert (half_both[0] < mean).all()


def test_half_samples_depend_only_on_their_seed():
    """The same seed gives the same halves, another seed other halves; no clip repeats in a half."""
    halves = half_samples(11, draws=50, seed=3)

    assert halves.shape == (50, 5)
    assert (halves == half_samples(11, draws=50, seed=3)).all()
    assert (halves != half_samples(11, draws=50, seed=4)).any()
    assert all(len(set(half)) == 5 for half in halves.tolist())
    assert set(halves.ravel().tolist()) == set(range(11))


@pytest.mark.parametrize(
    "call",
    [
        lambda: half_samples(3),
        lambda: half_samples(10, draws=1),
        lambda: bootstrap_interval(np.mean, 0),
        lambda: bootstrap_interval(np.mean, 5, resamples=0),
    ],
)
def test_too_few_clips_or_samples_raise_an_error(call):
    """The error names both numbers."""
    with pytest.raises(ValueError, match=r"got \d+ and \d+"):
        call()


def test_an_interval_without_width_is_none():
    """If all resamples agree, or there are few clips, there is a reason instead of an interval."""
    assert resampling_estimate(0.5, 0.5, 0.5, 100, "clips")["low"] is None
    assert "no spread" in resampling_estimate(0.5, 0.5, 0.5, 100, "clips")["why"]
    assert "9 clips" in resampling_estimate(0.5, 0.4, 0.6, 9, "clips")["why"]
    assert resampling_estimate(0.5, 0.4, 0.6, 10, "clips") == {
        "value": 0.5,
        "low": 0.4,
        "high": 0.6,
    }


def test_difference_equals_newcombe():
    """Method 10 of Newcombe 1998, table II, example (a): 56/70 - 48/80 is 0.0524 to 0.3339."""
    found = difference(proportion_estimate(56, 70), proportion_estimate(48, 80))

    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert found["significant"]


def test_difference_is_antisymmetric_and_covers_the_truth():
    """Swapping the measures mirrors it; 90 to 99 % of 400 intervals contain the true value."""
    rng = np.random.default_rng(2)
    experiments = []
    for _ in range(400):
        a, b = (
            proportion_estimate(rng.binomial(60, 0.8), 60),
            proportion_estimate(rng.binomial(40, 0.7), 40),
        )
        found, swapped = difference(a, b), difference(b, a)
        assert (swapped["low"], swapped["high"]) == pytest.approx((-found["high"], -found["low"]))
        assert found["significant"] == (found["low"] > 0 or found["high"] < 0)
        experiments.append((found["low"], found["high"]))

    assert 0.90 <= covered(experiments, 0.1) <= 0.99


def test_difference_without_an_interval_is_not_significant():
    """If a measure lacks a value or an interval, so does the difference, with the same reason."""
    known = estimate(1.0, 0.9, 1.1)

    no_interval = difference(known, estimate(2.0, why="3 clips"))
    no_value = difference(estimate(None, why="too few"), known)

    assert no_interval == {
        "value": -1.0, "low": None, "high": None, "why": "3 clips", "significant": False
    }  # fmt: skip
    assert no_value["value"] is None
    assert (no_value["why"], no_value["significant"]) == ("too few", False)


def test_a_share_has_the_wilson_interval():
    """A share of no clips has no value and the interval [0, 1]."""
    assert proportion_estimate(0, 0) == {"value": None, "low": 0.0, "high": 1.0, "of": 0}
    low, high = wilson_interval(3, 10)
    assert proportion_estimate(3, 10) == {"value": 0.3, "low": low, "high": high, "of": 10}


def test_paired_difference_equals_newcombe():
    """The example of Newcombe 1998: 36, 12, 2 and 0 clips of classifiers that mostly agree."""
    both, only_a, only_b = np.repeat([0, 1, 2], [36, 12, 2]) == np.arange(3)[:, None]

    found = paired_difference(both | only_a, both | only_b)

    assert found["value"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert found["significant"]

    right = np.arange(200) < 180
    fewer = np.arange(200) < 168
    alone = difference(proportion_estimate(180, 200), proportion_estimate(168, 200))
    together = paired_difference(right, fewer)
    assert together["value"] == pytest.approx(alone["value"])
    assert together["significant"]
    assert not alone["significant"]


def test_paired_intervals_cover_the_truth():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(1000):
        one = rng.random(100) < 0.85
        swapped = rng.random(100) < 0.1
        other = np.where(swapped, rng.random(100) < 0.5, one)
        found = paired_difference(one, other)
        inside += found["low"] <= 0.85 - (0.9 * 0.85 + 0.1 * 0.5) <= found["high"]
    assert 0.93 <= inside / 1000 <= 0.985


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_paired_difference_raises_on_different_lengths(a, b):
    with pytest.raises(ValueError, match="the same clips"):
        paired_difference(a, b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "alike"),
    [(0, 0, 5), (1, 0, 0), (5, 1, 9), (3, 3, 0), (12, 30, 158), (0, 40, 3), (700, 800, 9)],
)
def test_the_paired_p_value_is_that_of_the_exact_binomial_test(only_a, only_b, alike):
    """Only clips on which the two classifiers differ have an effect."""
    a = [True] * only_a + [False] * only_b + [True] * alike
    b = [False] * only_a + [True] * only_b + [True] * alike

    differing = only_a + only_b
    expected = binomtest(only_a, differing, 0.5).pvalue if differing else 1.0
    assert paired_p_value(a, b) == pytest.approx(expected, rel=1e-9)
    assert paired_p_value(b, a) == paired_p_value(a, b)


def test_the_paired_p_value_raises_on_different_lengths():
    with pytest.raises(ValueError, match=r"must be \(n,\) of the same clips"):
        paired_p_value([True, False], [True])


def test_the_interval_of_a_mean_ends_at_the_largest_possible_number():
    """19 clips at rank 1 and one at rank 2: MAP@3 is at most 1."""
    found = mean_estimate(19.5, 19.25, 20, highest=1.0)

    assert found["value"] == 0.975
    assert 0.9 < found["low"] < 0.95
    assert found["high"] == 1.0
    assert mean_estimate(19.5, 19.25, 20)["high"] > 1
