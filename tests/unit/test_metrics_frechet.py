import doctest

import numpy as np
import pytest
from scipy.linalg import sqrtm

from raysound.metrics import frechet
from raysound.metrics import moments as moments_module
from raysound.metrics.frechet import (
    CLIPS_PER_DIMENSION,
    covariance_factor,
    fad_inf,
    frechet_distance,
    frechet_estimate,
    moments_distance,
)
from raysound.metrics.moments import covariance, merge_moments, moments


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng([seed, n, d]).standard_normal((n, d)) * scale + shift


def by_scipy(x, y):
    """The formula with the matrix root of scipy."""
    a, b = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    gap = x.mean(axis=0) - y.mean(axis=0)
    return gap @ gap + np.trace(a + b - 2 * np.real(sqrtm(a @ b)))


def measured(x, y, **keywords):
    of_y = moments(y)
    return frechet_estimate(x, of_y, covariance_factor(of_y), **keywords)


@pytest.mark.parametrize("module", [frechet, moments_module])
def test_docstring_examples_run(module):
    """The examples of the docstrings give the documented results."""
    result = doctest.testmod(module)

    assert result.attempted >= 2
    assert result.failed == 0


@pytest.mark.parametrize("parts", [1, 2, 7])
def test_merged_parts_give_the_same_moments(parts):
    """Mean and covariance equal those of numpy to 1e-12, the distance is equal to 1e-11."""
    x = normal(0, 5000, 12, scale=np.logspace(-2, 1, 12), shift=3)
    y = normal(1, 300, 12)

    merged = merge_moments(*(moments(part) for part in np.array_split(x, parts)))

    assert merged.n == 5000
    np.testing.assert_allclose(merged.mean, x.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(covariance(merged), np.cov(x, rowvar=False), rtol=1e-10, atol=1e-12)
    expected = moments_distance(moments(x), moments(y))
    assert moments_distance(merged, moments(y)) == pytest.approx(expected, rel=1e-11)


def test_merging_does_not_depend_on_the_grouping():
    """((a, b), c), (a, (b, c)) and (c, a, b) agree to 1e-12; a part may have a single clip."""
    a, b, c = (moments(normal(seed, n, 5, shift=100)) for seed, n in ((0, 1), (1, 40), (2, 3000)))

    first = merge_moments(merge_moments(a, b), c)
    for other in (merge_moments(a, merge_moments(b, c)), merge_moments(c, a, b)):
        np.testing.assert_allclose(other.mean, first.mean, rtol=1e-12)
        np.testing.assert_allclose(other.m2, first.m2, rtol=1e-12, atol=1e-9)
        assert other.n == first.n == 3041


def test_a_large_offset_does_not_reduce_the_precision():
    """Clips around 1e7 have the covariance of the same clips around 0, to 1e-6."""
    x = normal(0, 5000, 4)

    np.testing.assert_allclose(
        covariance(moments(x + 1e7)), covariance(moments(x)), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("case", ["alike", "shifted", "wide", "correlated", "n near d"])
def test_distance_equals_the_formula_with_scipy(case):
    """For covariances of full rank, within 1e-7."""
    x, y = normal(0, 400, 16), normal(1, 300, 16)
    x = {
        "alike": x, "shifted": x + 2, "wide": 3 * x, "correlated": x @ normal(2, 16, 16),
        "n near d": x[:20],
    }[case]  # fmt: skip

    assert frechet_distance(x, y) == pytest.approx(by_scipy(x, y), rel=1e-7)
    assert measured(x, y)["value"] == pytest.approx(by_scipy(x, y), rel=1e-7)


@pytest.mark.parametrize(("n", "m"), [(10, 200), (200, 10), (10, 12), (64, 200)])
def test_methods_agree_for_fewer_clips_than_dimensions(n, m):
    """Singular values, eigenvalues and the Gram matrix agree to 1e-6 of the traces."""
    x, y = normal(0, n, 64, scale=2), normal(1, m, 64)
    scale = 5 * 64

    by_values = frechet_distance(x, y)

    assert moments_distance(moments(x), moments(y)) == pytest.approx(by_values, abs=1e-6 * scale)
    assert measured(x, y)["value"] == pytest.approx(by_values, abs=1e-6 * scale)
    assert by_values == pytest.approx(frechet_distance(y, x), rel=1e-9)


@pytest.mark.parametrize(
    "x",
    [
        normal(0, 20, 128),
        normal(0, 300, 16),
        np.ones((30, 8)),
        np.repeat(normal(0, 5, 8), 6, axis=0),
        np.outer(np.arange(30.0), np.ones(8)),
        normal(0, 50, 8, scale=1e-12),
        normal(0, 50, 8, shift=1e6),
        np.where(np.arange(16) % 2, normal(0, 300, 16), 0),
    ],
    ids=[
        "n < d", "n > d", "constant", "copies", "collinear", "tiny", "far away", "dead dimensions",
    ],
)  # fmt: skip
def test_the_distance_of_a_set_to_itself_is_zero(x):
    """Up to 1e-6 of the trace, and never negative, for any rank and order of the clips."""
    shuffled = x[np.random.default_rng(0).permutation(len(x))]
    trace = np.trace(np.cov(x, rowvar=False)) + 1e-30

    assert 0 <= frechet_distance(x, shuffled) <= 1e-6 * trace
    assert 0 <= moments_distance(moments(x), moments(shuffled)) <= 1e-6 * trace


def test_the_distance_of_constant_sets_is_that_of_their_means():
    """Without spread only the means count: a difference of (3, 4) gives 25."""
    x = np.tile([3.0, 4.0], (30, 1))

    assert frechet_distance(x, 0 * x) == pytest.approx(25)
    assert moments_distance(moments(x), moments(0 * x)) == pytest.approx(25)


def test_distance_is_invariant_to_rotation_and_scales_quadratically():
    """A factor of 10 multiplies d² by 100; rotating or shifting both sets does not change it."""
    x, y = normal(0, 200, 8, scale=2), normal(1, 100, 8)
    rotation = np.linalg.qr(normal(2, 8, 8))[0]

    assert frechet_distance(10 * x, 10 * y) == pytest.approx(100 * frechet_distance(x, y))
    assert frechet_distance(x @ rotation, y @ rotation) == pytest.approx(frechet_distance(x, y))
    assert frechet_distance(x + 5, y + 5) == pytest.approx(frechet_distance(x, y))


def test_distance_increases_with_the_shift_and_with_the_spread():
    """It increases monotonically."""
    y = normal(1, 500, 8)
    shifted = [frechet_distance(normal(0, 500, 8, shift=by), y) for by in (0, 0.2, 0.5, 1, 3)]
    wider = [frechet_distance(normal(0, 500, 8, scale=by), y) for by in (1, 1.3, 2, 4)]

    assert shifted == sorted(shifted)
    assert wider == sorted(wider)


def test_intervals_cover_the_expectation():
    """The intervals of 90 to 99 % of 200 generators contain the mean distance."""
    n, d = 400, 8
    y = normal(1, 300, d)
    of_y = moments(y)
    root = covariance_factor(of_y)

    found = [
        frechet_estimate(normal(seed, n, d, scale=1.5, shift=0.3), of_y, root, seed=seed)
        for seed in range(200)
    ]

    truth = np.mean([one["value"] for one in found])
    assert 0.90 <= np.mean([one["low"] <= truth <= one["high"] for one in found]) <= 0.99


@pytest.mark.parametrize("n", [10, 40, 45, 60, 159, 160])
def test_an_interval_needs_four_clips_per_dimension(n):
    """With fewer clips it would be up to three times too wide; the value is still given."""
    found = measured(normal(0, n, 40), normal(1, 300, 40))

    assert found["value"] > 0
    if n < 160:
        assert (found["low"], found["high"]) == (None, None)
        assert found["why"] == f"{n} clips: 40 dimensions need 160 for an interval"
    else:
        assert found["low"] < found["value"] < found["high"]


def test_extrapolation_removes_the_bias_and_covers_the_truth():
    """For the true values 0 and 16 · 0.25, at most a tenth of the bias remains.

    At least 85 % of the intervals contain the true value.
    """
    for shift, truth in ((0.0, 0.0), (0.5, 4.0)):
        y = normal(10_000, 20_000, 16)
        plain, found = [], []
        for seed in range(40):
            x = normal(seed, 200, 16, shift=shift)
            plain.append(frechet_distance(x, y) - truth)
            found.append(fad_inf(x, y, seed))
        errors = [one["value"] - truth for one in found]
        assert np.mean(plain) > 0.3
        assert abs(np.mean(errors)) < 0.1 * np.mean(plain) + 2 * np.std(errors) / 40**0.5
        if shift:
            inside = [one["low"] <= truth <= one["high"] for one in found]
            assert 0.85 <= np.mean(inside) <= 1.0


def test_extrapolation_is_reproducible():
    """The same seed gives bitwise equal results, another seed a similar value."""
    x, y = normal(0, 400, 8, scale=1.2), normal(1, 400, 8)

    one = fad_inf(x, y, 3)

    assert fad_inf(x, y, 3) == one
    assert fad_inf(x, y, 4)["value"] == pytest.approx(one["value"], abs=0.2)
    assert one["low"] < one["value"] < one["high"]


@pytest.mark.parametrize(("n", "m", "message"), [(63, 900, "generated"), (900, 63, "reference")])
def test_extrapolation_of_too_few_clips_has_a_reason(n, m, message):
    """Halves of fewer than 2 clips per dimension have no value; the reason names the side."""
    assert 2 * CLIPS_PER_DIMENSION * 16 == 64

    refused = fad_inf(normal(0, n, 16), normal(1, m, 16))

    assert refused["value"] is None
    assert refused["why"] == f"63 {message} clips: 16 dimensions need 64 for an extrapolation"
    assert fad_inf(normal(0, 64, 16), normal(1, 64, 16))["value"] is not None
    assert "minutes" in fad_inf(np.ones((9, 2000)), np.ones((9, 2000)))["why"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: frechet_distance(np.ones((1, 3)), np.ones((9, 3))), ["2 clips", "1"]),
        (lambda: frechet_distance(np.ones((9, 3)), np.ones((9, 4))), ["3", "4"]),
        (
            lambda: moments_distance(moments(np.ones((9, 3))), moments(np.ones((9, 4)))),
            ["3", "4"],
        ),
        (lambda: moments(np.ones((0, 3))), ["no clips"]),
        (lambda: moments([1.0, 2.0]), ["(2,)"]),
        (lambda: moments([[1.0, np.nan]]), ["clip 0", "nan", "dimension 1"]),
        (lambda: merge_moments(), ["nothing"]),
        (lambda: merge_moments(moments(np.ones((2, 3))), moments(np.ones((2, 4)))), ["3", "4"]),
        (lambda: covariance(moments(np.ones((1, 3)))), ["2 clips", "1"]),
        (lambda: fad_inf(np.ones((9, 3)), np.ones((9, 4))), ["3", "4"]),
    ],
)
def test_errors_name_the_invalid_values(call, message):
    """Too few clips, different dimensions and NaN raise errors that name them."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()

    assert all(value in str(caught.value) for value in message)
