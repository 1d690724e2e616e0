"""The nodes of the cluster: their capacity, and requests to the autoscaler."""

from __future__ import annotations

import time

import ray
from ray.autoscaler.sdk import request_resources

from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.wording import counted

POLL_SECONDS = 1.0


def await_nodes(
    needs: dict[str, float],
    count: int,
    compute: ComputeSettings,
    labels: dict[str, str] | None = None,
) -> None:
    """Requests nodes from the autoscaler, and waits for them up to `node_timeout_minutes`.

    Args:
        needs: resources of each worker, amounts by Ray's name.
        count: number of workers.
        compute: holds the timeout and the placement strategy.
        labels: required of the nodes.

    Raises:
        UserError: the nodes did not come in time.
    """
    if (
        not compute.node_timeout_minutes
        or count_worker_slots(labels, needs, compute.placement) >= count
    ):
        return
    end = time.monotonic() + 60 * compute.node_timeout_minutes
    try:
        while count_worker_slots(labels, needs, compute.placement) < count:
            if time.monotonic() > end:
                wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())
                raise UserError(
                    f"the cluster has not grown to {count} × {wanted} within "
                    "compute.node_timeout_minutes, "
                    f"{counted(compute.node_timeout_minutes, 'minute')}: "
                    "`ray status` shows what it tried"
                )
            # Repeated, because a request of another job replaces it.
            request_resources(
                bundles=[needs] * count, bundle_label_selectors=[labels or {}] * count
            )
            time.sleep(POLL_SECONDS)
    finally:
        request_resources(bundles=[])


def count_worker_slots(
    labels: dict[str, str] | None, needs: dict[str, float], placement: str
) -> int:
    """How many workers fit on the idle nodes that are alive and have some labels."""
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (labels or {}).items() <= (node.get("Labels") or {}).items()
    ]
    return count_slots(nodes, needs, placement)


def count_slots(nodes: list[dict[str, float]], needs: dict[str, float], placement: str) -> int:
    """How many workers fit on some idle nodes.

    Args:
        nodes: resources of each.
        needs: resources of a worker.
        placement: Ray's name of the placement strategy.
    """
    slots = [
        # The tolerance is for fractions such as 1/3.
        min(int(node.get(kind, 0) / amount + 1e-6) for kind, amount in needs.items())
        for node in nodes
    ]
    if placement == "STRICT_PACK":
        return max(slots, default=0)
    if placement == "STRICT_SPREAD":
        return sum(count > 0 for count in slots)
    return sum(slots)
