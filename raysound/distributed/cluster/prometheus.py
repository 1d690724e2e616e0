"""Gauges of a running job for Prometheus and Ray's dashboard."""

from __future__ import annotations

from functools import lru_cache

from ray.util.metrics import Counter, Gauge

# What is counted up, and what goes up and down; Prometheus sees it as ray_raysound_<name>.
COUNTED = {
    "clips": "Clips extracted or found extracted, the rejected among them",
    "rejects": "Clips that can't be used",
    "audio_hours": "Hours of sound in them",
}
SHOWN = {
    "epoch": "The last whole epoch of a training",
    "train_loss": "Its loss on training clips",
    "train_accuracy": "Its accuracy on training clips, 0 to 1",
    "validation_loss": "Its loss on validation clips",
    "validation_accuracy": "Its accuracy on validation clips, 0 to 1",
    "accuracy": "Share of a corpus's clips that the classifier predicts as their label",
}


def add_to_counter(name: str, amount: float, **tags: str) -> None:
    """Adds to one of COUNTED, by its tags; Prometheus takes no zero."""
    if amount > 0:
        _counter(name, tuple(sorted(tags))).inc(amount, tags)


def set_gauge(name: str, value: float, **tags: str) -> None:
    """Sets one of SHOWN, by its tags."""
    _gauge(name, tuple(sorted(tags))).set(value, tags)


@lru_cache
def _counter(name: str, tags: tuple[str, ...]) -> Counter:
    return Counter(f"raysound_{name}", COUNTED[name], tags)


@lru_cache
def _gauge(name: str, tags: tuple[str, ...]) -> Gauge:
    return Gauge(f"raysound_{name}", SHOWN[name], tags)
