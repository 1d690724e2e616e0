"""Dotted keys of a config: the known keys, the closest key to a wrong one, and setting a key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from typing import Any, get_args

from pydantic import BaseModel

from raysound.settings.evaluation import LOG_MEL_STATISTICS, Embedding
from raysound.settings.optimizers import Optimizer, Scheduler
from raysound.settings.schema import Config
from raysound.settings.search import TrialScheduler


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets one `section.key` in a nested dict, in place."""
    *sections, last = key.split(".")
    for section in sections:
        if not isinstance(tree.get(section), dict):
            tree[section] = {}
        tree = tree[section]
    tree[last] = value


def closest_key(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key that is most similar to `key`; None if none is similar."""
    last = key.rpartition(".")[2]
    # An equal name in another section is closer than a similar key.
    same = [path for path in known if path.rpartition(".")[2] == last]
    return next(iter(same or difflib.get_close_matches(key, known, n=1, cutoff=0.6)), None)


def known_keys() -> Iterator[str]:
    """Yields every dotted key of a YAML file."""
    return (key for key, _ in setting_types(Config))


def setting_types(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields every dotted key below a section, and its type."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.annotation
        for section in section_models(field.annotation):
            yield from setting_types(section, f"{prefix}{name}.")


def section_models(annotation: Any) -> list[type[BaseModel]]:
    """The section models in the type of a field, including unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in section_models(part)]


def union_tags() -> set[str]:
    """Names that select a member of a union, such as the names of optimizers and schedulers."""
    unions = (Optimizer, Scheduler, TrialScheduler, Embedding)
    tags = {section.__name__ for union in unions for section in section_models(union)}
    return {*tags, LOG_MEL_STATISTICS}
