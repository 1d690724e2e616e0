"""Types of settings: numbers, names and paths with their checks, and the base of all sections."""

from __future__ import annotations

import hashlib
import json
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StringConstraints,
)
from pydantic_core import PydanticCustomError

# The type of a fault whose value must not be shown.
SECRET = "secret"
# The least share of a CPU or GPU that Ray can reserve.
LEAST_SHARE = 0.0001


def digest(value: object) -> str:
    """Eight hex digits of a JSON-like value, the same in every process and on every machine."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Section(BaseModel):
    """One section of the YAML: frozen, unknown keys refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _without_secrets(uri: str) -> str:
    """Refuses a URI that holds what only the environment should: configs are kept and shown."""
    scheme, separator, rest = uri.partition("://")
    if separator and ("@" in rest.partition("/")[0] or "?" in rest):
        raise PydanticCustomError(
            SECRET,
            "write it as {scheme}://bucket/folder: keys, secrets and endpoints come from the "
            "environment, as AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_ENDPOINT_URL",
            {"scheme": scheme},
        )
    return uri


def strict_number(value: object) -> object:
    """Refuses what pydantic would convert: `true` is no 1, and a quoted number is a text."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _fold_name(value: object) -> object:
    """Folds are names: `1` in a YAML and `"1"` in a CSV are the same fold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _whole_number(value: object) -> object:
    """Refuses whole numbers that numpy, Arrow and Ray can't hold everywhere."""
    if isinstance(value, int | float) and value >= 2**31:
        raise PydanticCustomError("int_size", "Input should be less than 2147483648")
    return strict_number(value)


Number = Annotated[float, BeforeValidator(strict_number)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(strict_number)]
NonNegativeFloat = Annotated[float, Field(ge=0), BeforeValidator(strict_number)]
Integer = Annotated[int, BeforeValidator(_whole_number)]
PositiveInt = Annotated[int, Field(gt=0), BeforeValidator(_whole_number)]
NonNegativeInt = Annotated[int, Field(ge=0), BeforeValidator(_whole_number)]
# What numpy and torch take for a seed.
Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(strict_number)]
# Of an exponential mean, as Adam's and momentum's.
Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(strict_number)]
# A signal-to-noise ratio in dB: beyond, one of the two is lost in float32.
Decibels = Annotated[float, Field(ge=-200, le=200), BeforeValidator(strict_number)]
# A path or URI of a file or folder.
PathOrUri = Annotated[str, StringConstraints(min_length=1), AfterValidator(_without_secrets)]
Fold = Annotated[str, BeforeValidator(_fold_name)]
CorpusName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
