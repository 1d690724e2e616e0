"""Decides when a failing training stops."""

from __future__ import annotations

from typing import Any

import ray.data
import ray.train
import ray.train.torch

from raysound.distributed.cluster.connect import first_line
from raysound.errors import UserError

# Consecutive failures, without an epoch between them, that a training survives.
MAX_CONSECUTIVE_FAILURES = 8


class Failures(ray.train.UserCallback):
    """Runs in Ray Train's controller: ends a training whose workers fail again and again.

    A UserError ends it at once. The same exception with the same traceback ends it the second
    time. Other failures, such as those of nodes, end it when more than MAX_CONSECUTIVE_FAILURES
    follow each other.
    """

    def __init__(self) -> None:
        self.consecutive = 0
        self.known_bugs: set[str] = set()

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """Resets the count of failures after an epoch."""
        self.consecutive = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises the error that ends the training."""
        errors = [*worker_exceptions.values()]
        for error in errors:
            if isinstance(error, UserError):
                raise error
        self.consecutive += 1
        # `train_worker` adds the traceback of a bug as a note. An exception without one is a
        # process's death, or follows from it. Several workers may raise the same bug.
        bugs = {str(getattr(error, "__notes__", "")): error for error in errors}
        if all(bugs):
            for bug in bugs.keys() & self.known_bugs:
                raise bugs[bug]
            self.known_bugs |= bugs.keys()
        if self.consecutive > MAX_CONSECUTIVE_FAILURES:
            raise UserError(
                f"the training failed {self.consecutive} times without an epoch in between; the "
                f"last error: {first_line(errors[0])}; the same command continues"
            )
