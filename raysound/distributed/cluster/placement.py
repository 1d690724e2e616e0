"""Resources of training workers, and checks that the cluster has them."""

from __future__ import annotations

import ray
import ray.train

from raysound.distributed.cluster.nodes import await_nodes, count_worker_slots
from raysound.distributed.cluster.session import cluster_cpus, cluster_gpus
from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.settings.schema import Config
from raysound.wording import counted


def data_cpus(is_streamed: bool) -> float:
    """CPUs reserved for Ray Data if it streams to the workers: one, or half of a single one."""
    return min(1.0, cluster_cpus() / 2) if is_streamed else 0.0


def cpus_of_worker(compute: ComputeSettings, cpus: float) -> float:
    """CPUs of each training worker, out of `cpus`."""
    return compute.cpus_per_worker or min(1.0, cpus / compute.workers_range[0])


def reading_tasks(compute: ComputeSettings) -> int:
    """Concurrent tasks that read a stream: one for each CPU that the training workers leave free.

    Ray keeps at most as many idle processes as free CPUs. Each further task would start a new
    process in every epoch, which takes longer than the reading.
    """
    cpus = cluster_cpus()
    taken = compute.workers_range[1] * cpus_of_worker(compute, cpus - data_cpus(True))
    return max(1, int(cpus - taken))


def plan_workers(
    config: Config, concurrent: int = 1, is_streamed: bool = False
) -> tuple[ray.train.ScalingConfig, int]:
    """Ray's ScalingConfig of a training, and the number of torch threads of each worker.

    On an autoscaling cluster this waits for the workers' nodes.

    Args:
        config: the experiment.
        concurrent: how many trainings share the cluster's CPUs.
        is_streamed: whether Ray Data reads the features while the workers train.

    Raises:
        UserError: the cluster lacks the resources. Ray would wait forever.
    """
    compute = config.compute
    min_workers, max_workers = compute.workers_range
    bundle = {
        "CPU": compute.cpus_per_worker or 1,
        **({"GPU": 1} if compute.use_gpu is True else {}),
    }
    await_nodes(bundle, min_workers, compute, compute.labels)
    cpus, gpus = cluster_cpus(), cluster_gpus()
    use_gpu = gpus >= min_workers if compute.use_gpu == "auto" else compute.use_gpu
    if use_gpu and gpus < min_workers:
        raise UserError(f"compute.workers {min_workers} need a GPU each; the cluster has {gpus:g}")
    reserved = data_cpus(is_streamed)
    per_worker = cpus_of_worker(compute, cpus - reserved)
    if min_workers * per_worker > cpus - reserved and not compute.node_timeout_minutes:
        less = f" less {reserved:g} that reads the features" if reserved else ""
        raise UserError(
            f"compute.workers {min_workers} × compute.cpus_per_worker {per_worker:g} are more than "
            f"the {counted(cpus, 'CPU')} of the cluster{less}: lower one of them"
        )
    if compute.sync_batch_norm is True and not use_gpu:
        raise UserError("compute.sync_batch_norm: true needs GPUs: torch supports it only there")
    check_labels(compute.labels)
    needs = {"CPU": per_worker, **({"GPU": 1} if use_gpu else {})}
    check_fits(needs, compute)
    scaling = ray.train.ScalingConfig(
        num_workers=min_workers if min_workers == max_workers else (min_workers, max_workers),
        use_gpu=use_gpu,
        resources_per_worker=needs,
        placement_strategy=compute.placement,
        label_selector=compute.labels or None,
    )
    return scaling, max(1, int(per_worker), int(cpus // (max_workers * concurrent)))


def check_fits(needs: dict[str, float], compute: ComputeSettings) -> None:
    """Raises UserError if the workers would not fit on idle nodes.

    Args:
        needs: resources of each worker, amounts by Ray's name.
        compute: holds the number of workers, the labels and the placement strategy.
    """
    min_workers = compute.workers_range[0]
    slots = count_worker_slots(compute.labels, needs, compute.placement)
    if slots < min_workers:
        wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())
        where = f" with the labels {compute.labels}" if compute.labels else ""
        raise UserError(
            f"compute.workers {min_workers}, each with {wanted}, do not fit: with "
            f"compute.placement {compute.placement} the nodes{where} hold {slots}; lower "
            "compute.workers or the resources of each"
        )


def check_labels(labels: dict[str, str]) -> None:
    """Raises UserError if no node has these labels."""
    nodes = [node.get("Labels") or {} for node in ray.nodes() if node["Alive"]]
    if labels and not any(labels.items() <= node.items() for node in nodes):
        known = sorted({f"{key}: {value}" for node in nodes for key, value in node.items()})
        wanted = ", ".join(f"{key}: {value}" for key, value in labels.items())
        raise UserError(
            f"no node has the labels of compute.labels, {wanted}; nodes have {', '.join(known)}"
        )


def max_concurrent_trainings(config: Config, is_streamed: bool) -> int:
    """How many classifiers the cluster can train at a time, at least one."""
    scaling, _ = plan_workers(config, is_streamed=is_streamed)
    each = scaling.resources_per_worker or {}
    max_workers = config.compute.workers_range[1]
    free = {"CPU": cluster_cpus() - data_cpus(is_streamed), "GPU": cluster_gpus()}
    return max(1, min(int(free[kind] // (max_workers * each[kind])) for kind in each))
