"""Every setting of a config with its path, type, default and description, from the models.

python -m raysound.settings.describe > docs/configuration.md
"""

from __future__ import annotations

import ast
import inspect
import json
from collections.abc import Iterator
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

from pydantic_core import PydanticUndefined

from raysound.settings.fields import Section
from raysound.settings.schema import Config


class Setting(NamedTuple):
    """One setting.

    Attributes:
        path: as on a command line, `training.epochs`.
        type: for a reader.
        default: as in a YAML, "required" without one, "" where it follows from others.
        description: the docstring of the field, one line.
    """

    path: str
    type: str
    default: str
    description: str


def described(model: type[Section] = Config, above: str = "") -> Iterator[Setting]:
    """The settings of a section and of the sections in it, in their order."""
    descriptions = field_docstrings(model)
    for name, field in model.model_fields.items():
        path = f"{above}{name}"
        section = only_section(field.annotation)
        if section is not None:
            yield from described(section, f"{path}.")
            continue
        default = field.get_default()
        if field.is_required():
            shown = "required"
        elif field.default is PydanticUndefined:
            shown = ""
        else:
            shown = as_yaml(default)
        yield Setting(path, type_text(field.annotation), shown, descriptions.get(name, ""))


def field_docstrings(model: type[Section]) -> dict[str, str]:
    """The docstrings that follow the fields of a section, by field: Python itself drops them."""
    (node,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(node, ast.ClassDef)
    return {
        field.target.id: inspect.cleandoc(text.value.value)
        for field, text in pairwise(node.body)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def only_section(annotation: Any) -> type[Section] | None:
    """The section that a setting is, or may be beside null; None for any other setting."""
    kinds = [one for one in alternatives(annotation) if one is not NoneType]
    if len(kinds) == 1 and isinstance(kinds[0], type) and issubclass(kinds[0], Section):
        return kinds[0]
    return None


def alternatives(annotation: Any) -> list[Any]:
    """The types that a value may have, without what is annotated."""
    origin = get_origin(annotation)
    if origin is Annotated:
        return alternatives(get_args(annotation)[0])
    if origin in (Union, UnionType):
        return [one for part in get_args(annotation) for one in alternatives(part)]
    return [annotation]


def type_text(annotation: Any) -> str:
    """A type in the words of YAML."""
    kinds = [kind_text(one) for one in alternatives(annotation) if one is not NoneType]
    return " | ".join(dict.fromkeys(kinds))


def kind_text(kind: Any) -> str:
    """One of several types."""
    origin, inside = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " | ".join(as_yaml(value) for value in inside)
    if origin is tuple:
        return f"[{', '.join('…' if one is ... else type_text(one) for one in inside)}]"
    if origin is dict:
        return f"{{name: {type_text(inside[1])}}}"
    if isinstance(kind, type) and issubclass(kind, Section):
        return kind.__name__
    return {bool: "true | false", str: "text", int: "integer", float: "number"}.get(kind, "any")


def as_yaml(value: Any) -> str:
    """A default as it stands in a YAML."""
    if isinstance(value, Section):
        value = value.model_dump(mode="json")
        return "{" + ", ".join(f"{key}: {as_yaml(one)}" for key, one in value.items()) + "}"
    if isinstance(value, str):
        return value
    if isinstance(value, float):
        return f"{value:g}"
    return json.dumps(value)


def configuration_page() -> str:
    """The page of all settings, as Markdown."""
    lines = [
        "# Settings",
        "",
        "Every setting of a YAML, with type, default and one line; on a command line as "
        "`key=value`. This page is made by `python -m raysound.settings.describe`.",
    ]
    shown = None
    for row in described():
        section = row.path.partition(".")[0] if "." in row.path else "experiment"
        if section != shown:
            shown = section
            lines += [
                "",
                f"## {section}",
                "",
                "| setting | type | default | |",
                "|---|---|---|---|",
            ]
        # A pipe ends a cell, in code as well.
        kind = row.type.replace("|", "\\|")
        default = f"`{row.default}`" if row.default else ""
        lines.append(f"| `{row.path}` | {kind} | {default} | {row.description} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(configuration_page(), end="")
