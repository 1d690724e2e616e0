"""The descendants of this process: Ray's daemons are its children, Ray's workers are theirs."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path


def children(pid: int) -> Iterator[int]:
    """Yields the ids of the child processes of a process; none if the system is not Linux."""
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            yield from map(int, tasks.read_text().split())


def kill_descendants(pids: Iterable[int]) -> None:
    """Kills all descendants of some processes, which are stopped so that they start no others."""
    for pid in pids:
        send_signal(pid, signal.SIGSTOP)
        child_pids = [*children(pid)]
        kill_descendants(child_pids)
        for child in child_pids:
            send_signal(child, signal.SIGKILL)


def send_signal(pid: int, number: signal.Signals) -> None:
    """Sends a signal to a process, if it still exists."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)
