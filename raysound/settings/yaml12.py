"""Reads YAML 1.2 with PyYAML."""

from __future__ import annotations

import re
from typing import Any

import yaml


class YamlError(Exception):
    """An error in a YAML text, with its position, in one line."""


class _Loader(yaml.SafeLoader):
    """Reads scalars as in YAML 1.2, and rejects duplicate keys.

    PyYAML implements YAML 1.1, in which `no` is false, `01` is 1, `12:30:45` is 45045 and
    `2024-01-01` is a date. Folds, classes and folders may have these names.
    """

    yaml_implicit_resolvers = {}  # PyYAML's table, which is not shared with its own loader

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping as a dict; its keys are strings, as written."""
        keys = [key for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        names = [key.value for key in keys]
        for key in keys:
            if names.count(key.value) > 1:
                line = node.start_mark.line + 1
                raise yaml.YAMLError(
                    f"'{key.value}' occurs twice in the section that begins on line {line}"
                )
            if not key.tag.endswith(":merge"):
                key.tag = "tag:yaml.org,2002:str"
        return super().construct_mapping(node, deep)


# The core schema of YAML 1.2, except that numbers with a leading 0, as `01`, are strings.
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
# A value on the command line that begins with one of these is YAML.
FLOW = ("[", "{", "'", '"')


def read_yaml(data: bytes) -> Any:
    """The content of a YAML file: UTF-8, or UTF-16 with a byte order mark.

    Raises:
        YamlError: it is not YAML.
    """
    return _loaded(data)


def read_value(text: str) -> Any:
    """A value from a command line.

    A text that begins with `[`, `{` or a quote is YAML. Any other text is a name, number, `true`,
    `false` or `null`, in which `#`, `: ` and `*` have no special meaning.

    Raises:
        YamlError: it begins as YAML, but is not valid YAML.
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
    """The error of PyYAML and its position, without the excerpt."""
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return " ".join(str(error).split())
    what = getattr(error, "problem", None) or getattr(error, "context", None)
    hint = ": indent with spaces" if "\\t" in str(what) else ""
    return f"line {mark.line + 1}, column {mark.column + 1}: {what}{hint}"
