"""Validates a nested dict as a config, with one line per error."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, get_args

from pydantic import ValidationError

from raysound.errors import UserError
from raysound.settings.fields import SECRET
from raysound.settings.keys import closest_key, known_keys, setting_types, union_tags
from raysound.settings.paths import PATH_KEYS, make_absolute
from raysound.settings.schema import Config

# Other words for true and false in YAML 1.1.
BOOLEAN_WORDS = {"yes": True, "on": True, "no": False, "off": False}
# Parts of the location of a pydantic error that name a member of a union.
UNION_MEMBERS = ("constrained-", "function-before[", "literal[")


def validated(tree: Mapping[str, Any], source: str) -> Config:
    """The config of a nested dict, with absolute paths. Its search space is not checked.

    Raises:
        UserError: as `load`; the message begins with `source`.
    """
    try:
        config = Config.model_validate(_replace_boolean_words(tree))
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error
    # Defaults stay unset, because a search sets keys like overrides of the file.
    absolute = config.model_dump(exclude_unset=True)
    for keys in PATH_KEYS:
        make_absolute(absolute, keys)
    return Config.model_validate(absolute)


def _explain(error: ValidationError) -> Iterator[str]:
    """Yields one line per error, with the keys of the file."""
    wrong: dict[str, list[Any]] = {}
    for fault in error.errors():
        key = _dotted_key(fault["loc"])
        if fault["type"] == "default_factory_not_called":
            # The default depends on another setting, which has an error of its own.
            continue
        if fault["type"] == "extra_forbidden":
            close = closest_key(key, list(known_keys()))
            if close == key:
                # The key belongs to another member of the union.
                choice = next(part for part in fault["loc"] if part in union_tags())
                yield f"'{key}' is not a setting of {choice}"
            else:
                yield f"unknown key '{key}'" + (f"; did you mean '{close}'?" if close else "")
        elif fault["type"] == "missing":
            yield f"'{key}' is missing"
        elif fault["type"] == "union_tag_not_found":
            yield f"'{key}.name' is missing"
        elif fault["type"] == "union_tag_invalid":
            context = fault["ctx"]
            yield f"{key}.name: '{context['tag']}' is not one of {context['expected_tags']}"
        else:
            wrong.setdefault(key, []).append(fault)
    for key, faults in wrong.items():
        # A setting of several types has an error for each of them.
        first, *others = (fault["msg"].removeprefix("Value error, ") for fault in faults)
        text = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
        value = faults[0]["input"]
        may_show = not isinstance(value, dict) and faults[0]["type"] != SECRET
        shown = f" (got {value!r})" if may_show else ""
        yield f"{key}: {text}{shown}" if key else text


def _dotted_key(location: Sequence[int | str]) -> str:
    """The dotted key as in the file, without the names of union members."""
    parts = (str(part) for part in location if part not in union_tags())
    return ".".join(part for part in parts if not part.startswith(UNION_MEMBERS))


def _replace_boolean_words(tree: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of the tree in which `yes`, `no`, `on` and `off` of boolean settings are replaced."""
    copied = copy.deepcopy(dict(tree))
    for key, kind in setting_types(Config):
        *sections, last = key.split(".")
        parent: Any = copied
        for section in sections:
            parent = parent.get(section) if isinstance(parent, dict) else None
        if isinstance(parent, dict) and isinstance(parent.get(last), str) and _is_boolean(kind):
            parent[last] = BOOLEAN_WORDS.get(parent[last].lower(), parent[last])
    return copied


def _is_boolean(annotation: Any) -> bool:
    """Whether a type accepts true and false."""
    return annotation in (bool, True) or any(_is_boolean(part) for part in get_args(annotation))
