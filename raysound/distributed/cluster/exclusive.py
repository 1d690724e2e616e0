"""One job at a time writes to a folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import ray

from raysound.errors import UserError
from raysound.lock import locked, taken

# Jobs of one cluster see each other's named actors in a common namespace alone.
NAMESPACE = "raysound"

_ours: set[str] = set()
_changing = Lock()


@contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Keeps other jobs from writing to a folder; has no effect where this job does so already.

    A local folder is locked by a file. A URI is locked by a named actor, which other jobs of a
    shared cluster see and which ends with this job; jobs of other clusters are not noticed.

    Args:
        folder: path or URI; it need not exist.

    Raises:
        UserError: another job writes to it, or nothing can be written there.
    """
    with _changing:
        is_ours = folder in _ours
        _ours.add(folder)
    if is_ours:
        yield
        return
    try:
        with lock_of(folder):
            yield
    finally:
        _ours.discard(folder)


def lock_of(folder: str) -> AbstractContextManager[None]:
    """What keeps others away; nothing for a URI that a local cluster writes to."""
    if "://" not in folder:
        return locked(folder)
    return named_actor(folder) if os.environ.get("RAY_ADDRESS") else nullcontext()


class Writer:
    """An actor whose name stands for the right to write to a folder."""


@contextmanager
def named_actor(folder: str) -> Iterator[None]:
    """Locks a folder by an actor of the cluster."""
    actor_class = ray.remote(num_cpus=0)(Writer)
    try:
        actor = actor_class.options(name=f"writer of {folder}", namespace=NAMESPACE).remote()
    except ValueError:
        raise UserError(taken(folder, "of this cluster")) from None
    try:
        yield
    finally:
        ray.kill(actor)
