"""A local folder to which one process at a time writes."""

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
from raysound.storage import FORBIDDEN, FULL, explained

logger = logging.getLogger(__name__)

# As storage.whole_file names a file until it is whole.
TEMPORARY = re.compile(r"\.[0-9a-f]{32}\.tmp$")


@contextmanager
def locked(folder: str) -> Iterator[None]:
    """Locks a local folder, and removes what earlier writers, which were killed, left unfinished.

    The operating system locks the file `FOLDER.lock`, and ends the lock with this process, however
    it ends.

    Args:
        folder: its path; it need not exist.

    Raises:
        UserError: another process has locked it, or nothing can be written there.
    """
    path = f"{storage.locate(folder)[1]}.lock"
    with explained(folder, FULL | FORBIDDEN):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        file = lock_file(path, folder)
    try:
        remove_unfinished(folder)
        yield
    finally:
        # Before it is unlocked: whoever has opened it meanwhile sees that it is gone.
        with suppress(FileNotFoundError):
            os.remove(path)
        os.close(file)


def lock_file(path: str, folder: str) -> int:
    """Makes and locks the file of a folder's lock, and returns its descriptor."""
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(file, 200, 0).decode(errors="replace").strip()
            os.close(file)
            raise UserError(taken(folder, holder or "unknown")) from None
        except OSError as error:
            logger.warning(
                "%s lies on a file system without locks (%s): run one job at a time", folder, error
            )
            return file
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file), os.stat(path)):
                break
        # The holder has just removed it.
        os.close(file)
    os.truncate(file, 0)
    os.pwrite(file, f"process {os.getpid()} on {socket.gethostname()}\n".encode(), 0)
    return file


def remove_unfinished(folder: str) -> None:
    """Removes files under temporary names."""
    for name, _, _ in storage.list_files(folder):
        if TEMPORARY.search(name):
            storage.delete(storage.join(folder, name))


def taken(folder: str, holder: str) -> str:
    """The error of a second writer."""
    return (
        f"another job is at work on {folder} ({holder}): wait until it has ended, or set another "
        "output"
    )
