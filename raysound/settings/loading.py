"""Reads a YAML file with `key=value` overrides into a validated config."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raysound.errors import UserError
from raysound.settings.corpora import RealCorpus
from raysound.settings.keys import set_key
from raysound.settings.renamed import current_name, rename_old_keys
from raysound.settings.schema import Config
from raysound.settings.search_space import check_space
from raysound.settings.validation import validated
from raysound.settings.yaml12 import YamlError, read_value, read_yaml


def load_config(path: str | Path, *overrides: str) -> Config:
    """Loads and validates the config of an experiment.

    Args:
        path: of the YAML file.
        *overrides: settings that replace those of the file, as on the command line:
            `"training.epochs=20"`, `"search.space={training.batch_size: {choice: [8, 16]}}"`.

    Returns:
        The frozen config with absolute local paths. Its attributes are the sections of the file:
        `config.features.sample_rate`.

    Raises:
        UserError: as `load`.
    """
    return load(path, overrides)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, and validates the config.

    Args:
        path: the YAML file.
        overrides: `section.key=value`; a value that begins with `[`, `{` or a quote is YAML. Any
            other value is a name, number, `true`, `false` or `null`, without special characters.

    Returns:
        The frozen config with absolute local paths.

    Raises:
        UserError: the file is missing or is not a YAML mapping, a key is unknown (the message names
            the closest known key), a value is out of range, or settings contradict each other.
    """
    try:
        tree = read_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except YamlError as error:
        raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} has no settings: expected `key: value` lines")
    rename_old_keys(tree, str(path))
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree, str(path))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one `section.key=value` in a nested dict, in place.

    Raises:
        UserError: there is no `=`, the key is empty, or the value is not YAML.
    """
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not last or not all(sections):
        raise UserError(f"'{override}' is not an override: write it as section.key=value")
    try:
        value = read_value(text.strip())
    except YamlError as error:
        raise UserError(f"the value of '{override}' can't be read: {error}") from error
    set_key(tree, current_name(key, override), value)


def from_tree(tree: Mapping[str, Any], source: str) -> Config:
    """Validates a nested dict, and makes its local paths absolute.

    Raises:
        UserError: as `load`; the message begins with `source`.
    """
    config = validated(tree, source)
    check_space(config, source)
    return config


def real_corpus(config: Config) -> RealCorpus:
    """The real corpus of a config.

    Raises:
        UserError: the config has `evaluation.reference` instead.
    """
    if config.corpora.real is None:
        raise UserError(
            "corpora.real is missing, and this step needs the real recordings: only "
            "jobs/extract.py, jobs/evaluate.py and jobs/pipeline.py work with evaluation.reference"
        )
    return config.corpora.real
