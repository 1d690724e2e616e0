"""A job's frame: its command line, its Ray session, its exit code."""

from __future__ import annotations

import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any, TypeVar

import ray
import ray.data

from raysound.config import UserError, load
from raysound.settings import ComputeSettings, Config

Result = TypeVar("Result")

# Calls that wait for a CPU at a time: an autoscaling cluster grows as they ask for.
CALLS_AHEAD = 1024


def run_job(job: Callable[[Config], str], usage: str) -> None:
    """Reads `CONFIG [key=value ...]`, starts Ray, runs the job, prints the line it returns.

    Exits with 0, or with 2 and one clear line where the user can mend it.

    Args:
        job: takes the config, returns the last line: where the result lies.
        usage: the job's docstring, shown for `--help`.
    """
    arguments = sys.argv[1:]
    if not arguments or {"-h", "--help"} & set(arguments):
        print(usage.strip())
        sys.exit(0 if arguments else 2)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        config = load(arguments[0], arguments[1:])
        with ray_session(config.compute):
            last_line = job(config)
    except (UserError, OSError) as error:
        # A full disk is told as a mistake is. What Ray makes of a task's error is a traceback.
        print(f"error: {getattr(error, 'cause', error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    print(last_line)


@contextmanager
def ray_session(compute: ComputeSettings) -> Iterator[None]:
    """Joins the cluster this job was submitted to (RAY_ADDRESS), or starts a local one.

    A session that is open already is used as it is, and left open.
    """
    if ray.is_initialized():
        yield
        return
    local = not os.environ.get("RAY_ADDRESS")
    # A cluster started here is closed to strangers: Ray turns its token on, unless RAY_AUTH_MODE,
    # which it reads while it is imported, says otherwise. Our workers' news comes back as results;
    # what Ray says of itself is in its own log files.
    ray.init(
        # Without it Ray would join any cluster that was started on this machine.
        address="local" if local else None,
        num_cpus=(compute.local_cpus or available_cpus()) if local else None,
        include_dashboard=False if local else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )
    for name in ("ray", "ray.data", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    # Results and training batches in the order of the shards, whoever finishes first.
    context.execution_options.preserve_order = True
    try:
        yield
    finally:
        ray.shutdown()


def in_a_task(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process of the cluster, and raises here what it raises there."""
    return next(in_tasks(function, [arguments]))


def in_tasks(
    function: Callable[..., Result], arguments: Iterable[tuple[Any, ...]], num_gpus: float = 0
) -> Iterator[Result]:
    """Calls a function many times, a CPU a call, and yields the results in the order of the calls.

    A call whose process or node dies is made again. What a call raises is raised here, and what
    has not begun by then never does. An argument may be a reference to what `ray.put` took.
    """
    task = ray.remote(max_retries=-1, num_gpus=num_gpus)(function)
    rest = iter(arguments)
    ahead = max(CALLS_AHEAD, 4 * int(cluster_cpus()))
    waiting = deque(task.remote(*some) for some in islice(rest, ahead))
    try:
        while waiting:
            yield ray.get(waiting.popleft())
            waiting.extend(task.remote(*some) for some in islice(rest, 1))
    except ray.exceptions.RayTaskError as error:
        # What a user can mend is one line; of a bug, Ray's own tells where in the task it struck.
        if isinstance(error.cause, UserError | OSError):
            raise error.cause from None
        raise
    finally:
        for call in waiting:
            ray.cancel(call)


def available_cpus() -> int:
    """CPUs that this process may run on."""
    # macOS has no affinity to ask for.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def cluster_cpus() -> float:
    """CPUs of the whole cluster."""
    return float(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> float:
    """GPUs of the whole cluster."""
    return float(ray.cluster_resources().get("GPU", 0))
