"""Locks on folders, so that one job at a time writes to each."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from threading import Lock

import ray

from raysound.errors import UserError
from raysound.lock import locked, locked_message

# Jobs of one cluster see each other's named actors only in a common namespace.
NAMESPACE = "raysound"

_held_folders: set[str] = set()
_held_folders_lock = Lock()


@contextmanager
def sole_writer(folder: str) -> Iterator[None]:
    """Locks a folder against other jobs; has no effect if this job holds the lock already.

    A local folder is locked by a file. A URI is locked by a named actor, which other jobs of the
    same cluster see and which ends with this job; jobs of other clusters are not detected.

    Args:
        folder: path or URI; it need not exist.

    Raises:
        UserError: another job writes to it, or nothing can be written there.
    """
    with _held_folders_lock:
        is_held = folder in _held_folders
        _held_folders.add(folder)
    if is_held:
        yield
        return
    try:
        with folder_lock(folder):
            yield
    finally:
        _held_folders.discard(folder)


def folder_lock(folder: str) -> AbstractContextManager[None]:
    """The lock of a folder; none for a URI that a local cluster writes to."""
    if "://" not in folder:
        return locked(folder)
    return named_actor(folder) if os.environ.get("RAY_ADDRESS") else nullcontext()


class Writer:
    """An actor whose name locks a folder."""


@contextmanager
def named_actor(folder: str) -> Iterator[None]:
    """Locks a folder by a named actor."""
    actor_class = ray.remote(num_cpus=0)(Writer)
    try:
        actor = actor_class.options(name=f"writer of {folder}", namespace=NAMESPACE).remote()
    except ValueError:
        raise UserError(locked_message(folder, "of this cluster")) from None
    try:
        yield
    finally:
        ray.kill(actor)
