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
    paired_difference,
    paired_p_value,
    proportion_estimate,
    resampling_estimate,
    wilson_interval,
)


def covered(experiments, truth):
    """Share of the intervals that hold the truth."""
    return np.mean([low <= truth <= high for low, high in experiments])


def test_docstring_examples_run():
    """Every function's example gives what its docstring shows."""
    result = doctest.testmod(intervals)

    assert result.attempted >= 6
    assert result.failed == 0


@pytest.mark.parametrize("interval", [bootstrap_interval, half_sample_interval])
def test_interval_of_a_mean_is_the_textbook_one(interval):
    """Of 400 clips both come to mean ± 1.96 s/√n, within the noise of their draws (15 %)."""
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
    """Of 300 experiments 90 to 99 % hold the mean; odd n too."""
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
    """Of 200 experiments 90 to 99 % hold the mean of a skewed law."""
    rng = np.random.default_rng(4)
    experiments = []
    for seed in range(200):
        values = rng.exponential(size=80)
        experiments.append(
            bootstrap_interval(lambda chosen, v=values: v[chosen].mean(), 80, seed=seed)
        )

    assert 0.90 <= covered(experiments, 1) <= 0.99


def test_an_odd_half_is_scaled():
    """Of 5 clips, halves of 2 vary more than 5 clips do by (1/2 - 1/5) / (1/5) = 1.5."""
    values = np.array([0.0, 1.0, 5.0, 2.0, 9.0])

    low, high = half_sample_interval(lambda chosen: values[chosen].mean(), 5, 3.4, draws=20000)

    assert (high - low) / 2 == pytest.approx(1.96 * values.std(ddof=1) / math.sqrt(5), rel=0.03)


def test_a_statistic_may_be_a_vector():
    """Several numbers at once have the intervals that each has alone, whatever the order."""
    values = np.random.default_rng(1).standard_normal((40, 2))

    together = bootstrap_interval(lambda chosen: values[chosen].mean(axis=0), 40)
    second = bootstrap_interval(lambda chosen: values[chosen, 1].mean(), 40)
    mean = values.mean(axis=0)
    half_both = half_sample_interval(lambda chosen: values[chosen].mean(axis=0), 40, mean)

    assert together[0].shape == (2,)
    assert (together[0][1], together[1][1]) == pytest.approx(second, rel=1e-12)
    assert (half_both[0] < mean).all()


def test_draws_repeat_with_their_seed_alone():
    """The same seed gives the same halves, another gives others; a half repeats no clip."""
    drawn = half_samples(11, draws=50, seed=3)

    assert drawn.shape == (50, 5)
    assert (drawn == half_samples(11, draws=50, seed=3)).all()
    assert (drawn != half_samples(11, draws=50, seed=4)).any()
    assert all(len(set(half)) == 5 for half in drawn.tolist())
    assert set(drawn.ravel().tolist()) == set(range(11))


@pytest.mark.parametrize(
    "call",
    [
        lambda: half_samples(3),
        lambda: half_samples(10, draws=1),
        lambda: bootstrap_interval(np.mean, 0),
        lambda: bootstrap_interval(np.mean, 5, resamples=0),
    ],
)
def test_too_few_clips_are_refused(call):
    """What cannot be drawn is an error with both numbers."""
    with pytest.raises(ValueError, match=r"got \d+ and \d+"):
        call()


def test_an_interval_of_no_width_is_none():
    """Where all resamples agree, or clips are few, there is a reason in place of an interval."""
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
    apart = difference(proportion_estimate(56, 70), proportion_estimate(48, 80))

    assert apart["value"] == pytest.approx(0.2)
    assert (apart["low"], apart["high"]) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert apart["significant"]


def test_difference_turns_round_and_covers():
    """Swapped it is mirrored; of 400 experiments 90 to 99 % hold the truth."""
    rng = np.random.default_rng(2)
    experiments = []
    for _ in range(400):
        a, b = (
            proportion_estimate(rng.binomial(60, 0.8), 60),
            proportion_estimate(rng.binomial(40, 0.7), 40),
        )
        apart, back = difference(a, b), difference(b, a)
        assert (back["low"], back["high"]) == pytest.approx((-apart["high"], -apart["low"]))
        assert apart["significant"] == (apart["low"] > 0 or apart["high"] < 0)
        experiments.append((apart["low"], apart["high"]))

    assert 0.90 <= covered(experiments, 0.1) <= 0.99


def test_difference_without_an_interval_tells_nothing_apart():
    """A value or an interval that is missing on one side is missing in the difference, with why."""
    known = estimate(1.0, 0.9, 1.1)

    no_interval = difference(known, estimate(2.0, why="3 clips"))
    no_value = difference(estimate(None, why="too few"), known)

    assert no_interval == {
        "value": -1.0, "low": None, "high": None, "why": "3 clips", "significant": False
    }  # fmt: skip
    assert no_value["value"] is None
    assert (no_value["why"], no_value["significant"]) == ("too few", False)


def test_a_share_is_wilsons():
    """A share of nothing has no value and the whole interval."""
    assert proportion_estimate(0, 0) == {"value": None, "low": 0.0, "high": 1.0, "of": 0}
    low, high = wilson_interval(3, 10)
    assert proportion_estimate(3, 10) == {"value": 0.3, "low": low, "high": high, "of": 10}


def test_paired_shares_are_compared_clip_by_clip():
    """The table of Newcombe's paper, 36, 12, 2 and 0 clips, of classifiers that mostly agree."""
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
    held = 0
    for _ in range(1000):
        one = rng.random(100) < 0.85
        swapped = rng.random(100) < 0.1
        other = np.where(swapped, rng.random(100) < 0.5, one)
        found = paired_difference(one, other)
        held += found["low"] <= 0.85 - (0.9 * 0.85 + 0.1 * 0.5) <= found["high"]
    assert 0.93 <= held / 1000 <= 0.985


@pytest.mark.parametrize(("a", "b"), [([True], [True, False]), ([], [])])
def test_paired_shares_of_other_clips_are_refused(a, b):
    with pytest.raises(ValueError, match="the same clips"):
        paired_difference(a, b)


@pytest.mark.parametrize(
    ("only_a", "only_b", "alike"),
    [(0, 0, 5), (1, 0, 0), (5, 1, 9), (3, 3, 0), (12, 30, 158), (0, 40, 3), (700, 800, 9)],
)
def test_the_paired_p_value_is_that_of_the_exact_binomial_test(only_a, only_b, alike):
    """Of the clips on which two classifiers differ; whatever they agree on has no part in it."""
    a = [True] * only_a + [False] * only_b + [True] * alike
    b = [False] * only_a + [True] * only_b + [True] * alike

    differing = only_a + only_b
    expected = binomtest(only_a, differing, 0.5).pvalue if differing else 1.0
    assert paired_p_value(a, b) == pytest.approx(expected, rel=1e-9)
    assert paired_p_value(b, a) == paired_p_value(a, b)


def test_the_paired_p_value_wants_two_rows_of_one_length():
    with pytest.raises(ValueError, match=r"must be \(n,\) of the same clips"):
        paired_p_value([True, False], [True])
