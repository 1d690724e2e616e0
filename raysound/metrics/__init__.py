"""Metrics of numpy arrays: classes, probabilities and embeddings; docs/api.md has examples."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysound.metrics.classification import classification_report as classification_report
    from raysound.metrics.fidelity import fidelity_report as fidelity_report
    from raysound.metrics.frechet import fad_inf as fad_inf
    from raysound.metrics.frechet import frechet_distance as frechet_distance
    from raysound.metrics.intervals import difference as difference
    from raysound.metrics.intervals import half_sample_interval as half_sample_interval
    from raysound.metrics.intervals import paired_difference as paired_difference
    from raysound.metrics.intervals import paired_p_value as paired_p_value
    from raysound.metrics.intervals import wilson_interval as wilson_interval
    from raysound.metrics.kernel import mmd2_x100 as mmd2_x100
    from raysound.metrics.neighbours import neighbour_metrics as neighbour_metrics
    from raysound.metrics.probabilities import am_score as am_score
    from raysound.metrics.probabilities import effective_num_classes as effective_num_classes
    from raysound.metrics.probabilities import (
        expected_calibration_error as expected_calibration_error,
    )
    from raysound.metrics.probabilities import inception_score as inception_score
    from raysound.metrics.probabilities import map_at_k as map_at_k
    from raysound.metrics.probabilities import modified_inception_score as modified_inception_score
    from raysound.metrics.significance import holm as holm
    from raysound.metrics.significance import p_value as p_value

_MODULES = {
    "classification": ("classification_report",),
    "fidelity": ("fidelity_report",),
    "frechet": ("frechet_distance", "fad_inf"),
    "intervals": (
        "difference", "half_sample_interval", "paired_difference", "paired_p_value",
        "wilson_interval",
    ),
    "kernel": ("mmd2_x100",),
    "neighbours": ("neighbour_metrics",),
    "probabilities": (
        "am_score", "effective_num_classes", "expected_calibration_error", "inception_score",
        "map_at_k", "modified_inception_score",
    ),
    "significance": ("holm", "p_value"),
}  # fmt: skip

__all__ = [name for names in _MODULES.values() for name in names]


def __getattr__(name: str) -> Any:
    for module, names in _MODULES.items():
        if name in names:
            return getattr(import_module(f"{__name__}.{module}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
