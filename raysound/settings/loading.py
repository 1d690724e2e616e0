"""Reads a YAML file with `key=value` overrides into a validated config."""

from __future__ import annotations

import copy
import difflib
import os
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

from raysound.errors import UserError
from raysound.settings.corpora import RealCorpus
from raysound.settings.evaluation import (
    LOG_MEL_STATISTICS,
    Embedding,
)
from raysound.settings.fields import SECRET
from raysound.settings.optimizers import (
    Optimizer,
    Scheduler,
)
from raysound.settings.renamed import present_name, use_present_names
from raysound.settings.schema import Config
from raysound.settings.search import (
    ASHAScheduler,
    PopulationBasedTraining,
    TrialScheduler,
)
from raysound.settings.yaml12 import YamlError, read_value, read_yaml

# What YAML 1.1 takes for true and false beside these two words.
SWITCH_WORDS = {"yes": True, "on": True, "no": False, "off": False}
# What may differ from epoch to epoch of one training.
CHANGED_IN_TRAINING = (
    "training.optimizer.", "training.augment.", "training.label_smoothing", "training.max_grad_norm"
)  # fmt: skip
# How pydantic calls the plain members of a union in a fault's place.
UNION_MEMBERS = ("constrained-", "function-before[", "literal[")
# Of the other searched settings, to find one that a value goes with.
COMBINATIONS_TRIED = 200
# Relative to the folder the job was started in; Ray's workers run elsewhere, so made absolute here.
PATH_KEYS = (
    ("output",),
    ("corpora", "real", "path"),
    ("corpora", "generated", "*"),
    ("model", "weights"),
    ("search", "space", "model.weights", "choice"),
    ("evaluation", "checkpoint"),
    ("evaluation", "reference"),
    ("evaluation", "embeddings", "*", "path"),
    ("synthesis", "formula", "output"),
    ("synthesis", "griffin_lim", "output"),
    ("synthesis", "ladder", "output"),
)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a YAML file, applies `key=value` overrides, validates.

    Args:
        path: the YAML file.
        overrides: `section.key=value`; a value that begins with `[`, `{` or a quote is YAML, any
            other is one name, number, `true`, `false` or `null`, with every character as typed.

    Returns:
        The frozen config, every local path in it absolute.

    Raises:
        UserError: the file is missing or no YAML mapping, an unknown key (with the nearest known
            one), a value out of range, settings that contradict each other.
    """
    try:
        tree = read_yaml(Path(path).read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror or error}") from error
    except YamlError as error:
        raise UserError(f"{path} is not a YAML file: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} holds no settings: expected `key: value` lines")
    use_present_names(tree, str(path))
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
        value = read_value(text.strip())
    except YamlError as error:
        raise UserError(f"the value of '{override}' can't be read: {error}") from error
    set_key(tree, present_name(key, override), value)


def set_key(tree: dict[str, Any], key: str, value: Any) -> None:
    """Sets one `section.key` in a nested dict, in place."""
    *sections, last = key.split(".")
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
        config = Config.model_validate(_with_switches(tree))
    except ValidationError as error:
        raise UserError("\n".join(f"{source}: {line}" for line in _explain(error))) from error
    # What the file left out stays left out: a search sets keys as an override of the file would.
    absolute = config.model_dump(exclude_unset=True)
    for keys in PATH_KEYS:
        _make_absolute(absolute, keys)
    config = Config.model_validate(absolute)
    check_space(config, source)
    return config


def check_space(config: Config, source: str) -> None:
    """Looks at every choice and both ends of each searched setting, before anything starts.

    Raises:
        UserError: no such setting, one that can't be searched, or a value out of its range.
    """
    if config.search.space and config.training.trains_several:
        raise UserError(
            f"{source}: a search trains one classifier a trial: leave training.folds and seeds out"
        )
    population = isinstance(config.search.scheduler, PopulationBasedTraining)
    if population and config.training.scheduler is not None:
        raise UserError(
            f"{source}: PopulationBasedTraining is a schedule itself: leave training.scheduler out"
        )
    scheduler, longest = config.search.scheduler, most_epochs(config)
    if isinstance(scheduler, ASHAScheduler) and scheduler.grace_period > longest:
        raise UserError(
            f"{source}: search.scheduler.grace_period {scheduler.grace_period} is more than the "
            f"{longest} epochs of the longest trial"
        )
    for key, dimension in config.search.space.items():
        where = f"{source}: search.space"
        if key not in known_keys():
            close = closest_key(key, [known for known in known_keys() if _searchable(known)])
            hint = f"; did you mean '{close}'?" if close else ""
            raise UserError(f"{where}: there is no setting '{key}'{hint}")
        if not _searchable(key):
            raise UserError(
                f"{where}: '{key}' can't be searched, only model, features and training"
            )
        if key.startswith("features.") and dimension.choice is None:
            raise UserError(f"{where}: '{key}' wants a choice: each value means another extraction")
        if population and not key.startswith(CHANGED_IN_TRAINING):
            raise UserError(
                f"{where}: PopulationBasedTraining changes settings in mid-training: '{key}' can't"
            )
        if config.search.algorithm == "grid" and dimension.choice is None:
            raise UserError(f"{where}: '{key}' wants a choice, for search.algorithm is grid")
        for value in dimension.samples:
            _try_value(config, key, value, where)


def most_epochs(config: Config) -> int:
    """Epochs of the longest trial that the search space has."""
    longest = 0
    for key, own in (
        ("training.epochs", config.training.epochs),
        ("training.finetune.epochs", config.training.finetune.epochs),
    ):
        longest += max(config.search.space[key].values) if key in config.search.space else own
    return longest


def _try_value(config: Config, key: str, value: Any, where: str) -> None:
    """Raises UserError for a value that goes with none of the other settings' values."""
    others = {name: each.values for name, each in config.search.space.items() if name != key}
    refusal = None
    for others_values in [(), *islice(product(*others.values()), COMBINATIONS_TRIED)]:
        try:
            sampled_config(config, {key: value, **dict(zip(others, others_values, strict=False))})
            return
        except UserError as error:
            refusal = refusal or error
    raise UserError(f"{where}: {refusal}")


def _searchable(key: str) -> bool:
    section, _, rest = key.partition(".")
    return section in {"model", "features", "training"} and rest not in {"", "folds", "seeds"}


def sampled_config(config: Config, values: Mapping[str, Any]) -> Config:
    """The config of one trial: with some settings, and without the search.

    Args:
        config: that has the search.
        values: by dotted key.

    Raises:
        UserError: they don't go together, as `load` says.
    """
    tree = config.model_dump(exclude_unset=True, exclude={"search"})
    # A whole section before the settings inside it.
    for key in sorted(values, key=lambda key: key.count(".")):
        set_key(tree, key, values[key])
    return from_tree(tree, ", ".join(f"{key}={values[key]}" for key in values))


def real_corpus(config: Config) -> RealCorpus:
    """The real corpus of a config.

    Raises:
        UserError: it has none, but `evaluation.reference`.
    """
    if config.corpora.real is None:
        raise UserError(
            "corpora.real is missing, and this step needs the real recordings: with "
            "evaluation.reference there are jobs/extract.py, jobs/evaluate.py and jobs/pipeline.py"
        )
    return config.corpora.real


def configured_paths(config: Config) -> dict[str, str]:
    """Every path and URI of a config that is set, by its dotted key."""
    found: dict[str, str] = {}

    def look(tree: Any, keys: Sequence[str], above: str = "") -> None:
        # Log-mel statistics are a word where other embeddings are a section.
        tree = tree if isinstance(tree, dict) else {}
        for key in list(tree) if keys[0] == "*" else keys[:1]:
            value = tree.get(key)
            if len(keys) > 1:
                look(value, keys[1:], f"{above}{key}.")
            elif isinstance(value, str):
                found[above + key] = value

    for keys in PATH_KEYS:
        look(config.model_dump(), keys)
    return found


def _make_absolute(tree: Any, keys: Sequence[str]) -> None:
    """Makes the path that `keys` lead to absolute, in place; URIs and unset ones stay."""
    if not isinstance(tree, dict):
        return
    for key in list(tree) if keys[0] == "*" else keys[:1]:
        if len(keys) > 1:
            _make_absolute(tree.get(key), keys[1:])
        elif isinstance(tree.get(key), tuple):
            tree[key] = tuple(_absolute(value) for value in tree[key])
        else:
            tree[key] = _absolute(tree.get(key))


def _absolute(value: Any) -> Any:
    """A local path as an absolute one; URIs and other values stay."""
    if isinstance(value, str) and "://" not in value:
        return os.path.abspath(os.path.expanduser(value))
    return value


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
    parts = (str(part) for part in location if part not in _union_tags())
    return ".".join(part for part in parts if not part.startswith(UNION_MEMBERS))


def closest_key(key: str, known: Sequence[str]) -> str | None:
    """The known dotted key that is most like `key`, or None if none is like it."""
    last = key.rpartition(".")[2]
    # The right word in the wrong section is the nearer miss.
    same = [path for path in known if path.rpartition(".")[2] == last]
    return next(iter(same or difflib.get_close_matches(key, known, n=1, cutoff=0.6)), None)


def known_keys() -> Iterator[str]:
    """Every dotted key that a YAML may hold."""
    return (key for key, _ in _fields(Config))


def _fields(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every dotted key below a section, and its type."""
    for name, field in model.model_fields.items():
        yield prefix + name, field.annotation
        for section in _sections(field.annotation):
            yield from _fields(section, f"{prefix}{name}.")


def _with_switches(tree: Mapping[str, Any]) -> dict[str, Any]:
    """The tree with YAML 1.1's words for true and false replaced where a setting is a switch."""
    copied = copy.deepcopy(dict(tree))
    for key, kind in _fields(Config):
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


def _sections(annotation: Any) -> list[type[BaseModel]]:
    """The section models that a field's type names, through unions and annotations."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [section for part in get_args(annotation) for section in _sections(part)]


def _union_tags() -> set[str]:
    unions = (Optimizer, Scheduler, TrialScheduler, Embedding)
    tags = {section.__name__ for union in unions for section in _sections(union)}
    return {*tags, LOG_MEL_STATISTICS}
