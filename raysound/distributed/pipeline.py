"""All steps in one Ray session."""

from __future__ import annotations

from raysound.corpora.checks import check_real
from raysound.distributed.commands import evaluate_command, train_command
from raysound.distributed.evaluation.embeddings import check_embeddings
from raysound.distributed.evaluation.evaluate import published_side
from raysound.distributed.extraction.extract import extract
from raysound.distributed.extraction.listing import call_for_corpus, list_corpus
from raysound.distributed.extraction.synthesize import synthesize
from raysound.errors import UserError
from raysound.settings.schema import Config
from raysound.settings.synthesis import SynthesisSettings


def run_all(config: Config) -> str:
    """Synthesises (where the config says so), extracts, trains, evaluates.

    Classifiers of several folds or seeds are summed up by `train`; none of them is the classifier
    of the generated corpora, so the pipeline ends there.
    """
    # A model or reference that can't be used is found before hours of extraction and training.
    published_side(config, check_embeddings(config))
    if config.synthesis != SynthesisSettings():
        if config.synthesis.formula is None:
            # The real corpus is there: what is wrong with it is found before hours of Griffin-Lim.
            call_for_corpus(check_before_synthesis, "real", config)
        synthesize(config)
    extract(config, to_train=True)
    if config.evaluation.checkpoint is None:
        last_line = train_command(config)
        if config.training.trains_several:
            return last_line
    return evaluate_command(config)


def check_before_synthesis(name: str, config: Config) -> None:
    """Raises UserError for a real corpus that can't be trained or tested on."""
    too_few = check_real(list_corpus(name, config, lambda note: None), config)
    if too_few:
        raise UserError(too_few)
