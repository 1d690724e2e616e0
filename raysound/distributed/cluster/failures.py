"""What Ray raises when a task or actor has used up its retries, as one line for the user."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from ray import exceptions
from ray.util.annotations import RayDeprecationWarning

from raysound.errors import UserError

# How often a call is made again after its process or node died.
RETRIES = 3
# Ray's exceptions and their likely causes; the first that fits counts.
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
        "(`dmesg` tells); compute.num_cpus lowers the number of processes",
    ),
    (
        exceptions.RayActorError,
        "its process died each time: it crashed, or the system killed it for lack of memory "
        "(`dmesg` tells)",
    ),
)


@contextmanager
def reported(step: str) -> Iterator[None]:
    """Turns Ray's exceptions into UserErrors; other exceptions, as those of bugs, pass.

    Args:
        step: what runs in the block, as "scoring shard 3 of real".

    Raises:
        UserError: one that a task raised, or the step and the likely cause of its process's death.
        OSError: one that a task raised.
    """
    try:
        yield
    except Exception as error:
        for one in chain(error):
            if isinstance(one, UserError | OSError) and not isinstance(one, exceptions.RayError):
                raise without_advice(one) from None
        for one in chain(error):
            for kind, cause in CAUSES:
                if isinstance(one, kind):
                    text = f"{step} failed: {cause}; the same command continues"
                    raise UserError(text) from error
        raise


def without_advice(error: UserError | OSError) -> UserError | OSError:
    """The error without the lines on retries that Ray Data appends to its text."""
    if isinstance(error, OSError) and error.errno is not None:
        return OSError(error.errno, error.strerror, error.filename)
    return type(error)(str(error).partition("\nFailed to ")[0])


@contextmanager
def finite_retries() -> Iterator[dict[str, int]]:
    """Yields the options by which steps of Ray Data end their retries; by default they never do.

    Ray 2.60 announces the end of `ray_remote_args`, but has no other parameter for `max_retries`.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", ".*ray_remote_args.* is deprecated", RayDeprecationWarning
        )
        yield {"max_retries": RETRIES}


def chain(error: BaseException) -> Iterator[BaseException]:
    """An exception, and those that caused it."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop(0)
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            yield one
            waiting += [getattr(one, "cause", None), one.__cause__]
