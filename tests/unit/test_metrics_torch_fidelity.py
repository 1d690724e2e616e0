"""Comparison with torch-fidelity 0.4, a reference implementation for images."""

import numpy as np
import pytest

from raysound.metrics.frechet import frechet_distance, moments_distance
from raysound.metrics.moments import moments
from raysound.metrics.neighbours import neighbours, per_clip, precision, recall
from raysound.metrics.probabilities import inception_score

torch = pytest.importorskip("torch")
pytest.importorskip("torch_fidelity", reason="needs torch-fidelity", exc_type=ImportError)


def normal(seed, n, d, scale=1.0):
    return np.random.default_rng([seed, n, d]).standard_normal((n, d)) * scale


@pytest.mark.parametrize(("n", "d"), [(400, 16), (90, 64)])
def test_frechet_distance_equals_fid(n, d):
    """Within 1e-7 where both covariances have full rank."""
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    x, y = normal(0, n, d, scale=1.3), normal(1, 300, d)
    statistics = (fid_features_to_statistics(torch.from_numpy(values)) for values in (x, y))
    expected = fid_statistics_to_metric(*statistics, verbose=False)["frechet_inception_distance"]

    assert moments_distance(moments(x), moments(y)) == pytest.approx(expected, rel=1e-7)
    assert frechet_distance(x, y) == pytest.approx(expected, rel=1e-7)


@pytest.mark.parametrize("n", [7, 300])
def test_inception_score_equals_isc_of_one_split(n):
    """Within 1e-9; torch-fidelity takes logits and computes a single split."""
    from torch_fidelity.metric_isc import isc_features_to_metric

    logits = normal(2, n, 10, scale=3)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)

    expected = isc_features_to_metric(torch.from_numpy(logits), splits=1)

    assert inception_score(probabilities) == pytest.approx(
        expected["inception_score_mean"], rel=1e-9
    )


@pytest.mark.parametrize("scale", [0.5, 1, 2])
def test_precision_and_recall_equal_prc(scale):
    """Exact for k = 3; torch-fidelity counts distances ≤ radius, but there are no ties here."""
    from torch_fidelity.metric_prc import calculate_precision_recall_full

    x, y = normal(0, 150, 8, scale=scale), normal(1, 200, 8)

    expected = calculate_precision_recall_full(torch.from_numpy(x), torch.from_numpy(y), 3)

    found = precision(per_clip(x, y, k=3)), recall(neighbours(x, y, k=3))
    assert found == pytest.approx(expected, abs=1e-6)
