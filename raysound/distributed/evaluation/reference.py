"""The reference job: computes the real side of an evaluation and writes it as one file."""

from __future__ import annotations

import logging
from dataclasses import replace

from raysound import storage
from raysound.distributed.cluster.exclusive import sole_writer
from raysound.distributed.evaluation.embeddings import embedding_metrics
from raysound.distributed.evaluation.evaluate import check_inputs
from raysound.distributed.evaluation.input_checks import clips_to_score
from raysound.distributed.evaluation.measure import compute_metrics
from raysound.distributed.evaluation.score import score_corpora
from raysound.evaluation.reference_file import REFERENCE_NAME, write_reference
from raysound.settings.loading import real_corpus
from raysound.settings.schema import Config
from raysound.wording import counted

logger = logging.getLogger(__name__)


def reference(config: Config) -> str:
    """Scores the real corpus and writes a file to evaluate against it without the real clips.

    Existing predictions and embeddings of `evaluate` are used.

    Returns:
        The last line of the job.

    Raises:
        UserError: the config has no real corpus, or as `evaluate`.
    """
    real_corpus(config)
    run, classifier, folders, labelled, real, sources, _ = check_inputs(config, ["real"])
    out = storage.join(config.output, "evaluation")
    predictions, generated = storage.join(out, "predictions"), config.corpora.generated
    uri = storage.join(config.output, REFERENCE_NAME)
    with sole_writer(out):
        score_corpora(folders, clips_to_score(real), run, config, predictions, keep=generated)
        _, side, _, _ = compute_metrics(config, run, classifier, folders, labelled, predictions)
        _, embeddings = embedding_metrics(
            config, sources, folders, out, side.set_size, keep=generated
        )
        write_reference(uri, replace(side, embeddings=embeddings))
    logger.info(
        "distances are measured to %s, %s held out; classifier: %s",
        counted(len(side.clip_ids), "training clip"), counted(side.row["clips"], "test clip"), run,
    )  # fmt: skip
    return f"reference: {uri}"
