"""The whole road in one Ray session."""

from __future__ import annotations

from raysound.distributed.evaluate import evaluate
from raysound.distributed.extract import extract
from raysound.distributed.synthesize import synthesize
from raysound.distributed.train import train
from raysound.settings import Config, SynthesisSettings


def run_all(config: Config) -> str:
    """Synthesises (where the config says so), extracts, trains, evaluates."""
    if config.synthesis != SynthesisSettings():
        synthesize(config)
    extract(config)
    if config.evaluation.checkpoint is None:
        train(config)
    return evaluate(config)
