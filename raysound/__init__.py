"""Evaluates sound generators: trains a classifier on real sounds, scores generated ones with it.

docs/api.md describes the public API. Ray and torch are imported when a name that needs them is
first used.
"""

import os
from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raysound import metrics as metrics
    from raysound.distributed.evaluation.evaluate import evaluate as evaluate
    from raysound.distributed.extraction.datasets import log_mels as log_mels
    from raysound.distributed.extraction.datasets import read_features as read_features
    from raysound.distributed.extraction.extract import extract as extract
    from raysound.distributed.search.tune import tune as tune
    from raysound.distributed.training.train import train as train
    from raysound.errors import UserError as UserError
    from raysound.evaluation.predict import Classifier as Classifier
    from raysound.settings.features import FeatureSettings as FeatureSettings
    from raysound.settings.loading import load_config as load_config

    __version__: str

_MODULES = {
    "Classifier": "raysound.evaluation.predict",
    "FeatureSettings": "raysound.settings.features",
    "UserError": "raysound.errors",
    "evaluate": "raysound.distributed.evaluation.evaluate",
    "extract": "raysound.distributed.extraction.extract",
    "load_config": "raysound.settings.loading",
    "log_mels": "raysound.distributed.extraction.datasets",
    "read_features": "raysound.distributed.extraction.datasets",
    "train": "raysound.distributed.training.train",
    "tune": "raysound.distributed.search.tune",
}

__all__ = [*_MODULES, "metrics"]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return version("raysound")
    if name == "metrics":
        return import_module("raysound.metrics")
    if name not in _MODULES:
        raise AttributeError(f"module 'raysound' has no attribute {name!r}")
    # Ray reads it on import. By default Ray retries a task that is killed for memory forever.
    os.environ.setdefault("RAY_task_oom_retries", "3")
    return getattr(import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
