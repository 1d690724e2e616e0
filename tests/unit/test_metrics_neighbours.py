import doctest

import numpy as np
import pytest
from prdc import compute_prdc
from scipy.spatial.distance import cdist, pdist

from raysound.metrics import kernel
from raysound.metrics import neighbours as neighbours_module
from raysound.metrics.distances import squared_distances
from raysound.metrics.intervals import half_samples
from raysound.metrics.kernel import bandwidth, kernel_matrices, kernel_mean, mmd2_x100, mmd_estimate
from raysound.metrics.nearest import nearest_reference_clips
from raysound.metrics.neighbours import (
    BallCounts,
    _coverages,
    _recalls,
    authenticity,
    clip_estimates,
    nearest_others,
    neighbour_metrics,
    neighbours,
    per_clip,
    set_estimates,
)


def normal(seed, n, d, scale=1.0, shift=0.0):
    values = np.random.default_rng([seed, n, d]).standard_normal((n, d)) * scale + shift
    return values.astype(np.float32)


def prdc_metrics(x, y, k=5):
    """The metrics that the package prdc computes as well."""
    found = neighbour_metrics(x, y, k)
    return {key: found[key] for key in ("precision", "recall", "density", "coverage")}


def measures_of(x, y, seed=0):
    alone = per_clip(x, y)
    counts = BallCounts.of(alone.balls, alone.authentic)
    return set_estimates(neighbours(x, y), seed) | clip_estimates(counts)


CASES = {
    "alike": (normal(0, 300, 16), normal(1, 200, 16)),
    "n < d": (normal(0, 20, 64), normal(1, 30, 64)),
    "smallest": (normal(0, 7, 3), normal(1, 7, 3)),
    "narrow": (normal(0, 200, 4, scale=0.2), normal(1, 300, 4)),
    "wide": (normal(0, 200, 4, scale=4), normal(1, 300, 4)),
    "identical": (normal(0, 100, 8), normal(0, 100, 8)),
    "many silent": (np.maximum(normal(0, 99, 8), 1), np.maximum(normal(1, 99, 8), 1)),
    "collinear": (np.outer(np.arange(40), np.ones(3)), np.outer(np.arange(50) + 0.3, np.ones(3))),
    "tiny": (normal(0, 99, 8, scale=1e-6), normal(1, 99, 8, scale=1e-6)),
}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("case", CASES)
def test_four_metrics_equal_prdc(case, k, capsys):
    """They equal those of prdc 0.2 for every k."""
    x, y = (values.astype(np.float64) for values in CASES[case])

    assert prdc_metrics(x, y, k) == pytest.approx(compute_prdc(y, x, nearest_k=k), abs=1e-12)
    capsys.readouterr()


def test_an_offset_does_not_change_the_metrics():
    """The metrics around 1e4, where float32 has three decimal places, equal those around 0."""
    x, y = (np.round(values * 64) / 64 for values in (normal(0, 200, 8), normal(1, 150, 8)))

    assert prdc_metrics(x + 1e4, y + 1e4) == prdc_metrics(x, y)


def test_copies_have_distance_zero():
    """Repeated clips have the radius 0, so no clip is in their ball."""
    y = np.repeat(normal(0, 4, 32), 10, axis=0)

    assert (nearest_others(y.astype(float), 5)[1] == 0).all()
    assert prdc_metrics(y, y) == {"precision": 0, "recall": 0, "density": 0, "coverage": 0}


def test_distances_equal_scipy():
    """Within 1e-12."""
    x, y = normal(0, 37, 5).astype(float), normal(1, 23, 5).astype(float)
    found = np.vstack([block for _, block in squared_distances(x, y)])

    np.testing.assert_allclose(found, cdist(x, y) ** 2, rtol=1e-12)


def test_collapse_has_a_high_precision_and_a_low_recall():
    """Few good sounds have high precision, low recall and coverage; noise is the opposite."""
    y = normal(1, 500, 8)
    collapsed = prdc_metrics(normal(0, 300, 8, scale=0.05), y)
    noise = prdc_metrics(normal(0, 300, 8, scale=5), y)
    faithful = prdc_metrics(normal(0, 300, 8), y)

    assert collapsed["precision"] > 0.95
    assert collapsed["recall"] < 0.05
    assert collapsed["coverage"] < faithful["coverage"] / 2
    assert noise["precision"] < 0.05
    assert noise["recall"] > 0.95
    assert noise["density"] < 0.1 < 0.8 < faithful["density"] < 1.2


def test_intervals_cover_the_expectation():
    """88 to 100 % of 100 intervals contain the mean of each share, and they are not too wide."""
    y = normal(1, 150, 6)
    found = [measures_of(normal(seed, 120, 6, scale=0.8), y, seed) for seed in range(2, 102)]

    for name in found[0]:
        values = [one[name]["value"] for one in found]
        inside = [one[name]["low"] <= np.mean(values) <= one[name]["high"] for one in found]
        assert 0.88 <= np.mean(inside) <= 1.0, name
        width = np.mean([one[name]["high"] - one[name]["low"] for one in found])
        assert width < 2.5 * 2 * 1.96 * np.std(values), name


def test_measures_equal_the_functions():
    """They are reproducible, and have a reason if half samples are too small."""
    x, y = normal(0, 60, 4), normal(1, 70, 4)

    measures = measures_of(x, y)

    assert {name: one["value"] for name, one in measures.items()} == pytest.approx(
        {**prdc_metrics(x, y), "authenticity": authenticity(per_clip(x, y))}
    )
    assert measures_of(x, y) == measures
    few = measures_of(x[:11], y)
    assert few["recall"]["low"] is None
    assert "11 clips" in few["recall"]["why"]
    assert few["precision"]["low"] < few["precision"]["high"]
    assert few["density"]["low"] < few["density"]["high"]


def test_results_per_clip_do_not_depend_on_blocks():
    """Clips are compared in blocks of 2,048; the result of a clip equals that of the clip alone."""
    x, y = normal(0, 4100, 4), normal(1, 300, 4)

    found = per_clip(x, y)

    for place in (0, 2047, 2048, 4099):
        alone = per_clip(x[place : place + 1], y)
        assert (found.balls[place], found.authentic[place]) == (alone.balls, alone.authentic)
    assert len(per_clip(x[:0], y).balls) == 0


def test_recall_of_halves_equals_that_of_these_clips():
    """The result from the list of 32 neighbours equals that computed from the clips of the half."""
    x, y = normal(0, 80, 4, scale=0.7), normal(1, 70, 4)
    of, halves = neighbours(x, y), half_samples(80, draws=8)

    assert _recalls(of, halves) == pytest.approx(
        [prdc_metrics(x[half], y)["recall"] for half in halves]
    )
    assert _coverages(of, halves) == pytest.approx(
        [prdc_metrics(x[half], y)["coverage"] for half in halves]
    )


def test_copies_are_not_authentic():
    """No copy is authentic, all distant clips are, and about half of the clips of one source."""
    y = normal(1, 400, 8)

    assert authenticity(per_clip(y[:50], y)) == 0
    assert authenticity(per_clip(y[:50] + 1e-4, y)) == 0
    assert authenticity(per_clip(y[:50] + 9, y)) == 1
    assert 0.35 < authenticity(per_clip(normal(0, 400, 8), y)) < 0.65
    mixed = np.vstack([y[:3], y[3:6] + 9])
    assert per_clip(mixed, y).authentic.tolist() == [False] * 3 + [True] * 3


def test_authenticity_by_hand():
    """Reference 0, 1, 5: clip 0.6 is nearer to 1 than 1 to 0, clip 8 is nearer to 5 than 5 to 1."""
    y = np.array([[0.0], [1.0], [5.0]])

    found = per_clip([[0.6], [8.0], [9.5], [-1.5]], y, k=1)

    assert found.authentic.tolist() == [False, False, True, True]


@pytest.mark.parametrize("case", CASES)
def test_nearest_and_realism_equal_brute_force(case):
    """Index and distance equal those of scipy; realism equals its definition within 1e-3."""
    x, y = (values.astype(np.float64) for values in CASES[case])
    distances = cdist(x, y)
    radii = np.sort(cdist(y, y), axis=1)[:, 5]
    eligible = radii <= np.median(radii)
    with np.errstate(divide="ignore", invalid="ignore"):
        realism = (radii[eligible] / distances[:, eligible]).max(axis=1)

    found = nearest_reference_clips(x, y)

    np.testing.assert_allclose(found.distance, distances.min(axis=1), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(distances[np.arange(len(x)), found.index], found.distance, rtol=1e-9)
    finite = np.isfinite(found.realism)
    assert (found.realism[~finite] == np.inf).all()
    assert (found.distance[~finite] == 0).all()
    np.testing.assert_allclose(found.realism[finite], realism[finite], rtol=1e-3)


@pytest.mark.parametrize("shift", [0.0, 1000.0])
def test_copies_are_found_among_near_copies(shift):
    """The copy, at distance 0, is nearer than clips at 1e-6; of equal ones the lower index."""
    y = normal(1, 300, 64, shift=shift)
    y[100:140] = y[99] + normal(2, 40, 64, scale=1e-6)
    y[200] = y[10]
    x = np.vstack([y[120], y[200], y[250], y[10] + 0.5])

    found = nearest_reference_clips(x, y)

    assert (y[found.index[0]] == y[120]).all()
    assert found.index[1:].tolist() == [10, 250, 10]
    assert (found.distance[:3] == 0).all()
    assert found.distance[3] == pytest.approx(0.5 * 8, rel=1e-3)
    assert (found.realism[:3] == np.inf).all()


def test_realism_is_above_one_inside_a_ball():
    """It is above 1 at the centre of the reference, and decreases with the distance."""
    y = normal(1, 500, 8)
    x = np.linspace(0.01, 30, 9)[:, None] * np.ones(8) / 8**0.5

    realism = nearest_reference_clips(x, y).realism

    assert realism[0] > 1 > realism[-1]
    assert (np.diff(realism[2:]) < 0).all()


def test_nearest_of_no_clips_is_empty():
    """No clips give no entries."""
    found = nearest_reference_clips(np.zeros((0, 8)), normal(1, 20, 8))

    assert len(found.index) == len(found.distance) == len(found.realism) == 0


def brute_mmd(x, y):
    """The U-statistic computed with scipy; the bandwidth is that of `y`."""
    sigma = np.median(pdist(y))

    def kernel(a, b):
        return np.exp(-(cdist(a, b) ** 2) / (2 * sigma**2))

    n, m = len(x), len(y)
    own = (kernel(x, x).sum() - n) / (n * (n - 1))
    return 100 * (own + (kernel(y, y).sum() - m) / (m * (m - 1)) - 2 * kernel(x, y).mean())


@pytest.mark.parametrize("shift", [0, 1e5])
@pytest.mark.parametrize("case", CASES)
def test_mmd_equals_its_definition(case, shift):
    """Within 1e-8 of kernels of scipy; within 1e-6 with a common offset."""
    x, y = (values.astype(np.float64) for values in CASES[case])
    if case == "tiny" and shift:
        pytest.skip("the input has no precision left at an offset of 1e11 widths")

    assert mmd2_x100(x + shift, y + shift) == pytest.approx(
        brute_mmd(x, y), abs=1e-6 if shift else 1e-8
    )
    assert bandwidth(y) == pytest.approx(np.median(pdist(y)), rel=1e-7)


def test_docstring_examples_run():
    """The examples of the docstrings give the documented results."""
    for module, examples in ((kernel, 1), (neighbours_module, 2)):
        result = doctest.testmod(module)

        assert result.attempted == examples
        assert result.failed == 0


def test_mmd_is_unbiased_and_increases_with_the_shift():
    """For one distribution, the mean over 60 pairs is 0 within its noise, and some are negative."""
    y = normal(1, 100, 8)
    alike = [mmd2_x100(normal(seed, 50, 8), normal(seed + 500, 60, 8)) for seed in range(60)]
    shifted = [mmd2_x100(normal(0, 80, 8, shift=by), y) for by in (0, 0.3, 0.6, 1, 2)]

    assert abs(np.mean(alike)) < 3 * np.std(alike) / 60**0.5
    assert min(alike) < 0 < max(alike)
    assert shifted == sorted(shifted)
    assert shifted[-1] > 10


def test_bandwidth_is_that_of_the_reference():
    """A generator with four times the spread has a larger MMD than one with half the spread."""
    y = normal(1, 300, 16)

    assert mmd2_x100(normal(0, 300, 16, scale=4), y) > mmd2_x100(normal(0, 300, 16, scale=0.5), y)
    assert bandwidth(y) == pytest.approx(np.sqrt(2 * 16), rel=0.05)
    large = normal(2, 3000, 4)
    assert bandwidth(large, 1) == bandwidth(large, 1)
    assert bandwidth(large, 1) == pytest.approx(np.median(pdist(large)), rel=0.03)


@pytest.mark.parametrize("shift", [0.0, 0.4])
def test_mmd_intervals_cover_the_expectation(shift):
    """90 to 100 % of 200 intervals contain the mean MMD; at most 99 % if it is far from 0."""
    y = normal(1, 200, 5)
    sigma = bandwidth(y)
    mean = kernel_mean(y.astype(float), sigma)

    found = [
        mmd_estimate(kernel_matrices(normal(seed, 80, 5, shift=shift), y, sigma, mean), seed)
        for seed in range(2, 202)
    ]

    truth = np.mean([one["value"] for one in found])
    inside = np.mean([one["low"] <= truth <= one["high"] for one in found])
    assert 0.90 <= inside <= (0.99 if shift else 1.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: neighbours(normal(0, 5, 3), normal(1, 9, 3)), ["5", "9"]),
        (lambda: neighbours(normal(0, 9, 3), normal(1, 9, 4)), ["3", "4"]),
        (lambda: per_clip(normal(0, 9, 3), normal(1, 5, 3)), ["5"]),
        (lambda: per_clip(normal(0, 9, 3), normal(1, 9, 4)), ["3", "4"]),
        (lambda: nearest_reference_clips(normal(0, 9, 3), normal(1, 5, 3)), ["5"]),
        (lambda: nearest_reference_clips(normal(0, 9, 4), normal(1, 9, 3)), ["4", "3"]),
        (lambda: nearest_others(np.ones((3, 2)), 3), ["3"]),
        (lambda: mmd2_x100(normal(0, 1, 3), normal(1, 9, 3)), ["1", "9"]),
        (lambda: mmd2_x100(normal(0, 9, 3), np.ones((9, 3))), ["copies"]),
        (lambda: bandwidth(np.ones((1, 3))), ["2", "1"]),
        (lambda: mmd2_x100(np.full((9, 3), np.inf), normal(1, 9, 3)), ["inf", "clip 0"]),
    ],
)
def test_errors_name_the_invalid_values(call, message):
    """Too few clips, different dimensions and copies raise errors that name them."""
    with pytest.raises(ValueError, match=r"\w") as caught:
        call()

    assert all(value in str(caught.value) for value in message)
