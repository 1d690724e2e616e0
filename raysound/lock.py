"""Locks of local folders, so that one process at a time writes to a folder."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from raysound import storage
from raysound.errors import UserError
from raysound.storage import FORBIDDEN, FULL, raise_unwritable

logger = logging.getLogger(__name__)

# Temporary names of storage.atomic_file.
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Locks a local folder, and removes unfinished files of earlier writers that were killed.

    The lock is an operating-system lock on the file `FOLDER.lock`. It ends with this process, even
    if the process is killed.

    Args:
        folder: path of the folder, which need not exist.

    Raises:
        UserError: another process holds the lock, or the lock file can't be written.
    """
    path = f"{storage.locate(folder)[1]}.lock"
    with raise_unwritable(folder, FULL | FORBIDDEN):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = lock_file(path, folder)
    try:
        remove_unfinished(folder)
        yield
    finally:
        # Removed before the unlock, so that a process that has opened it sees that it is gone.
        with suppress(FileNotFoundError):
            os.remove(path)
        os.close(file)


def lock_file(path: str, folder: str) -> int:
    """Creates and locks the lock file of a folder, and returns its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise UserError(locked_message(folder, holder or "unknown")) from None
        except OSError as error:
            logger.warning(
                "%s is on a file system without locks (%s): run one job at a time", folder, error
            )
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        # The holder has removed the file in the meantime.
        os.close(file)
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def remove_unfinished(folder: str) -> None:
    """Removes the files with temporary names."""
    for name, _, _ in storage.list_files(folder):
        if TEMPORARY.search(name):
            storage.delete(storage.join(folder, name))


def locked_message(folder: str, holder: str) -> str:
    """The error message for a second writer."""
    return (
        f"another job is at work on {folder} ({holder}): wait until it has ended, or set another "
        "output"
    )
