"""Random samples of equal size, for metrics whose value depends on the number of clips."""

from typing import Any

import numpy as np
from numpy.typing import NDArray


def sample_rows(values: NDArray[Any], max_rows: int, seed: int) -> NDArray[Any]:
    """Samples at most `max_rows` rows without replacement; keeps their order."""
    if len(values) <= max_rows:
        return values
    return values[np.sort(np.random.default_rng(seed).permutation(len(values))[:max_rows])]


def size_note(clips: int, set_size: int) -> dict[str, str]:
    """The `note` of a measure computed on fewer clips than `set_size`; empty otherwise."""
    return {"note": f"{clips} clips, others {set_size}"} if clips < set_size else {}
