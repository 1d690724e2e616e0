"""`raysound init DIR [OUT.yaml]`: writes a config for a folder of sounds."""

from __future__ import annotations

import os
import shlex

import pyarrow as pa
import torch

from raysound.corpora.checks import check_real
from raysound.errors import UserError
from raysound.init.choices import choose_features, choose_split, choose_training
from raysound.init.folder import corpus_name, find_corpora
from raysound.init.survey import Corpus
from raysound.init.text import config_text
from raysound.settings.loading import from_tree
from raysound.settings.yaml12 import YamlError, read_yaml
from raysound.wording import counted


def write_config(folder: str, config: str | None = None) -> str:
    """Writes a config for the sounds of a folder.

    Args:
        folder: a corpus, or a folder of corpora, one of which is named `real`; a path or URI.
        config: the YAML file to write; by default in the current folder, with the name of `folder`.

    Returns:
        A summary of the corpora; the last line is the next command.

    Raises:
        UserError: the file exists, the folder does not exist, or it has no sounds, no labels or too
            few clips.
    """
    path = folder.rstrip("/") if "://" in folder else os.path.abspath(os.path.expanduser(folder))
    config = config or f"{os.path.basename(path) or 'sounds'}.yaml"
    if os.path.lexists(config):
        raise UserError(f"{config} already exists: give another name as the second argument")
    name = corpus_name(os.path.splitext(os.path.basename(config))[0])
    found = find_corpora(path)
    has_gpu = torch.cuda.is_available()
    features = choose_features(found.real, has_gpu)
    split = choose_split(found.real)
    training = choose_training(found.real, split, features, has_gpu)
    output = os.path.abspath(os.path.join("runs", name))
    text = config_text(config, name, output, found, features, split, training)
    _check(text, found.real.clips, config)
    try:
        with open(config, "x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise UserError(f"{config} can't be written: {error.strerror or error}") from error
    corpora = [found.real, *found.generated.values()]
    notes = [note for corpus in corpora for note in corpus.notes]
    return "\n".join(
        [
            *(f"note: {note}" for note in notes),
            *(f"note: left out: {path}: {reason}" for path, reason in found.left_out.items()),
            f"real: {_summary(found.real)}",
            *(f"{name}: {_summary(corpus)}" for name, corpus in found.generated.items()),
            f"written: {os.path.abspath(config)}; next:",
            f"raysound pipeline {shlex.quote(config)}",
        ]
    )


def _check(text: str, clips: pa.Table, source: str) -> None:
    """Raises UserError for a config that training or evaluation would reject."""
    try:
        config = from_tree(read_yaml(text.encode("utf-8")), source)
    except YamlError as error:
        raise UserError(f"{source}: {error}") from error
    message = check_real(clips, config)
    if message:
        raise UserError(message)


def _summary(corpus: Corpus) -> str:
    """A description of a corpus in one line."""
    clips = counted(len(corpus.clips), "clip")
    if not corpus.classes:
        return f"{clips} without labels"
    classes = counted(len(corpus.classes), "class")
    return f"{clips} of {classes}; labels: {corpus.layout}"
