"""Jobs as processes of their own, whose user waits for them, looks at them, and kills them."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Thread
from typing import Any


def poll(condition: Callable[[], Any], seconds: float, what: str) -> Any:
    """Waits for a condition, and returns what it gave."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, f"{what}: not in {seconds} s"
        time.sleep(0.02)
    return result


def processes_below(pid: int) -> dict[int, str]:
    """Process ids and titles of all that a process started, and of what those started."""
    table = subprocess.run(
        ["ps", "-ww", "-eo", "pid=,ppid=,args="], capture_output=True, text=True, check=True
    ).stdout
    rows = {int(row[0]): row for row in (line.split(None, 2) for line in table.splitlines())}
    found: dict[int, str] = {}
    ancestors = {pid}
    while ancestors:
        children = {child for child, row in rows.items() if int(row[1]) in ancestors}
        found |= {child: rows[child][2] for child in children}
        ancestors = children
    return found


def processes_of_session(session: int) -> dict[int, str]:
    """Process ids and command lines of a session; Ray's processes stay in that of their job."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            # The name, which may hold anything, stands in parentheses; the state follows.
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
            if int(of) == session and state != "Z":
                found[int(folder.name)] = (folder / "cmdline").read_text().replace("\0", " ")
    return found


def poll_until_empty(find: Callable[[], Collection[Any]], seconds: float = 60) -> None:
    """Waits until nothing is found any more; fails with what is left."""
    deadline = time.monotonic() + seconds
    while left := find():
        assert time.monotonic() < deadline, f"left after {seconds} s: {left}"
        time.sleep(0.1)


@contextmanager
def job(
    root: Path, name: str, config: Path, *overrides: str, terminal: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A job with a cluster of its own; its words go to files beside the config.

    Args:
        root: the project's folder.
        name: of the job.
        config: the YAML.
        overrides: `key=value`.
        terminal: whether what it says on stderr goes to a terminal first.
    """
    environment = {
        **os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "token", "CUDA_VISIBLE_DEVICES": "",
    }  # fmt: skip
    environment.pop("RAY_ADDRESS", None)
    with open(config.parent / "stdout", "w") as out, open(config.parent / "stderr", "wb") as err:
        ours, theirs = os.openpty() if terminal else (None, err.fileno())
        process = subprocess.Popen(
            [sys.executable, f"jobs/{name}.py", str(config), *overrides],
            cwd=root, stdout=out, stderr=theirs, text=True, env=environment,
            start_new_session=True,
        )  # fmt: skip
        if ours is not None:
            os.close(theirs)
            Thread(target=_copy, args=(ours, config.parent / "stderr"), daemon=True).start()
        try:
            yield process
        finally:
            process.kill()
            process.wait(10)


def _copy(terminal: int, path: Path) -> None:
    """Writes down what a terminal shows, until its other end is closed."""
    # Linux ends a terminal with an error.
    with suppress(OSError), open(path, "ab", buffering=0) as file:
        while shown := os.read(terminal, 4096):
            file.write(shown)


def console_output(config: Path, where: str = "stderr") -> str:
    """What the job of a config has said."""
    return (config.parent / where).read_text()


def run_script(root: Path, script: str, config: Path, timeout: float) -> None:
    """Runs Python code in a process of its own, whose argument is the config's path."""
    done = subprocess.run(
        [sys.executable, "-c", script, str(config)],
        cwd=root, capture_output=True, text=True, timeout=timeout, check=False,
        env={**os.environ, "PYTHONPATH": str(root), "RAY_AUTH_MODE": "token"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
