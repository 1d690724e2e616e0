"""The commands of the API functions: each returns the last line of its output.

A command imports only its own step, because the other steps take seconds to import.
"""

from __future__ import annotations

import json

from raysound import storage
from raysound.settings.schema import Config
from raysound.training.cross_validation import summary_table


def extract_command(config: Config) -> str:
    """Extracts every corpus; returns the line with the folder of their features."""
    from raysound.distributed.extraction.extract import extract

    extract(config)
    return f"features: {storage.join(config.output, 'features')}"


def train_command(config: Config) -> str:
    """Trains; returns the line with the run folder, or the table of a cross-validation."""
    from raysound.distributed.training.train import train

    result = train(config)
    if not config.training.trains_several:
        return f"checkpoint: {result}"
    summary = json.loads(storage.read_bytes(result))
    return "\n".join((*summary_table(summary), f"cross-validation: {result}"))


def tune_command(config: Config) -> str:
    """Searches; returns the line with the best config."""
    from raysound.distributed.search.tune import tune

    return f"best config: {tune(config)}"


def evaluate_command(config: Config) -> str:
    """Evaluates; returns the line with the report."""
    from raysound.distributed.evaluation.evaluate import evaluate

    evaluate(config)
    return f"report: {storage.join(config.output, 'evaluation', 'report.html')}"
