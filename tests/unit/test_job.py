"""Signals, streams and exit codes of commands, without Ray and torch."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest


def command(root: Path, function: str, *words: str, **options: object) -> subprocess.Popen[str]:
    """Runs a function as a command in a process of its own."""
    code = f"from raysound.job import run_command; run_command({function!r}, {len(words)}, 'usage')"
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([sys.executable, "-c", code, *words], cwd=root, text=True, **streams)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_characters_that_an_encoding_lacks_are_escaped(root: Path, encoding: str) -> None:
    environment = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONUTF8": "0"}

    process = command(root, "builtins:str", "runs/κλάξον", env=environment)
    out, err = process.communicate(timeout=30)

    assert (process.returncode, err) == (0, "")
    assert out == r"runs/\u03ba\u03bb\u03ac\u03be\u03bf\u03bd" + "\n"


@pytest.mark.parametrize(
    ("streams", "code", "said"),
    [
        (">&-", 0, ""),
        ("2>&- >&-", 0, ""),
        ("| true", 0, ""),
        ("2>&1 | true", 0, ""),
        ("> /dev/full", 2, "error: the result can't be printed: [Errno 28] "),
    ],
)
def test_closed_streams_are_not_errors_of_a_command(
    root: Path, streams: str, code: int, said: str
) -> None:
    """Closed streams and broken pipes are not errors; a full disk is one."""
    script = "from raysound.job import run_command; run_command('builtins:str', 1, '')"

    done = subprocess.run(
        ["bash", "-c", f'set -o pipefail; {sys.executable} -c "$0" word {streams}', script],
        cwd=root, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip

    assert done.returncode == code, done.stderr
    assert done.stderr.startswith(said)
    assert len(done.stderr.splitlines()) == bool(said)


def test_a_bug_is_a_traceback_and_a_wrong_number_of_arguments_is_the_usage(
    root: Path,
) -> None:
    bug, no_word = command(root, "builtins:int", "no number"), command(root, "builtins:str")

    _, err = bug.communicate(timeout=30)
    assert bug.returncode == 1
    assert err.splitlines()[-1].startswith("ValueError: ")
    assert no_word.communicate(timeout=30) == ("usage\n", "")
    assert no_word.returncode == 2


WAITS = "print('ready', flush=True); input()"


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [
        (signal.SIGINT, 130, "interrupted; the same command continues\n"),
        (signal.SIGTERM, 143, "stopped; the same command continues\n"),
        (signal.SIGHUP, 129, "stopped; the same command continues\n"),
    ],
)
def test_a_signal_ends_a_command_at_once(root: Path, number: int, code: int, line: str) -> None:
    """Three equal signals are reported once."""
    process = command(root, "builtins:exec", WAITS, stdin=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    for _ in range(3):
        process.send_signal(number)

    # stdin stays open, so the command would wait forever.
    assert process.wait(30) == code
    assert process.communicate() == ("", line)


def test_an_ignored_signal_stays_ignored(root: Path) -> None:
    """For example with nohup."""
    process = command(
        root, "builtins:exec", WAITS, stdin=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGHUP)

    assert process.communicate("\n", timeout=30) == ("None\n", "")
    assert process.returncode == 0
