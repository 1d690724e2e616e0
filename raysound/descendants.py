"""The processes below this one: Ray's daemons are its children, and Ray's workers theirs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> Iterator[int]:
    """Ids of the processes that a process has started; none where the system is not Linux."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, tasks.read_text().split())


def kill_below(pids: Iterable[int]) -> None:
    """Ends all that some processes have started, and stops these, which may start others."""
    for pid in pids:
        send(pid, signal.SIGSTOP)
        below = [*children(pid)]
        kill_below(below)
        for child in below:
            send(child, signal.SIGKILL)


def send(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, if it is still there."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
