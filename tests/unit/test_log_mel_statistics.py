import numpy as np
import pytest

from raysound.evaluation.log_mel_statistics import QUANTILES, log_mel_statistics


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_statistics_equal_numpy_over_time(dtype: type) -> None:
    """The expected values are five statistics of each band, then five of its differences."""
    log_mel = np.random.default_rng(0).normal(-5, 3, (4, 3, 50)).astype(dtype)

    found = log_mel_statistics(log_mel)

    assert found.shape == (4, 30)
    assert found.dtype == np.float32
    for clip in range(4):
        for band in range(3):
            values = log_mel[clip, band].astype(np.float64)
            both = [values, values[1:] - values[:-1]]
            for place, one in enumerate(both):
                expected = [one.mean(), one.std(), *np.percentile(one, [10, 50, 90])]
                own = found[clip, place * 15 + band : (place + 1) * 15 : 3]
                np.testing.assert_allclose(own, expected, rtol=1e-6, atol=1e-6)
    assert QUANTILES == (0.1, 0.5, 0.9)


def test_differences_of_a_single_frame_are_0() -> None:
    found = log_mel_statistics(np.full((1, 2, 1), -3.0, np.float32))

    np.testing.assert_array_equal(found[0, :10], [-3, -3, 0, 0, -3, -3, -3, -3, -3, -3])
    np.testing.assert_array_equal(found[0, 10:], np.zeros(10))


def test_statistics_do_not_depend_on_other_clips() -> None:
    log_mel = np.random.default_rng(1).normal(-5, 3, (5, 8, 20)).astype(np.float32)

    alone = np.concatenate([log_mel_statistics(one[np.newaxis]) for one in log_mel])

    assert (log_mel_statistics(log_mel) == alone).all()
