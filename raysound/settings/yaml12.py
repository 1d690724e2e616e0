"""YAML with the scalars of YAML 1.2, by PyYAML."""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(Exception):
    """What is wrong with a YAML text and where, in one line."""


class _Loader(yaml.SafeLoader):
    """Reads scalars as YAML 1.2 does, and refuses a key that stands twice.

    YAML 1.1, PyYAML's own, takes `no` for false, `01` for 1, `12:30:45` for 45045 and
    `2024-01-01` for a date: folds, classes and folders have such names.
    """

    yaml_implicit_resolvers = {}  # PyYAML's own table, of this class alone

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping as a dict; its keys are texts, as typed."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for key in keys:
            if names.count(key.value) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f"'{key.value}' stands twice in the section that begins in line {line}"
                )
            if not key.tag.endswith(":merge"):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


# YAML 1.2's core schema, but for numbers that begin with 0: `01` is a name.
for _kind, _pattern, _first in (
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(0|[1-9][0-9]*)", list("-+0123456789")),
    (
        "float",
        r"[-+]?((0|[1-9][0-9]*)?\.[0-9]+|(0|[1-9][0-9]*)\.?)([eE][-+]?[0-9]+)?"
        r"|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        list("-+.0123456789"),
    ),
    ("merge", "<<", ["<"]),
):
    _Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_kind}", re.compile(f"^(?:{_pattern})$"), _first
    )
# How a value on the command line begins that is YAML; all others are taken as they are typed.
FLOW = ("[", "{", "'", '"')


def read_yaml(data: bytes) -> Any:
    """The content of a YAML file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        YamlError: it is no YAML.
    """
    return _loaded(data)


def read_value(text: str) -> Any:
    """A value from a command line.

    A text that begins with `[`, `{` or a quote is YAML; any other is one name, number, `true`,
    `false` or `null`, in which `#`, `: ` and `*` have no meaning.

    Raises:
        YamlError: it begins as YAML, and is none.
    """
    if text.startswith(FLOW):
        return _loaded(text)
    loader = _Loader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    return text if tag.endswith(":merge") else loader.construct_object(yaml.ScalarNode(tag, text))


def _loaded(text: str | bytes) -> Any:
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError) as error:
        raise YamlError(_in_one_line(error)) from error


def _in_one_line(error: Exception) -> str:
    """What PyYAML found and where, without the excerpt."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    what = getattr(error, "problem", None) or getattr(error, "context", None)
    hint = ": indent with spaces" if "\\t" in str(what) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}{hint}"
