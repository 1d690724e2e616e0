"""Reads a YAML file with `key=value` overrides into a validated config."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError

from raysound.settings import Config, Optimizer, Scheduler


class UserError(Exception):
    """A mistake that the user can mend: a job prints its text, without a traceback, and exits 2."""


# Relative to the folder the job was started in; Ray's workers run elsewhere, so made absolute here.
PATH_KEYS = (
    ("output",),
    ("corpora", "real", "path"),
    ("corpora", "generated", "*"),
    ("evaluation", "checkpoint"),
    ("synthesis", "formula", "output"),
    ("synthesis", "griffin_lim", "output"),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, validates.

    Args:
        path: the YAML file.
        overrides: `section.key=value`, the value in YAML's own notation.

    Returns:
        The frozen config, every local path in it absolute.

    Raises:
        UserError: the file is missing or no YAML mapping, an unknown key (with the nearest known
            one), a value out of range, settings that contradict each other.
    """
    try:
        tree = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings: expected `key: value` lines")
    for override in overrides:
        apply_override(tree, override)
    return from_tree(tree, str(path))


def apply_override(tree: dict[str, Any], override: str) -> None:
    """Sets one `section.key=value` in a nested dict, in place.

    Raises:
        UserError: no `=`, an empty key, or a value that is not YAML.
    """
    key, equals, text = override.partition("=")
    *sections, last = key.split(".")
    if not equals or not last or not all(sections):
        raise UserError(f"'{override}' is no override: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"the value of '{override}' can't be read: {error}") from error
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def from_tree(tree: Mapping[str, Any], source: str) -> Config:
    """Validates a nested dict, and makes its local paths absolute.

    Raises:
        UserError: as `load`; `source` opens the message.
    """
    try:
        config = Config.model_validate(tree)
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error
    absolute = config.model_dump()
    for keys in PATH_KEYS:
        _make_absolute(absolute, keys)
    return Config.model_validate(absolute)


def _make_absolute(tree: Any, keys: Sequence[str]) -> None:
    """Makes the path that `keys` lead to absolute, in place; URIs and unset ones stay."""
    if not isinstance(tree, dict):
        return
    for key in list(tree) if keys[0] == "*" else keys[:1]:
        if len(keys) > 1:
            _make_absolute(tree.get(key), keys[1:])
        elif isinstance(tree.get(key), str) and "://" not in tree[key]:
            tree[key] = os.path.abspath(os.path.expanduser(tree[key]))


def _explain(error: ValidationError) -> Iterator[str]:
    """One line a fault, in the user's words."""
    for fault in error.errors():
        # The names of a union's members stand in the location too, but not in the user's file.
        key = ".".join(str(part) for part in fault["loc"] if part not in _union_tags())
        if fault["type"] == "extra_forbidden":
            close = nearest(key, list(known_keys()))
            if close == key:
                # Known to another member of the union than the one that was named.
                choice = next(part for part in fault["loc"] if part in _union_tags())
                yield f"'{key}' is no setting of {choice}"
            else:
                yield f"unknown key '{key}'" + (f"; did you mean '{close}'?" if close else "")
        elif fault["type"] == "missing":
            yield f"'{key}' is missing"
        elif fault["type"] == "union_tag_not_found":
            yield f"'{key}.name' is missing"
        elif fault["type"] == "union_tag_invalid":
            context = fault["ctx"]
            yield f"{key}.name: '{context['tag']}' is none of {context['expected_tags']}"
        else:
            text = fault["msg"].removeprefix("Value error, ")
            shown = "" if isinstance(fault["input"], dict) else f" (got {fault['input']!r})"
            yield f"{key}: {text}{shown}" if key else text


def nearest(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key that is most like `key`, or None if none is like it."""
    last = key.rpartition(".")[2]
    # The right word in the wrong section is the nearer miss.
    same = [path for path in known if path.rpartition(".")[2] == last]
    return next(iter(same or difflib.get_close_matches(key, known, n=1, cutoff=0.6)), None)


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[str]:
    """Every dotted key that a YAML may hold."""
    for name, field in model.model_fields.items():
        yield prefix + name
        for section in _sections(field.annotation):
            yield from known_keys(section, f"{prefix}{name}.")


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section models that a field's type names, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _union_tags() -> set[str]:
    unions = (Optimizer, Scheduler)
    return {section.__name__ for union in unions for section in _sections(union)}
