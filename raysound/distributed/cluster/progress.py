"""The progress of a step: a bar on a terminal."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from tqdm import tqdm
from tqdm.contrib.logging import logging_redirect_tqdm


@contextmanager
def progress_bar(name: str, total: int, unit: str) -> Iterator[tqdm]:
    """A progress bar on stderr, with log lines above it; hidden where stderr is no terminal.

    Args:
        name: shown before the bar.
        total: amount of work.
        unit: of the work, in the plural.

    Yields:
        The bar; `disable` is True where it is hidden.
    """
    is_hidden = not sys.stderr.isatty()
    # Each logger that has handlers of its own needs the redirection; these are the root's.
    with (
        nullcontext() if is_hidden else logging_redirect_tqdm([logging.getLogger()]),
        tqdm(
            total=total, desc=name, unit=f" {unit}", disable=is_hidden, leave=False, file=sys.stderr
        ) as bar,
    ):
        yield bar
