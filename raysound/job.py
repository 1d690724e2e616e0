"""The frame of every command: signals, output streams and exit codes.

The command runs in a second thread, which also imports Ray and torch. The main thread only waits
for its end or for a signal, so that Ctrl-C works at any moment: during imports and in Ray's C++
code. Libraries install no signal handlers, because they may do so only in the main thread.
"""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from contextlib import suppress
from importlib import import_module
from select import select
from threading import Thread
from typing import NoReturn

from raysound.descendants import children, kill_below

STOPPED = "stopped; the same command continues"
# What is printed after a signal. The exit code is 128 + its number, as a shell has it.
SIGNALS = {
    signal.SIGINT: "interrupted; the same command continues",
    signal.SIGTERM: STOPPED,
    # The terminal was closed.
    signal.SIGHUP: STOPPED,
}
DONE = 0
# How often the handlers of signals are installed again.
HANDLER_SECONDS = 0.2


def run_job(function: str, usage: str) -> NoReturn:
    """Runs `CONFIG [key=value ...]` on Ray, prints the line that the job returns, and exits.

    Exits with 0, with 2 and one line where the user can mend the error, or with 1 and a traceback
    for a bug. After SIGINT, SIGTERM or SIGHUP it prints one line and exits with 130, 143 or 129.

    Args:
        function: of the job, as "module:name"; takes the config, returns the last line.
        usage: printed for `--help`, and where the command line is empty.
    """

    def command(words: list[str]) -> str:
        from raysound.settings.loading import load_config

        config = load_config(words[0], *words[1:])
        # A Ray call in a thread that outlives the session raises, and starts no other cluster.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # By default a task that is killed for memory is tried again for ever.
        os.environ.setdefault("RAY_task_oom_retries", "3")
        from raysound.distributed.cluster.session import run_on_ray

        return run_on_ray(lambda: load_function(function), config)

    supervise(command, usage)


def run_command(function: str, words: int, usage: str, optional: int = 0) -> NoReturn:
    """The same for a command that needs no config and no Ray.

    Args:
        function: as "module:name"; takes the words of the command line, returns what is printed.
        words: how many it takes; 0 for one or more.
        usage: printed for `--help`, and for another number of words.
        optional: how many words more it may take.
    """
    numbers = range(words, words + optional + 1) if words else None
    supervise(lambda given: load_function(function)(*given), usage, numbers)


def supervise(
    command: Callable[[list[str]], str], usage: str, words: range | None = None
) -> NoReturn:
    """Runs a command in a thread until it ends, or until a signal comes."""
    open_streams()
    # While a cluster is joined, descriptor 2 leads nowhere.
    stderr = os.dup(2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    # `nohup`, and a shell's background job, ignore some on purpose.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    handle(handled)
    code = 1

    def work() -> None:
        nonlocal code
        try:
            code = exit_code(command, usage, words)
        finally:
            os.write(writing, bytes([DONE]))

    # A daemon: nothing waits for it after a signal.
    Thread(target=work, name="job", daemon=True).start()
    number = None
    while number not in (DONE, *SIGNALS):
        # Ray's C++ code installs a handler of its own, which prints a stack first: meanwhile the
        # daemons that got the signal, too, end, and this process with them.
        while not select([reading], [], [], HANDLER_SECONDS)[0]:
            handle(handled)
        number = os.read(reading, 1)[0]
    if number != DONE:
        # What Ray's daemons report of a signal that they got, too, is nobody's concern.
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(nowhere, stream)
        # What the job has finished is on the disk; its other files have temporary names. The end
        # of this process ends a local cluster, and all that it runs on a shared one.
        with suppress(OSError):
            os.write(stderr, f"{SIGNALS[signal.Signals(number)]}\n".encode())
        code = 128 + number
    # Ray's daemons end with this process, which would end with them, with another code. What is
    # just starting below them would look for them for a minute.
    kill_below(children(os.getpid()))
    # Python would wait for threads, of which a job that failed may leave some.
    os._exit(code)


def handle(signals: Iterable[signal.Signals]) -> None:
    """Has Python write the numbers of signals to the pipe, and do nothing else for them."""
    for number in signals:
        signal.signal(number, lambda *_: None)


def exit_code(command: Callable[[list[str]], str], usage: str, words: range | None) -> int:
    """Calls a command with the command line's words, prints what it returns or its error."""
    given = sys.argv[1:]
    asked = bool({"-h", "--help"} & set(given))
    if asked or not given or (words and len(given) not in words):
        return show(usage.strip()) if asked else show(usage.strip()) or 2
    try:
        from raysound.errors import UserError

        try:
            result = command(given)
        except (UserError, OSError) as error:
            # Ray gives a task's OSError another class, whose text is a traceback.
            complain(f"error: {getattr(error, 'cause', error)}")
            return 2
    except BaseException:
        complain(traceback.format_exc())
        return 1
    return show(result)


def show(text: str) -> int:
    """Prints a result, and returns the exit code: 2 where nobody gets it although he wants it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # Whoever reads has read enough.
        return 0
    except OSError as error:
        complain(f"error: the result can't be printed: {error}")
        return 2
    return 0


def complain(text: str) -> None:
    """Writes to stderr, if it takes anything."""
    with suppress(OSError):
        print(text.rstrip(), file=sys.stderr, flush=True)


def load_function(path: str) -> Callable[..., str]:
    """The function "module:name"."""
    module, _, name = path.partition(":")
    function: Callable[..., str] = getattr(import_module(module), name)
    return function


def open_streams() -> None:
    """Makes stdin, stdout and stderr safe to write to, whatever they are."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Closed: it takes the lowest free number, which a data file would get otherwise.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - until the end
        # A path may hold characters that the terminal's encoding lacks.
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
