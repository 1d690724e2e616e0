"""The whole road in one Ray session."""

from __future__ import annotations

from raysound.distributed.evaluate import evaluate
from raysound.distributed.extract import extract
from raysound.distributed.synthesize import synthesize
from raysound.distributed.train import train
from raysound.settings import Config, SynthesisSettings


def run_all(config: Config) -> str:
    """Synthesises (where the config says so), extracts, trains, evaluates.

    Several judges, a fold or seed each, are summed up by `train`; none of them is the judge of the
    generated corpora, so the road ends there.
    """
    if config.synthesis != SynthesisSettings():
        synthesize(config)
    extract(config, to_train=True)
    if config.evaluation.checkpoint is None:
        last_line = train(config)
        if config.training.trains_several:
            return last_line
    return evaluate(config)
