"""The commands: `raysound train CONFIG [key=value ...]`, or jobs/train.py for `ray job submit`."""

from __future__ import annotations

import sys
from typing import NamedTuple, NoReturn

from raysound.job import print_result, run_command, run_job

HELP = {"-h", "--help"}


class Command(NamedTuple):
    """One command.

    Attributes:
        function: as "module:name"; imported when the command runs.
        summary: one line.
        sections: of the config that the command reads; its help lists their settings.
        arguments: of a command that reads no config.
    """

    function: str
    summary: str
    sections: tuple[str, ...] = ()
    arguments: tuple[str, ...] = ()


DATA = ("corpora", "features")
COMMANDS = {
    "init": Command(
        "raysound.init.command:write_config",
        "Writes a config for a folder of sounds.",
        arguments=("DIR", "[OUT.yaml]"),
    ),
    "synthesize": Command(
        "raysound.distributed.extraction.synthesize:synthesize",
        "Writes corpora of synthetic sounds, or of real clips through log-mel and back.",
        ("synthesis", "compute"),
    ),
    "extract": Command(
        "raysound.distributed.commands:extract_command",
        "Extracts the log-mels of every corpus to Parquet.",
        (*DATA, "compute"),
    ),
    "train": Command(
        "raysound.distributed.commands:train_command",
        "Trains the classifier on the real corpus, or one for each fold and seed.",
        (*DATA, "model", "training", "compute"),
    ),
    "tune": Command(
        "raysound.distributed.commands:tune_command",
        "Searches settings with Ray Tune and writes the best config.",
        (*DATA, "model", "training", "search", "compute"),
    ),
    "evaluate": Command(
        "raysound.distributed.commands:evaluate_command",
        "Scores every corpus with the classifier; writes metrics.json and report.html.",
        (*DATA, "evaluation", "compute"),
    ),
    "pipeline": Command(
        "raysound.distributed.pipeline:run_all",
        "Runs synthesize (if configured), extract, train and evaluate.",
        (*DATA, "model", "training", "evaluation", "synthesis", "compute"),
    ),
    "cas": Command(
        "raysound.distributed.training.cas:cas",
        "Trains on generated clips and tests on real ones: classification accuracy scores.",
        (*DATA, "model", "training", "compute"),
    ),
    "reference": Command(
        "raysound.distributed.evaluation.reference:reference",
        "Writes one file that replaces the real recordings in other evaluations.",
        (*DATA, "evaluation", "compute"),
    ),
    "predict": Command(
        "raysound.evaluation.predict:predict_command",
        "Prints the predicted class of sound files, with its probability.",
        arguments=("CHECKPOINT", "FILE", "[FILE ...]"),
    ),
    "compare": Command(
        "raysound.evaluation.comparison:compare_files",
        "Compares the metrics.json of two evaluations by the same classifier.",
        arguments=("OLD/evaluation/metrics.json", "NEW/evaluation/metrics.json"),
    ),
}


def main(name: str | None = None) -> NoReturn:
    """Runs a command with the arguments of the command line, and exits.

    Args:
        name: of the command; by default the first argument.
    """
    if name is None:
        given, *sys.argv[1:] = sys.argv[1:] or [""]
        if given in HELP | {""}:
            sys.exit(print_result(overview()) or (0 if given else 2))
        if given not in COMMANDS:
            print(
                f"error: raysound has no command {given!r}: {', '.join(COMMANDS)}", file=sys.stderr
            )
            sys.exit(2)
        name = given
    command = COMMANDS[name]
    if HELP & set(sys.argv[1:]):
        sys.exit(print_result("\n".join([usage(name), *setting_lines(command)])))
    if command.arguments:
        any_number = command.arguments[-1].endswith("...]")
        optional = sum(argument.startswith("[") for argument in command.arguments)
        required = 0 if any_number else len(command.arguments) - optional
        run_command(command.function, required, usage(name), optional)
    run_job(command.function, usage(name))


def overview() -> str:
    """All commands, one line each."""
    width = max(map(len, COMMANDS))
    lines = [f"  {name:<{width}}  {command.summary}" for name, command in COMMANDS.items()]
    return "\n".join(
        [
            "usage: raysound COMMAND CONFIG [key=value ...]",
            "",
            *lines,
            "",
            "raysound COMMAND --help lists the settings of a command.",
        ]
    )


def usage(name: str) -> str:
    """The usage and the summary of a command."""
    command = COMMANDS[name]
    arguments = " ".join(command.arguments) or "CONFIG [key=value ...]"
    return f"usage: raysound {name} {arguments}\n\n{command.summary}"


def setting_lines(command: Command) -> list[str]:
    """The settings of a command with type and default, as lines of text."""
    if not command.sections:
        return []
    from raysound.settings.describe import describe_settings

    lines = ["", "Settings, with type and default, also as key=value:", ""]
    for row in describe_settings():
        if row.path.partition(".")[0] in command.sections:
            default = f"; {row.default}" if row.default else ""
            lines += [f"  {row.path} ({row.type}{default})", f"      {row.description}"]
    return lines


if __name__ == "__main__":
    main()
