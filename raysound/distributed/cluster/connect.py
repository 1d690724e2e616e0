"""Starts Ray on this machine, or joins the cluster at RAY_ADDRESS."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from threading import Thread
from typing import Any

import ray

from raysound.descendants import children, kill_descendants, send_signal
from raysound.errors import UserError

logger = logging.getLogger(__name__)

# Timeouts for the cluster's machine to accept a connection, and for Ray to join.
ANSWER_SECONDS, JOIN_SECONDS = 10.0, 50.0
# Ray's own timeouts can expire on a busy machine, and two sessions that start at once can collide.
START_ATTEMPTS = 3
HOST_AND_PORT = re.compile(r"(?:ray://)?\[?(?P<host>[^/\[\]]+?)\]?:(?P<port>\d+)")
AUTHENTICATION = (
    "the cluster and this job must agree on a token: set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN "
    "(or RAY_AUTH_TOKEN_PATH, or ~/.ray/auth_token) as on the cluster, or RAY_AUTH_MODE=disabled "
    "where it has none"
)


def connect(cpus: int, dashboard: bool = False) -> str | None:
    """Joins the cluster at RAY_ADDRESS, or starts a local one.

    Args:
        cpus: of a local one.
        dashboard: whether a local one has Ray's dashboard, on the loopback interface.

    Returns:
        The folder of a local one's files; None for a cluster that was joined.

    Raises:
        UserError: the cluster does not answer or refuses the token, or Ray can't start here.
    """
    for name in ("ray", "ray.train"):
        # raysound.job handles the signals; Ray warns about that when it starts.
        logging.getLogger(name).setLevel(logging.ERROR)
    address = os.environ.get("RAY_ADDRESS", "")
    is_local = address in ("", "local")
    if dashboard or not is_local:
        # The dashboard's Train page lists trainings only with this setting.
        os.environ.setdefault("RAY_TRAIN_ENABLE_STATE_TRACKING", "1")
    if is_local:
        return start_cluster(cpus, dashboard)
    join_cluster(address)
    return None


def start_cluster(cpus: int, dashboard: bool) -> str:
    """Starts Ray on this machine, and returns the folder of its files.

    Ray requires its access token, unless RAY_AUTH_MODE disabled it when Ray was imported.
    """
    # Ray Train's preemption watcher takes a process per training and is useless on one machine.
    os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
    # By default Ray's processes poll for each other's sockets ten times, once a second. The first
    # attempt often comes too early, so they poll a hundred times, ten times a second.
    os.environ.setdefault("RAY_raylet_client_connect_timeout_milliseconds", "100")
    os.environ.setdefault("RAY_raylet_client_num_connect_attempts", "100")
    # Workers start with Ray. By default they wait for the driver, which polls once a second.
    os.environ.setdefault("RAY_enable_worker_prestart", "1")
    options: dict[str, Any] = {"include_dashboard": dashboard}
    if dashboard:
        hook = f"{set_address.__module__}.{set_address.__name__}"
        options["runtime_env"] = {"worker_process_setup_hook": hook}
    existing_children = {*children(os.getpid())}
    for _ in range(START_ATTEMPTS):
        try:
            # Without an address Ray joins any cluster that runs on this machine.
            context = init(address="local", num_cpus=cpus, **options)
            return str(context.address_info["session_dir"])
        except Exception as error:  # Ray raises many types, bare Exception among them
            if isinstance(error, OSError) and not isinstance(error, ConnectionError | TimeoutError):
                raise UserError(
                    f"Ray can't start: {error}; it writes to /tmp/ray (RAY_TMPDIR sets another "
                    "folder, with a short path) and to ~/.ray (RAY_AUTH_TOKEN_PATH sets another "
                    "file)"
                ) from error
            failure = error
        logger.warning("Ray did not start (%s); trying again", first_line(failure))
        ray.shutdown()
        daemons = {*children(os.getpid())} - existing_children
        kill_descendants(daemons)
        for pid in daemons:
            send_signal(pid, signal.SIGKILL)
    raise UserError(
        f"Ray did not start in {START_ATTEMPTS} attempts; the last error: {first_line(failure)}; "
        "its log files are in /tmp/ray/session_latest/logs"
    ) from failure


def set_address() -> None:
    """Runs when a process of a local cluster starts: sets RAY_ADDRESS to this cluster.

    Ray's placement-group cleaner searches for the dashboard and fails if two clusters run.
    """
    os.environ["RAY_ADDRESS"] = ray.get_runtime_context().gcs_address


def join_cluster(address: str) -> None:
    """Joins the cluster at an address.

    Ray retries for many minutes in C++ code that can't be interrupted, so `ray.init` runs in a
    daemon thread that is abandoned after JOIN_SECONDS.
    """
    unreachable = f"no Ray cluster answers at RAY_ADDRESS={address}"
    remedy = "start it, or unset RAY_ADDRESS to use this machine"
    found = HOST_AND_PORT.fullmatch(address)
    if found:
        try:
            endpoint = (found["host"], int(found["port"]))
            socket.create_connection(endpoint, ANSWER_SECONDS).close()
        except OSError as error:
            raise UserError(f"{unreachable} ({error.strerror or error}): {remedy}") from error
    joined: Future[None] = Future()

    def join() -> None:
        try:
            init(address=None)
            joined.set_result(None)
        except BaseException as error:
            joined.set_exception(error)

    try:
        with silent_stderr():
            Thread(target=join, daemon=True).start()
            joined.result(JOIN_SECONDS)
    except ray.exceptions.AuthenticationError as error:
        raise UserError(f"RAY_ADDRESS={address}: {AUTHENTICATION}") from error
    except TimeoutError as error:
        raise UserError(f"{unreachable} within {JOIN_SECONDS:.0f} s: {remedy}") from error
    except ConnectionError as error:
        if "InvalidAuthToken" in str(error.__cause__):
            raise UserError(f"RAY_ADDRESS={address}: {AUTHENTICATION}") from error
        raise UserError(f"{unreachable} ({first_line(error)}): {remedy}") from error


@contextmanager
def silent_stderr() -> Iterator[None]:
    """Discards stderr, where Ray's C++ code writes a line per second until it gives up."""
    stderr, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        os.close(nowhere)


def first_line(error: BaseException) -> str:
    """The first line of an error's text, or its type if it has none."""
    return next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)


def init(**options: Any) -> Any:
    """Calls `ray.init` without its log output, which Ray's log files hold as well."""
    return ray.init(log_to_driver=False, logging_level=logging.ERROR, **options)
