"""The memory that the processes of a benchmark take at their peaks."""

import os
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SECONDS_BETWEEN_LOOKS = 0.05
# Memory of a process's own, and all that is resident: shared libraries and objects, too.
KINDS = ("RssAnon", "VmRSS")


def run_watched(command: list[str], folder: Path, root: Path) -> dict[tuple[str, str], int]:
    """Runs a command whose stdout goes to `out` and stderr to `log` in a folder.

    Returns:
        The peak in bytes, by `driver`, the command itself, or `worker`, the largest Ray worker
        below it, and by kind of memory.

    Raises:
        SystemExit: the command failed; with what it wrote to stderr.
    """
    peaks: dict[tuple[str, str], int] = defaultdict(int)
    with (folder / "out").open("w") as out, (folder / "log").open("w") as log:
        driver = subprocess.Popen(command, cwd=root, stdout=out, stderr=log, start_new_session=True)
        while driver.poll() is None:
            for name, used in memory_of_session(driver.pid):
                peaks[name] = max(peaks[name], used)
            time.sleep(SECONDS_BETWEEN_LOOKS)
    if driver.returncode:
        raise SystemExit((folder / "log").read_text())
    return peaks


def memory_of_session(driver: int) -> Iterator[tuple[tuple[str, str], int]]:
    """What the driver and each of its Ray workers take now, in bytes."""
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            if os.getsid(int(status.parent.name)) != driver:
                continue
            lines = (line.split(":", 1) for line in status.read_text().splitlines())
            fields = dict(line for line in lines if len(line) == 2)
            title = (status.parent / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        name = "driver" if status.parent.name == str(driver) else "worker"
        if name == "driver" or title.startswith(b"ray::"):
            for kind in KINDS:
                yield (name, kind), int(fields.get(kind, "0").split()[0]) * 1024
