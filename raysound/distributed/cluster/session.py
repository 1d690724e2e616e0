"""A job's Ray session, and the tasks it runs there."""

from __future__ import annotations

import gc
import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from functools import wraps
from glob import glob
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from raysound import storage
from raysound.distributed.cluster.connect import connect
from raysound.distributed.cluster.failures import RETRIES, reported
from raysound.distributed.cluster.nodes import await_nodes
from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.settings.paths import configured_paths
from raysound.settings.schema import Config
from raysound.settings.synthesis import SynthesisSettings

if TYPE_CHECKING:
    from ray.data import DataContext

Result = TypeVar("Result")
Step = TypeVar("Step", bound=Callable[..., Any])

# The folder on a node that holds what was uploaded with a job, until the job ends.
UPLOADED = "/working_dir_files/"
# Where corpora are made.
MADE = {f"synthesis.{kind}.output" for kind in SynthesisSettings.model_fields}
# A node that can't say within so many seconds whether it sees a file counts as gone.
NODE_SECONDS = 60.0


def run_on_ray(load: Callable[[], Callable[[Config], str]], config: Config) -> str:
    """Starts or joins Ray, runs a job, and returns what it returns: its last line.

    Args:
        load: imports the job, while Ray starts.
        config: of the job.

    Raises:
        UserError: the config names a path that this cluster can't use.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    check_places(given_paths(config))
    with ThreadPoolExecutor(1) as pool:
        with uncollected():
            job = pool.submit(load)
            folder = open_session(config.compute, needs_dashboard(config))
            wait([job])
        try:
            check_shared(config.output)
            # Listing imports this module.
            from raysound.distributed.extraction.listing import listed_once

            with listed_once():
                return job.result()(config)
        finally:
            # The end of this process ends a local cluster faster, but leaves spilled files.
            if folder is None or glob(f"{folder}/ray_spilled_objects*"):
                ray.shutdown()


def check_places(named: dict[str, str]) -> None:
    """Raises UserError for paths, by their keys, that Ray throws away when a submitted job ends."""
    for key, place in named.items():
        if UPLOADED in place:
            raise UserError(
                f"{key} leads into the folder that was uploaded with this job, which is thrown "
                f"away when it ends: give it as a path that all nodes share, or a URI, as "
                f"{key}=s3://bucket/{os.path.basename(place)}"
            )


def check_shared(output: str) -> None:
    """Raises UserError where a node of the cluster doesn't see what this process writes."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 or "://" in output:
        return
    mark = storage.join(output, f"shared-{uuid4().hex}.tmp")
    storage.write_bytes(mark, b"")
    sees = ray.remote(num_cpus=0, max_retries=0)(storage.exists)
    try:
        calls = {
            sees.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(mark): node
            for node in nodes
        }
        # One that dies meanwhile is no reason to give up.
        answered, _ = ray.wait([*calls], num_returns=len(calls), timeout=NODE_SECONDS)
        blind = [calls[call] for call in answered if answer_of(call) is False]
    finally:
        storage.delete(mark)
    if blind:
        addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in blind]
        raise UserError(
            f"{output} is not the same folder on every node of the cluster ({addresses[0]} doesn't "
            "see it): give output as a path that all nodes share, or a URI, as s3://bucket/run"
        )


def answer_of(call: ray.ObjectRef) -> Any:
    """What a call returned; None where its node is gone."""
    try:
        return ray.get(call)
    except ray.exceptions.RayError:
        return None


@contextmanager
def ray_session(compute: ComputeSettings, dashboard: bool = False) -> Iterator[None]:
    """Joins the cluster at RAY_ADDRESS, or starts a local one, for a block.

    A session that is open already is used as it is, and left open.

    Args:
        compute: the settings of a local cluster.
        dashboard: whether a local cluster has a dashboard.

    Raises:
        UserError: as `open_session`.
    """
    if ray.is_initialized():
        from ray.data import DataContext

        # The session is the user's: its other datasets keep their options.
        with DataContext.current(with_data_options(DataContext.get_current().copy())):
            yield
        return
    open_session(compute, dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def on_ray(step: Step) -> Step:
    """Decorates a step that needs Ray, so that it can be called without a session.

    Where no session is open, the step joins or starts a cluster and leaves it at its end. See
    `ray_session`. The command line opens the session of a command before.
    """

    @wraps(step)
    def run(config: Config, *arguments: Any, **options: Any) -> Any:
        is_open = ray.is_initialized()
        if not is_open:
            check_places(given_paths(config))
        with ray_session(config.compute, dashboard=needs_dashboard(config)):
            if not is_open:
                check_shared(config.output)
            return step(config, *arguments, **options)

    return cast(Step, run)


def ensure_session() -> None:
    """Opens a session with the default settings where none is open, and leaves it open."""
    if not ray.is_initialized():
        open_session(ComputeSettings())


def given_paths(config: Config) -> dict[str, str]:
    """The paths of a config but those of corpora to be made, which are checked where they are."""
    return {key: at for key, at in configured_paths(config).items() if key not in MADE}


def needs_dashboard(config: Config) -> bool:
    """True for a search whose trials have several workers.

    Ray frees what the workers of a stopped trial held, and asks the dashboard for it.
    """
    return bool(config.search.space and config.compute.workers_range[1] > 1)


def open_session(compute: ComputeSettings, dashboard: bool = False) -> str | None:
    """Joins or starts a cluster, a local one with or without a dashboard; see `connect`.

    Raises:
        UserError: that failed, or the cluster has no CPU.
    """
    folder = connect(compute.num_cpus or available_cpus(), dashboard)
    if folder is not None:
        warm_up()
    # It takes half a second to import, in which Ray starts its processes.
    from ray.data import DataContext

    # It would print the traceback of an error that it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with_data_options(DataContext.get_current())
    try:
        await_nodes({"CPU": 1}, 1, compute)
        if cluster_cpus() < 1:
            raise UserError(
                "the cluster has no CPU to work on: add a worker node, or, where it grows by "
                "itself, say how many minutes it may take, as compute.node_timeout_minutes=15"
            )
    except UserError:
        ray.shutdown()
        raise
    return folder


def with_data_options(context: DataContext) -> DataContext:
    """Sets in place how raysound's pipelines run, and returns the same context."""
    context.enable_progress_bars = False
    # Wrapped in another, an error loses its type on its way to the driver.
    context.raise_original_map_exception = True
    # Results and training batches in the order of the shards, whoever finishes first.
    context.execution_options.preserve_order = True
    return context


def warm_up() -> None:
    """Has every CPU's worker import torch, while the driver still imports and lists."""
    task = ray.remote(num_cpus=1, max_retries=0)(import_torch)
    for _ in range(int(cluster_cpus())):
        task.remote()


def import_torch() -> None:
    """Runs in a Ray task: imports what most tasks need, which takes two seconds."""
    with uncollected():
        import raysound.distributed.extraction.pipeline
        import raysound.features.extraction  # noqa: F401


@contextmanager
def uncollected() -> Iterator[None]:
    """In this block Python looks for no garbage, and later not in what the block has left.

    Imports leave a quarter of a million objects, which it would go through again and again: a fifth
    of the time of importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_remote(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process of the cluster, and raises here what it raises there."""
    return run_remote_all(function, [arguments])[0]


def run_remote_all(
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], num_gpus: float = 0
) -> list[Result]:
    """Calls a function several times in processes of the cluster, a CPU a call.

    For some hundred calls with small results; more are a Ray Data pipeline. A call whose process or
    node dies is made again, RETRIES times.

    Args:
        function: of a module, so that it is imported where it runs.
        calls: the arguments of each call. One may be a reference to what `ray.put` took.
        num_gpus: of each call.

    Returns:
        The results, in the order of the calls.

    Raises:
        UserError: one that a call raised, or a process that died each time.
    """
    task = ray.remote(max_retries=RETRIES, num_gpus=num_gpus)(function)
    waiting = [task.remote(*arguments) for arguments in calls]
    with reported(f"the task {function.__name__}"):
        try:
            return list(ray.get(waiting))
        except BaseException:
            cancel_running(waiting)
            raise


def cancel_running(calls: list[ray.ObjectRef]) -> None:
    """Cancels those of some calls that have not ended.

    Ray 2.60 aborts this process where it cancels a call whose error has just arrived.
    """
    if calls:
        for call in ray.wait(calls, num_returns=len(calls), timeout=0)[1]:
            ray.cancel(call)


def log_here() -> None:
    """Lets a task's own lines go to the log of its process, which Ray's dashboard shows."""
    job = ray.get_runtime_context().get_job_id()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s job {job} %(message)s"
    )


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
