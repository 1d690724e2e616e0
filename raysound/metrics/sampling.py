"""Equal numbers of clips for the metrics whose value depends on how many there are."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def drawn(values: NDArray[Any], most: int, seed: int) -> NDArray[Any]:
    """At most `most` of the rows, drawn without repetition and kept in order."""
    if len(values) <= most:
        return values
    return values[np.sort(np.random.default_rng(seed).permutation(len(values))[:most])]


def fewer(clips: int, set_size: int) -> dict[str, str]:
    """The note of a measure that had fewer clips than those of other corpora; empty otherwise."""
    return {"note": f"{clips} clips, others {set_size}"} if clips < set_size else {}
