"""Writes the YAML of an experiment from corpora and choices, with a comment on each choice."""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator

import numpy as np
import yaml

from raysound.corpora.vocabulary import listed, quoted
from raysound.init.choices import FITTING_PERCENT, FeatureChoice, SplitChoice, TrainingChoice
from raysound.init.folder import FoundCorpora
from raysound.init.survey import Corpus
from raysound.wording import counted

WIDTH = 100
CLASSES_SHOWN = 20
PERCENTILES = (5, 50, FITTING_PERCENT)
# Strings that need no quotes in YAML.
PLAIN = re.compile(r"[A-Za-z/][\w./-]*", re.ASCII)
WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


def config_text(
    source: str,
    name: str,
    output: str,
    found: FoundCorpora,
    features: FeatureChoice,
    split: SplitChoice,
    training: TrainingChoice,
) -> str:
    """The config as YAML.

    Args:
        source: file name of the config.
        name: of the experiment.
        output: folder of its results.
        found: its corpora.
        features: of the log-mel.
        split: of the real corpus.
        training: of the classifier.
    """
    lines = [
        *_comment(
            "Written by raysound init. Each value is a suggestion, and the comments give its "
            "reason. docs/configuration.md and raysound pipeline --help list all settings. The "
            "next command:"
        ),
        *_comment(f"raysound pipeline {shlex.quote(source)}", "  "),
        f"name: {scalar(name)}  # of the experiment",
        f"output: {scalar(output)}  # folder of features, classifier and report",
        "",
        "corpora:",
        *_indented(_real(found.real, split), 2),
        *_indented(_generated(found), 2),
        "",
        "features:",
        *_indented(_features(found.real, features), 2),
        "",
        "model:",
        *_indented(_model(training), 2),
        "",
        "training:",
        *_indented(_training(found.real, training), 2),
    ]
    return "\n".join(lines) + "\n"


def scalar(text: str) -> str:
    """A string as a YAML value, in quotes if needed."""
    if PLAIN.fullmatch(text) and text.lower() not in WORDS:
        return text
    dumped: str = yaml.safe_dump(text, default_style='"', allow_unicode=True, width=1 << 20)
    return dumped.rstrip("\n")


def _real(real: Corpus, split: SplitChoice) -> Iterator[str]:
    yield "real:"
    lines = _comment(
        f"{counted(len(real.clips), 'clip')} of {counted(len(real.classes), 'class')}; labels: "
        f"{real.layout}. Clips per class:"
    )
    counts = [f"{quoted(label)[1:-1]} ({count})" for label, count in real.classes.items()]
    lines += _comment(listed(counts, CLASSES_SHOWN), "  ")
    yield from _indented([*lines, f"path: {scalar(real.path)}", *_split(split)], 2)


def _split(split: SplitChoice) -> list[str]:
    settings = split.settings
    values = []
    counts = (
        f"{counted(split.counts['train'], 'clip')} train the classifier, "
        f"{split.counts['validation']} select its best epoch, {split.counts['test']} test it."
    )
    if split.folds:
        why = f"The corpus has the folds {listed(split.folds, 10)}. "
        values.append(f"test_folds: [{_fold(settings.test_folds[0])}]")
        if settings.validation_folds:
            values.append(f"validation_folds: [{_fold(settings.validation_folds[0])}]")
        counts += " To test on each fold in turn instead, add folds: all below training."
    elif split.given:
        why = f"The corpus defines the splits {listed(sorted(split.given))}. "
    else:
        why = "The corpus has no split, so a random share of each class is used. "
    if not settings.test_folds and "test" not in split.given:
        values.append(f"test_fraction: {settings.test_fraction:g}")
    if not settings.validation_folds and "validation" not in split.given:
        values.append(f"validation_fraction: {settings.validation_fraction:g}")
    lines = _comment(why + counts)
    if split.missing:
        lines += _comment(
            "Classes with too few clips for all three splits: "
            f"{listed(split.missing, CLASSES_SHOWN)}."
        )
    return [*lines, *(["split:", *_indented(values, 2)] if values else [])]


def _fold(name: str) -> str:
    return name if re.fullmatch("0|[1-9][0-9]{0,8}", name) else scalar(name)


def _generated(found: FoundCorpora) -> Iterator[str]:
    """The generated corpora; without any, an example as a comment."""
    if not found.generated:
        yield from _comment(
            "Clips of your generators, one folder each: class folders as in the real corpus, or "
            "clips without labels. Remove the # of the next two lines and set the path."
        )
        yield from ("# generated:", "#   my_generator: /path/to/generated/clips")
    else:
        yield "generated:"
        for name, corpus in found.generated.items():
            yield from _indented(_comment(_about(corpus, found.real)), 2)
            yield f"  {name}: {scalar(corpus.path)}"
    for path, reason in found.left_out.items():
        yield from _indented(_comment(f"Left out: {quoted(path)}: {reason}"), 2)


def _about(corpus: Corpus, real: Corpus) -> str:
    labels = counted(len(corpus.classes), "class") if corpus.classes else "without labels"
    join = " of " if corpus.classes else " "
    text = f"{counted(len(corpus.clips), 'clip')}{join}{labels}, {corpus.rate} Hz"
    if corpus.rate >= real.rate:
        return text
    return (
        f"{text}: they have no content above {corpus.rate / 2:g} Hz, unlike real clips. To compare "
        f"only common frequencies, set sample_rate: {corpus.rate} and f_max: {corpus.rate / 2:g}."
    )


def _features(real: Corpus, features: FeatureChoice) -> Iterator[str]:
    rate, hop, n_fft = features.sample_rate, features.hop_length, features.n_fft
    yield from _comment(_rates(real))
    yield f"sample_rate: {rate}"
    lengths = ", ".join(
        f"{mark} % up to {np.percentile(real.durations, mark):.2f} s" for mark in PERCENTILES
    )
    yield from _comment(
        f"Length of a window in seconds. Durations of the clips: {lengths}, the longest "
        f"{real.durations[-1]:.2f} s. Shorter clips are padded with zeros, longer ones are cut "
        f"into windows: {features.windows:.3g} per clip on average."
    )
    yield f"clip_length: {features.clip_length:g}"
    yield f"hop_length: {hop}  # samples between frames: {rate / hop:.3g} frames per second"
    yield f"n_fft: {n_fft}  # samples of a Fourier transform: {1000 * n_fft / rate:.3g} ms"
    yield f"n_mels: {features.n_mels}  # mel bands"
    yield "f_min: 0  # Hz, lowest frequency of the mel bands"
    yield f"f_max: {rate / 2:g}  # Hz, highest frequency: half the sample rate"


def _rates(real: Corpus) -> str:
    """A comment on the sample rates of the files that were read, the most frequent first."""
    read = sum(real.rates.values())
    first, *others = sorted(real.rates.items(), key=lambda item: (-item[1], -item[0]))
    if not others:
        return f"Hz, as in all {counted(read, 'file')} that were read."
    kinds = listed((f"{rate} Hz in {count}" for rate, count in others), 5)
    return (
        f"Hz, as in {first[1]} of {counted(read, 'file')} that were read. The others are resampled "
        f"to it: {kinds}."
    )


def _model(training: TrainingChoice) -> list[str]:
    if training.model == "cnn6":
        why = "PyTorch finds no GPU: this small network is fast on CPUs. On a GPU use resnetish18."
    else:
        why = "PyTorch finds a GPU: a residual network. On CPUs the small cnn6 is faster."
    return [*_comment(why), f"name: {training.model}"]


def _training(real: Corpus, training: TrainingChoice) -> Iterator[str]:
    yield from _comment(f"For about {counted(training.windows, 'training window')}.")
    yield f"epochs: {training.epochs}  # passes over the training clips"
    yield f"batch_size: {training.batch_size}  # windows of one optimizer step"
    yield "optimizer: {name: AdamW, lr: 0.001}  # lr: learning rate"
    yield "scheduler: {name: CosineAnnealingLR}  # lowers the learning rate from epoch to epoch"
    if training.balanced:
        counts = real.classes.values()
        reason = f"classes have {min(counts)} to {max(counts)} clips: weights in the loss"
        yield f"class_balance: weights  # {reason}"
    yield "augment: {roll: true}  # rolls clips in time by a random amount"


def _comment(text: str, indent: str = "") -> list[str]:
    """The lines of a comment, with unprintable characters escaped."""
    plain = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
    # Keeps a number and its unit on one line.
    joined = re.sub(r"(?<=\d) (?=(?:s|Hz|%)(?!\w))", "\xa0", plain)
    lines = textwrap.wrap(
        joined, WIDTH, initial_indent=f"# {indent}", subsequent_indent=f"# {indent}",
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    return [line.replace("\xa0", " ") for line in lines]


def _indented(lines: Iterable[str], spaces: int) -> Iterator[str]:
    return (" " * spaces + line for line in lines)
