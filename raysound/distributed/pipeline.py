"""All steps in one Ray session."""

from __future__ import annotations

from raysound.corpora.checks import check_real
from raysound.distributed.commands import evaluate_command, train_command
from raysound.distributed.evaluation.embeddings import check_embeddings
from raysound.distributed.evaluation.evaluate import load_reference_side
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import call_near_corpus, list_corpus
from raysound.distributed.extraction.synthesize import synthesize
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.synthesis import SynthesisSettings


def run_all(config: Config) -> str:
    """Synthesises corpora if the config says so, extracts, trains and evaluates.

    With several folds the pipeline ends after training, because there is no single classifier to
    evaluate the generated corpora with. With several seeds their ensemble evaluates them.
    """
    # Errors in a model or reference are reported before hours of extraction and training.
    load_reference_side(config, check_embeddings(config))
    if config.synthesis != SynthesisSettings():
        if config.synthesis.formula is None:
            # Errors in the real corpus are reported before hours of Griffin-Lim.
            call_near_corpus(check_before_synthesis, "real", config)
        synthesize(config)
    extract(config, to_train=True)
    if config.evaluation.checkpoint is None:
        last_line = train_command(config)
        if config.training.folds is not None:
            return last_line
    return evaluate_command(config)


def check_before_synthesis(name: str, config: Config) -> None:
    """Raises UserError if the real corpus can't be trained or tested on."""
    too_few = check_real(list_corpus(name, config, lambda note: None), config)
    if too_few:
        raise UserError(too_few)
