"""What a training's workers get of the cluster, and whether it can give it."""

from __future__ import annotations

import ray
import ray.train

from raysound.distributed.cluster.nodes import await_nodes, workers_held
from raysound.distributed.cluster.session import cluster_cpus, cluster_gpus
from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.settings.schema import Config
from raysound.wording import counted


def spare_cpus(is_streamed: bool) -> float:
    """One CPU, or half of a single one, is left to Ray Data where it feeds the workers."""
    return min(1.0, cluster_cpus() / 2) if is_streamed else 0.0


def cpus_of_worker(compute: ComputeSettings, cpus: float) -> float:
    """What each training worker takes of so many CPUs."""
    return compute.cpus_per_worker or min(1.0, cpus / compute.workers_range[0])


def reading_tasks(compute: ComputeSettings) -> int:
    """Tasks that read a stream at a time: one for each CPU that the training workers leave free.

    Ray keeps no more idle processes than CPUs that are free: a further task would start a process
    anew in every epoch, which takes longer than it reads.
    """
    cpus = cluster_cpus()
    taken = compute.workers_range[1] * cpus_of_worker(compute, cpus - spare_cpus(True))
    return max(1, int(cpus - taken))


def placement(
    config: Config, together: int = 1, is_streamed: bool = False
) -> tuple[ray.train.ScalingConfig, int]:
    """What each worker gets: its resources for Ray, and its number of torch threads.

    Where the cluster may grow, this waits until the workers' nodes have come.

    Args:
        config: of the training.
        together: how many trainings share the cluster's CPUs.
        is_streamed: whether Ray Data reads the features while the workers train.

    Raises:
        UserError: the cluster can't give it. Ray would wait for ever.
    """
    compute = config.compute
    least, most = compute.workers_range
    bundle = {
        "CPU": compute.cpus_per_worker or 1,
        **({"GPU": 1} if compute.use_gpu is True else {}),
    }
    await_nodes(bundle, least, compute, compute.labels)
    cpus, gpus = cluster_cpus(), cluster_gpus()
    use_gpu = gpus >= least if compute.use_gpu == "auto" else compute.use_gpu
    if use_gpu and gpus < least:
        raise UserError(f"compute.workers {least} want a GPU each; the cluster has {gpus:g}")
    spare = spare_cpus(is_streamed)
    per_worker = cpus_of_worker(compute, cpus - spare)
    if least * per_worker > cpus - spare and not compute.node_timeout_minutes:
        kept = f" less {spare:g} that reads the features" if spare else ""
        raise UserError(
            f"compute.workers {least} × compute.cpus_per_worker {per_worker:g} are more than the "
            f"{counted(cpus, 'CPU')} of the cluster{kept}: ask for fewer"
        )
    if compute.sync_batch_norm is True and not use_gpu:
        raise UserError("compute.sync_batch_norm: true wants GPUs: torch has it for nothing else")
    check_labels(compute.labels)
    needs = {"CPU": per_worker, **({"GPU": 1} if use_gpu else {})}
    check_room(needs, compute)
    scaling = ray.train.ScalingConfig(
        num_workers=least if least == most else (least, most),
        use_gpu=use_gpu,
        resources_per_worker=needs,
        placement_strategy=compute.placement,
        label_selector=compute.labels or None,
    )
    return scaling, max(1, int(per_worker), int(cpus // (most * together)))


def check_room(needs: dict[str, float], compute: ComputeSettings) -> None:
    """Raises UserError for workers that the nodes could not hold if they had nothing else to do.

    Args:
        needs: of each worker, amounts by Ray's name of the resource.
        compute: how many there are at least, on which nodes, and how close together.
    """
    least = compute.workers_range[0]
    most = workers_held(compute.labels, needs, compute.placement)
    if most < least:
        wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())
        where = f" with the labels {compute.labels}" if compute.labels else ""
        raise UserError(
            f"compute.workers {least}, each with {wanted}, have no room: the nodes{where} hold "
            f"{most} by compute.placement {compute.placement}; ask for fewer, or for less"
        )


def check_labels(labels: dict[str, str]) -> None:
    """Raises UserError where no node has these labels."""
    nodes = [node.get("Labels") or {} for node in ray.nodes() if node["Alive"]]
    if labels and not any(labels.items() <= node.items() for node in nodes):
        known = sorted({f"{key}: {value}" for node in nodes for key, value in node.items()})
        wanted = ", ".join(f"{key}: {value}" for key, value in labels.items())
        raise UserError(
            f"no node has the labels of compute.labels, {wanted}; there are {', '.join(known)}"
        )


def capacity(config: Config, is_streamed: bool) -> int:
    """How many classifiers the cluster can train at a time, at least one."""
    scaling, _ = placement(config, is_streamed=is_streamed)
    each = scaling.resources_per_worker or {}
    most = config.compute.workers_range[1]
    free = {"CPU": cluster_cpus() - spare_cpus(is_streamed), "GPU": cluster_gpus()}
    return max(1, min(int(free[kind] // (most * each[kind])) for kind in each))
