"""The frame of every command: signals, output streams and exit codes.

The command runs in a second thread, which also imports Ray and torch. The main thread only waits
until the command ends or a signal arrives, so Ctrl-C works at any time: during imports and in Ray's
C++ code. Libraries install no signal handlers, because only the main thread may do so.
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

from raysound.descendants import children, kill_descendants

STOPPED = "stopped; the same command continues"
# Printed after a signal. The exit code is 128 + its number, as in a shell.
SIGNALS = {
    signal.SIGINT: "interrupted; the same command continues",
    signal.SIGTERM: STOPPED,
    # The terminal is closed.
    signal.SIGHUP: STOPPED,
}
DONE = 0
# The signal handlers are reinstalled at this interval.
HANDLER_SECONDS = 0.2


def run_job(function: str, usage: str) -> NoReturn:
    """Runs `CONFIG [key=value ...]` on Ray, prints the line that the job returns, and exits.

    The exit code is 0, 2 with one line for a user error, or 1 with a traceback for a bug. After
    SIGINT, SIGTERM or SIGHUP it prints one line and exits with 130, 143 or 129.

    Args:
        function: of the job, as "module:name"; takes the config, returns the last line.
        usage: printed for `--help`, and if there are no arguments.
    """

    def command(arguments: list[str]) -> str:
        from raysound.settings.loading import load_config

        config = load_config(arguments[0], *arguments[1:])
        # A Ray call in a thread that outlives the session must not start another cluster.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # By default Ray retries a task that is killed for memory forever.
        os.environ.setdefault("RAY_task_oom_retries", "3")
        from raysound.distributed.cluster.session import run_on_ray

        return run_on_ray(lambda: load_function(function), config)

    supervise(command, usage)


def run_command(function: str, required: int, usage: str, optional: int = 0) -> NoReturn:
    """Runs a command that needs no config and no Ray, like `run_job`.

    Args:
        function: as "module:name"; takes the arguments, returns the text to print.
        required: number of arguments; 0 for one or more.
        usage: printed for `--help`, and if the number of arguments is wrong.
        optional: number of further, optional arguments.
    """
    counts = range(required, required + optional + 1) if required else None
    supervise(lambda arguments: load_function(function)(*arguments), usage, counts)


def supervise(
    command: Callable[[list[str]], str], usage: str, counts: range | None = None
) -> NoReturn:
    """Runs a command in a thread until it ends or a signal arrives.

    Args:
        command: takes the arguments, returns the text to print.
        usage: see `run_command`.
        counts: accepted numbers of arguments; None for one or more.
    """
    open_streams()
    # While the job joins a cluster, descriptor 2 is redirected to /dev/null.
    stderr = os.dup(2)
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    signal.set_wakeup_fd(writing)
    # `nohup` and background jobs of a shell ignore some signals on purpose.
    handled = [number for number in SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    install_handlers(handled)
    code = 1

    def work() -> None:
        nonlocal code
        try:
            code = exit_code(command, usage, counts)
        finally:
            os.write(writing, bytes([DONE]))

    # A daemon thread, because nothing waits for it after a signal.
    Thread(target=work, name="job", daemon=True).start()
    number = None
    while number not in (DONE, *SIGNALS):
        # Ray's C++ code replaces the handlers. Its own first prints a stack; meanwhile Ray's
        # daemons end on the same signal, and this process ends with them.
        while not select([reading], [], [], HANDLER_SECONDS)[0]:
            install_handlers(handled)
        number = os.read(reading, 1)[0]
    if number != DONE:
        # Ray's daemons get the signal, too, and print messages that do not help the user.
        devnull = os.open(os.devnull, os.O_WRONLY)
        for stream in (1, 2):
            os.dup2(devnull, stream)
        # Finished files are on the disk; unfinished ones have temporary names. When this process
        # ends, a local cluster ends, and so does everything that this job runs on a shared one.
        with suppress(OSError):
            os.write(stderr, f"{SIGNALS[signal.Signals(number)]}\n".encode())
        code = 128 + number
    # If Ray's daemons ended first, this process would end with another code. Workers that are
    # starting would search for the daemons for a minute.
    kill_descendants(children(os.getpid()))
    # sys.exit would wait for threads that a failed job may leave.
    os._exit(code)


def install_handlers(signals: Iterable[signal.Signals]) -> None:
    """Installs handlers that do nothing: Python writes the number of each signal to the pipe."""
    for number in signals:
        signal.signal(number, lambda *_: None)


def exit_code(command: Callable[[list[str]], str], usage: str, counts: range | None) -> int:
    """Calls a command with the arguments, prints its result or error, and returns the exit code."""
    arguments = sys.argv[1:]
    wants_help = bool({"-h", "--help"} & set(arguments))
    if wants_help or not arguments or (counts and len(arguments) not in counts):
        return print_result(usage.strip()) or (0 if wants_help else 2)
    try:
        from raysound.errors import UserError

        try:
            result = command(arguments)
        except (UserError, OSError) as error:
            # Ray wraps a task's OSError in a class whose text is a traceback.
            print_error(f"error: {getattr(error, 'cause', error)}")
            return 2
    except BaseException:
        print_error(traceback.format_exc())
        return 1
    return print_result(result)


def print_result(text: str) -> int:
    """Prints a result and returns the exit code: 2 if the write fails, as on a full disk.

    A closed pipe is not an error.
    """
    try:
        print(text, flush=True)
    except BrokenPipeError:
        # The reader, for example `head`, needs no more.
        return 0
    except OSError as error:
        print_error(f"error: the result can't be printed: {error}")
        return 2
    return 0


def print_error(text: str) -> None:
    """Writes to stderr, unless it is closed or full."""
    with suppress(OSError):
        print(text.rstrip(), file=sys.stderr, flush=True)


def load_function(path: str) -> Callable[..., str]:
    """Imports the function "module:name"."""
    module, _, name = path.partition(":")
    function: Callable[..., str] = getattr(import_module(module), name)
    return function


def open_streams() -> None:
    """Opens closed standard streams, and escapes characters that a stream's encoding lacks."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # Without this, the next opened data file would get the number of the closed stream.
            os.open(os.devnull, os.O_RDWR)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name) or open(os.devnull, "w")  # noqa: SIM115 - until the end
        # Paths may have characters that the encoding of the terminal lacks.
        stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, stream)
