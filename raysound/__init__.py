"""Tells how good a sound generator is, by a classifier trained on real sounds.

The public API. Ray and torch are imported when a name that needs them is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysound.distributed.extraction.datasets import log_mels as log_mels
    from raysound.distributed.extraction.datasets import read_features as read_features
    from raysound.settings.features import FeatureSettings as FeatureSettings

__all__ = ["FeatureSettings", "log_mels", "read_features"]

_MODULES = {
    "FeatureSettings": "raysound.settings.features",
    "log_mels": "raysound.distributed.extraction.datasets",
    "read_features": "raysound.distributed.extraction.datasets",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return getattr(import_module(_MODULES[name]), name)
    raise AttributeError(f"module 'raysound' has no attribute {name!r}")
