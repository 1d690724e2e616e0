"""A nested dict as a validated config; each fault is one line in the words of the file."""

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

# What YAML 1.1 takes for true and false beside these two words.
SWITCH_WORDS = {"yes": True, "on": True, "no": False, "off": False}
# How pydantic calls the plain members of a union in a fault's place.
UNION_MEMBERS = ("constrained-", "function-before[", "literal[")


def validated(tree: Mapping[str, Any], source: str) -> Config:
    """The config of a nested dict, with absolute paths; its search space is not checked.

    Raises:
        UserError: as `load`; `source` opens the message.
    """
    try:
        config = Config.model_validate(_with_switches(tree))
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error
    # What the file left out stays left out: a search sets keys as an override of the file would.
    absolute = config.model_dump(exclude_unset=True)
    for keys in PATH_KEYS:
        make_absolute(absolute, keys)
    return Config.model_validate(absolute)


def _explain(error: ValidationError) -> Iterator[str]:
    """One line a fault, in the user's words."""
    wrong: dict[str, list[Any]] = {}
    for fault in error.errors():
        key = _users_key(fault["loc"])
        if fault["type"] == "default_factory_not_called":
            # A default that follows from another setting, which has a fault of its own.
            continue
        if fault["type"] == "extra_forbidden":
            close = closest_key(key, list(known_keys()))
            if close == key:
                # Known to another member of the union than the one that was named.
                choice = next(part for part in fault["loc"] if part in union_tags())
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
            wrong.setdefault(key, []).append(fault)
    for key, faults in wrong.items():
        # A setting that may be a number or a word fails as both.
        first, *others = (fault["msg"].removeprefix("Value error, ") for fault in faults)
        text = " or ".join([first, *(other.removeprefix("Input should be ") for other in others)])
        value = faults[0]["input"]
        may_show = not isinstance(value, dict) and faults[0]["type"] != SECRET
        shown = f" (got {value!r})" if may_show else ""
        yield f"{key}: {text}{shown}" if key else text


def _users_key(location: Sequence[int | str]) -> str:
    """The dotted key as it stands in the file, without the names of a union's members."""
    parts = (str(part) for part in location if part not in union_tags())
    return ".".join(part for part in parts if not part.startswith(UNION_MEMBERS))


def _with_switches(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with YAML 1.1's words for true and false replaced where a setting is a switch."""
    copied = copy.deepcopy(dict(tree))
    for key, kind in setting_types(Config):
        *sections, last = key.split(".")
        place: Any = copied
        for section in sections:
            place = place.get(section) if isinstance(place, dict) else None
        if isinstance(place, dict) and isinstance(place.get(last), str) and _is_switch(kind):
            place[last] = SWITCH_WORDS.get(place[last].lower(), place[last])
    return copied


def _is_switch(annotation: Any) -> bool:
    """True where a type takes true and false."""
    return annotation in (bool, True) or any(_is_switch(part) for part in get_args(annotation))
