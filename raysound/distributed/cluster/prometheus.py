"""Counters and gauges of a running job for Prometheus and Ray's dashboard."""

from __future__ import annotations

from functools import lru_cache

from ray.util.metrics import Counter, Gauge

# Descriptions by name; Prometheus exports each as ray_raysound_<name>.
COUNTERS = {
    "clips": "Clips extracted or found extracted, the rejected among them",
    "rejects": "Clips that can't be used",
    "audio_hours": "Hours of sound in them",
}
GAUGES = {
    "epoch": "The last completed epoch of a training",
    "train_loss": "Its loss on training clips",
    "train_accuracy": "Its accuracy on training clips, 0 to 1",
    "validation_loss": "Its loss on validation clips",
    "validation_accuracy": "Its accuracy on validation clips, 0 to 1",
    "accuracy": "Share of a corpus's clips that the classifier predicts as their label",
}


def add_to_counter(name: str, amount: float, **tags: str) -> None:
    """Adds to one of COUNTERS, by its tags; Ray rejects an increment of zero."""
    if amount > 0:
        _counter(name, tuple(sorted(tags))).inc(amount, tags)


def set_gauge(name: str, value: float, **tags: str) -> None:
    """Sets one of GAUGES, by its tags."""
    _gauge(name, tuple(sorted(tags))).set(value, tags)


@lru_cache
def _counter(name: str, tags: tuple[str, ...]) -> Counter:
    return Counter(f"raysound_{name}", COUNTERS[name], tags)


@lru_cache
def _gauge(name: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(f"raysound_{name}", GAUGES[name], tags)
