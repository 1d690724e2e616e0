"""The Ray session of a job, and its remote tasks."""

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
from raysound.distributed.cluster.failures import RETRIES, translate_ray_errors
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

# Ray's folder for files uploaded with a job; Ray deletes it when the job ends.
UPLOADED = "/working_dir_files/"
# Settings that name the folders of synthesised corpora.
SYNTHESIS_OUTPUTS = {f"synthesis.{kind}.output" for kind in SynthesisSettings.model_fields}
# A node that does not answer within this time is skipped by `check_shared`.
NODE_TIMEOUT_SECONDS = 60.0


def run_on_ray(load: Callable[[], Callable[[Config], str]], config: Config) -> str:
    """Starts or joins Ray, runs a job, and returns the job's last line.

    Args:
        load: imports the job and returns it; it runs while Ray starts.
        config: of the job.

    Raises:
        UserError: the config names a path that this cluster can't use.
    """
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    check_durable(session_paths(config))
    with ThreadPoolExecutor(1) as pool:
        with without_gc():
            job = pool.submit(load)
            folder = open_session(config.compute, needs_dashboard(config))
            wait([job])
        try:
            check_shared(config.output)
            # Imported here because listing imports this module.
            from raysound.distributed.extraction.listing import cached_listings

            with cached_listings():
                return job.result()(config)
        finally:
            # A local cluster ends faster with this process, but then leaves its spilled files.
            if folder is None or glob(f"{folder}/ray_spilled_objects*"):
                ray.shutdown()


def check_durable(named: dict[str, str]) -> None:
    """Raises UserError for paths, by their keys, that Ray deletes when a submitted job ends."""
    for key, path in named.items():
        if UPLOADED in path:
            raise UserError(
                f"{key} is in the folder that was uploaded with this job, which Ray deletes when "
                "the job ends: set a path that all nodes share, or a URI such as "
                f"{key}=s3://bucket/{os.path.basename(path)}"
            )


def check_shared(output: str) -> None:
    """Raises UserError if a node of the cluster doesn't see what this process writes."""
    nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 or "://" in output:
        return
    marker = storage.join(output, f"shared-{uuid4().hex}.tmp")
    storage.write_bytes(marker, b"")
    exists = ray.remote(num_cpus=0, max_retries=0)(storage.exists)
    try:
        calls = {
            exists.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False)
            ).remote(marker): node
            for node in nodes
        }
        # A node that dies during the check is ignored.
        answered, _ = ray.wait([*calls], num_returns=len(calls), timeout=NODE_TIMEOUT_SECONDS)
        failed = [calls[call] for call in answered if result_or_none(call) is False]
    finally:
        storage.delete(marker)
    if failed:
        addresses = [node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] in failed]
        raise UserError(
            f"{output} is not the same folder on every node of the cluster ({addresses[0]} doesn't "
            "see it): set output to a path that all nodes share, or a URI such as s3://bucket/run"
        )


def result_or_none(call: ray.ObjectRef) -> Any:
    """The result of a call; None if its node died."""
    try:
        return ray.get(call)
    except ray.exceptions.RayError:
        return None


@contextmanager
def ray_session(compute: ComputeSettings, dashboard: bool = False) -> Iterator[None]:
    """Joins the cluster at RAY_ADDRESS, or starts a local one, for a block.

    If a session is open, it is used and stays open.

    Args:
        compute: the settings of a local cluster.
        dashboard: whether a local cluster has a dashboard.

    Raises:
        UserError: see `open_session`.
    """
    if ray.is_initialized():
        from ray.data import DataContext

        # A copy, so that the user's other datasets keep their options.
        with DataContext.current(with_data_options(DataContext.get_current().copy())):
            yield
        return
    open_session(compute, dashboard)
    try:
        yield
    finally:
        ray.shutdown()


def on_ray(step: Step) -> Step:
    """Decorates a step so that it opens a Ray session if none is open, and closes it at its end.

    See `ray_session`. A command of the command line opens its session before.
    """

    @wraps(step)
    def run(config: Config, *arguments: Any, **options: Any) -> Any:
        is_open = ray.is_initialized()
        if not is_open:
            check_durable(session_paths(config))
        with ray_session(config.compute, dashboard=needs_dashboard(config)):
            if not is_open:
                check_shared(config.output)
            return step(config, *arguments, **options)

    return cast(Step, run)


def ensure_session() -> None:
    """Opens a session with the default settings if none is open, and leaves it open."""
    if not ray.is_initialized():
        open_session(ComputeSettings())


def session_paths(config: Config) -> dict[str, str]:
    """The paths of a config, without those of synthesised corpora, which `synthesize` checks."""
    return {key: at for key, at in configured_paths(config).items() if key not in SYNTHESIS_OUTPUTS}


def needs_dashboard(config: Config) -> bool:
    """True for a search whose trials have several workers.

    Ray needs the dashboard to free the resources of a stopped trial's workers.
    """
    return bool(config.search.space and config.compute.workers_range[1] > 1)


def open_session(compute: ComputeSettings, dashboard: bool = False) -> str | None:
    """Joins or starts a cluster, a local one with or without a dashboard; see `connect`.

    Raises:
        UserError: `connect` failed, or the cluster has no CPU.
    """
    folder = connect(compute.num_cpus or available_cpus(), dashboard)
    if folder is not None:
        warm_up()
    # This import takes half a second, in which Ray starts its processes.
    from ray.data import DataContext

    # Ray Data logs the traceback of each error that it also raises.
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    with_data_options(DataContext.get_current())
    try:
        await_nodes({"CPU": 1}, 1, compute)
        if cluster_cpus() < 1:
            raise UserError(
                "the cluster has no CPU: add a worker node, or, if it scales by itself, set how "
                "long to wait, as in compute.node_timeout_minutes=15"
            )
    except UserError:
        ray.shutdown()
        raise
    return folder


def with_data_options(context: DataContext) -> DataContext:
    """Sets the options of raysound's pipelines in place, and returns the same context."""
    context.enable_progress_bars = False
    # By default Ray Data wraps errors, so that the driver does not see their types.
    context.raise_original_map_exception = True
    # Results and training batches keep the order of the shards.
    context.execution_options.preserve_order = True
    return context


def warm_up() -> None:
    """Imports torch in the worker of every CPU, while the driver imports and lists."""
    task = ray.remote(num_cpus=1, max_retries=0)(import_torch)
    for _ in range(int(cluster_cpus())):
        task.remote()


def import_torch() -> None:
    """Runs in a Ray task: imports what most tasks need, which takes two seconds."""
    with without_gc():
        import raysound.distributed.extraction.pipeline
        import raysound.features.extraction  # noqa: F401


@contextmanager
def without_gc() -> Iterator[None]:
    """Disables garbage collection in a block, and excludes the block's objects from later ones.

    Imports leave 250,000 objects. Scanning them again and again takes a fifth of the time of
    importing torch.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


def run_remote(function: Callable[..., Result], *arguments: Any) -> Result:
    """Calls a function in a process of the cluster; see `run_remote_all`."""
    return run_remote_all(function, [arguments])[0]


def run_remote_all(
    function: Callable[..., Result], calls: Iterable[tuple[Any, ...]], num_gpus: float = 0
) -> list[Result]:
    """Calls a function several times in processes of the cluster, with one CPU per call.

    For up to some hundred calls with small results; use Ray Data for more. A call whose process or
    node dies is retried up to RETRIES times.

    Args:
        function: defined in a module, so that workers can import it.
        calls: the arguments of each call; they may be object references.
        num_gpus: GPUs of each call.

    Returns:
        The results, in the order of the calls.

    Raises:
        UserError: a call raised it, or its process died each time.
    """
    task = ray.remote(max_retries=RETRIES, num_gpus=num_gpus)(function)
    waiting = [task.remote(*arguments) for arguments in calls]
    with translate_ray_errors(f"the task {function.__name__}"):
        try:
            return list(ray.get(waiting))
        except BaseException:
            cancel_running(waiting)
            raise


def cancel_running(calls: list[ray.ObjectRef]) -> None:
    """Cancels the calls that have not ended.

    The others are skipped: Ray 2.60 aborts this process if it cancels a call that just failed.
    """
    if calls:
        for call in ray.wait(calls, num_returns=len(calls), timeout=0)[1]:
            ray.cancel(call)


def log_here() -> None:
    """Configures a task's logging to the log of its process, which Ray's dashboard shows."""
    job = ray.get_runtime_context().get_job_id()
    logging.basicConfig(
        level=logging.INFO, format=f"%(asctime)s %(levelname)s job {job} %(message)s"
    )


def available_cpus() -> int:
    """CPUs that this process may run on."""
    # macOS has no CPU affinity.
    allowed = getattr(os, "sched_getaffinity", None)
    return len(allowed(0)) if allowed else os.cpu_count() or 1


def cluster_cpus() -> float:
    """CPUs of the whole cluster."""
    return float(ray.cluster_resources().get("CPU", 0))


def cluster_gpus() -> float:
    """GPUs of the whole cluster."""
    return float(ray.cluster_resources().get("GPU", 0))
