"""When a training that fails is given up."""

from __future__ import annotations

from typing import Any

import ray.data
import ray.train
import ray.train.torch

from raysound.distributed.cluster.connect import first_line
from raysound.errors import UserError

# Failures in a row, without an epoch between them, before a training is given up.
MOST_FAILURES = 8


class Failures(ray.train.UserCallback):
    """Runs in Ray Train's controller: ends a training whose workers fail again and again.

    A UserError ends it at once, and the same exception in the same place at the second time. Other
    failures, as of nodes, may follow each other MOST_FAILURES times without an epoch in between.
    """

    def __init__(self) -> None:
        self.in_a_row = 0
        self.seen: set[str] = set()

    def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
        """An epoch is over."""
        self.in_a_row = 0

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Raises what ends the training."""
        errors = [*worker_exceptions.values()]
        for error in errors:
            if isinstance(error, UserError):
                raise error
        self.in_a_row += 1
        # `train_worker` notes the traceback of a bug; where a process died, the others' exceptions
        # follow from that. Workers may raise the same at once.
        bugs = {str(getattr(error, "__notes__", "")): error for error in errors}
        if all(bugs):
            for bug in bugs.keys() & self.seen:
                raise bugs[bug]
            self.seen |= bugs.keys()
        if self.in_a_row > MOST_FAILURES:
            raise UserError(
                f"the training failed {self.in_a_row} times without an epoch in between, at last "
                f"with: {first_line(errors[0])}; the same command continues"
            )
