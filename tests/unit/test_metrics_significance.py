import doctest
from math import sqrt
from statistics import NormalDist

import numpy as np
import pytest

from raysound.metrics import significance
from raysound.metrics.intervals import Z, difference, estimate, proportion_estimate, wilson_interval
from raysound.metrics.significance import holm, p_value, significant


def spread(value, sd):
    return estimate(value, value - Z * sd, value + Z * sd)


def test_docstring_examples_run():
    result = doctest.testmod(significance)

    assert result.attempted == 2
    assert result.failed == 0


def test_p_is_below_5_percent_exactly_where_the_95_percent_interval_excludes_0():
    """For 2,000 pairs of shares, of estimates with spreads, and of one of each."""
    rng = np.random.default_rng(0)
    verdicts = []
    for number in range(2000):
        n, m = rng.integers(1, 400, 2)
        shares = [proportion_estimate(rng.integers(0, of + 1), of) for of in (n, m)]
        spreads = [estimate(v, v - a, v + b) for v, a, b in rng.random((2, 3))]
        a, b = (shares, spreads, (shares[0], spreads[1]))[number % 3]
        verdicts.append(difference(a, b)["significant"])
        assert (p_value(a, b) < 0.05) == verdicts[-1]
        assert p_value(a, b) == p_value(b, a)
    assert 400 < sum(verdicts) < 1600


@pytest.mark.parametrize(("one", "other"), [((90, 100), (70, 100)), ((50, 50), (188, 200))])
def test_p_of_shares_inverts_newcombes_interval(one, other):
    """At the confidence 1 - p, one end of the interval of the difference is 0."""
    a, b = proportion_estimate(*one), proportion_estimate(*other)
    p = p_value(a, b)

    (low_a, _), (_, high_b) = (wilson_interval(*counts, 1 - p) for counts in (one, other))

    gap = a["value"] - b["value"]
    assert sqrt((a["value"] - low_a) ** 2 + (high_b - b["value"]) ** 2) == pytest.approx(gap)


def test_p_of_estimates_with_spreads_is_that_of_the_normal_distribution():
    """Standard errors 3 and 4 and a difference of 10 give z = 2."""
    p = p_value(spread(10.0, 3.0), spread(0.0, 4.0))

    assert p == pytest.approx(2 * NormalDist().cdf(-2), rel=1e-6)


def test_p_in_limiting_cases():
    """It is 1 for equal values, 0 for a huge difference, and None without an interval."""
    far, none = spread(1e9, 1.0), estimate(1.0, why="3 clips")

    assert p_value(spread(2.0, 1.0), spread(2.0, 5.0)) == 1
    assert p_value(far, spread(0.0, 1.0)) == pytest.approx(0, abs=1e-300)
    assert p_value(none, far) is p_value(far, none) is None
    assert p_value(far, estimate(None, why="no clips")) is None


def test_holm_equals_its_definition():
    """In ascending order, hypotheses are rejected while p ≤ α / (remaining hypotheses)."""
    rng = np.random.default_rng(0)
    for _ in range(50):
        values = (rng.random(rng.integers(1, 20)) ** 4).tolist()
        found = holm([None, *values])
        assert found[0] is None
        for alpha in (0.01, 0.05, 0.5):
            rejected = set()
            for rank, place in enumerate(np.argsort(values)):
                if values[place] > alpha / (len(values) - rank):
                    break
                rejected.add(place)
            assert {i for i, p in enumerate(found[1:]) if p <= alpha} == rejected
    assert holm([]) == []
    assert not significant(None)
