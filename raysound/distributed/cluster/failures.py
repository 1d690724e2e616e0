"""Turns Ray's exceptions, raised after the last retry, into one line for the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray import exceptions
from ray.util.annotations import RayDeprecationWarning

from raysound.errors import UserError

# Retries of a call whose process or node died.
RETRIES = 3
# Ray's exceptions and their likely causes; the first match is reported.
CAUSES: tuple[tuple[type[BaseException], str], ...] = (
    (
        exceptions.OutOfMemoryError,
        "Ray killed it each time because its node ran out of memory: lower compute.num_cpus, so "
        "that fewer run at a time, or use nodes with more memory",
    ),
    (
        exceptions.NodeDiedError,
        "its node died each time: `ray status` shows the nodes of the cluster",
    ),
    (
        exceptions.ObjectLostError,
        "a node died with results that were still needed: `ray status` shows the nodes",
    ),
    (
        exceptions.WorkerCrashedError,
        "its process died each time: it crashed, or the system killed it for lack of memory "
        "(see `dmesg`); compute.num_cpus lowers the number of processes",
    ),
    (
        exceptions.RayActorError,
        "its process died each time: it crashed, or the system killed it for lack of memory "
        "(see `dmesg`)",
    ),
)


@contextmanager
def translate_ray_errors(step: str) -> Iterator[None]:
    """Turns Ray's exceptions into UserErrors; others pass unchanged.

    Args:
        step: what runs in the block, for example "scoring shard 3 of real".

    Raises:
        UserError: a task raised it, or a process died; then it names the step and likely cause.
        OSError: a task raised it.
    """
    try:
        yield
    except Exception as error:
        for cause in error_chain(error):
            if isinstance(cause, UserError | OSError) and not isinstance(
                cause, exceptions.RayError
            ):
                raise strip_retry_advice(cause) from None
        for cause in error_chain(error):
            for kind, explanation in CAUSES:
                if isinstance(cause, kind):
                    text = f"{step} failed: {explanation}; the same command continues"
                    raise UserError(text) from error
        raise


def strip_retry_advice(error: UserError | OSError) -> UserError | OSError:
    """The error without the lines on retries that Ray Data appends to its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return type(error)(str(error).partition("\nFailed to ")[0])


@contextmanager
def finite_retries() -> Iterator[dict[str, int]]:
    """Yields options that limit the retries of a Ray Data step; by default there is no limit.

    Ray 2.60 deprecates `ray_remote_args`, but has no other parameter for `max_retries`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*ray_remote_args.* is deprecated", RayDeprecationWarning
        )
        yield {"max_retries": RETRIES}


def error_chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that caused it."""
    seen: list[BaseException] = []
    queue: list[BaseException | None] = [error]
    while queue:
        cause = queue.pop(0)
        if isinstance(cause, BaseException) and cause not in seen:
            seen.append(cause)
            yield cause
            queue += [getattr(cause, "cause", None), cause.__cause__]
