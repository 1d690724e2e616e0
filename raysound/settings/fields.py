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

# Type of a validation error whose value must not be printed.
SECRET = "secret"
# The smallest share of a CPU or GPU that Ray can reserve.
MIN_RESOURCE_SHARE = 0.0001


def digest(value: object) -> str:
    """A digest of a JSON-like value, eight hex digits, the same in all processes and machines."""
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


class Section(BaseModel):
    """A section of the YAML file, which is frozen and accepts no unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def _reject_secrets(uri: str) -> str:
    """Rejects a URI with credentials, because configs are stored and printed."""
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
    """Rejects booleans and quoted numbers, which pydantic would convert."""
    if isinstance(value, bool | str):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


def _fold_name(value: object) -> object:
    """Converts numbers to names, so that `1` in YAML and `"1"` in CSV are the same fold."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _strict_integer(value: object) -> object:
    """Rejects numbers above 32-bit integers, which numpy, Arrow or Ray may not accept."""
    if isinstance(value, int | float) and value >= 2**31:
        raise PydanticCustomError("int_size", "Input should be less than 2147483648")
    return strict_number(value)


Number = Annotated[float, BeforeValidator(strict_number)]
PositiveFloat = Annotated[float, Field(gt=0), BeforeValidator(strict_number)]
NonNegativeFloat = Annotated[float, Field(ge=0), BeforeValidator(strict_number)]
Integer = Annotated[int, BeforeValidator(_strict_integer)]
PositiveInt = Annotated[int, Field(gt=0), BeforeValidator(_strict_integer)]
NonNegativeInt = Annotated[int, Field(ge=0), BeforeValidator(_strict_integer)]
# The range that both numpy and torch accept.
Seed = Annotated[int, Field(ge=0, lt=2**32), BeforeValidator(strict_number)]
# Decay of an exponential moving average, as in Adam and momentum.
Decay = Annotated[float, Field(ge=0, lt=1), BeforeValidator(strict_number)]
# A signal-to-noise ratio in dB; beyond these limits float32 loses the signal or the noise.
Decibels = Annotated[float, Field(ge=-200, le=200), BeforeValidator(strict_number)]
# A path or URI of a file or folder.
PathOrUri = Annotated[str, StringConstraints(min_length=1), AfterValidator(_reject_secrets)]
Fold = Annotated[str, BeforeValidator(_fold_name)]
CorpusName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
