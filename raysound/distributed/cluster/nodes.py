"""The nodes of the cluster: what they hold, and how more of them are asked for."""

from __future__ import annotations

import time

import ray
from ray.autoscaler.sdk import request_resources

from raysound.errors import UserError
from raysound.settings.compute import ComputeSettings
from raysound.wording import counted

# Seconds between two looks at the nodes that have come.
POLL = 1.0


def await_nodes(
    needs: dict[str, float],
    count: int,
    compute: ComputeSettings,
    labels: dict[str, str] | None = None,
) -> None:
    """Asks the autoscaler for room, and waits until it is there, as long as it may take.

    Args:
        needs: of each worker, amounts by Ray's name of the resource.
        count: of the workers.
        compute: says how long, and how close together.
        labels: of the nodes.

    Raises:
        UserError: it has not come.
    """
    if not compute.node_timeout_minutes or workers_held(labels, needs, compute.placement) >= count:
        return
    end = time.monotonic() + 60 * compute.node_timeout_minutes
    try:
        while workers_held(labels, needs, compute.placement) < count:
            if time.monotonic() > end:
                wanted = " and ".join(f"{amount:g} {kind}" for kind, amount in needs.items())
                raise UserError(
                    f"the cluster has not grown to {count} × {wanted} within "
                    "compute.node_timeout_minutes, "
                    f"{counted(compute.node_timeout_minutes, 'minute')}: "
                    "`ray status` shows what it tried"
                )
            # Each time: a request replaces those of all other jobs.
            request_resources(
                bundles=[needs] * count, bundle_label_selectors=[labels or {}] * count
            )
            time.sleep(POLL)
    finally:
        request_resources(bundles=[])


def workers_held(labels: dict[str, str] | None, needs: dict[str, float], placement: str) -> int:
    """How many workers the living nodes with some labels hold when they are free."""
    nodes = [
        node["Resources"]
        for node in ray.nodes()
        if node["Alive"] and (labels or {}).items() <= (node.get("Labels") or {}).items()
    ]
    return workers_held_by(nodes, needs, placement)


def workers_held_by(nodes: list[dict[str, float]], needs: dict[str, float], placement: str) -> int:
    """How many workers some nodes hold when they are free.

    Args:
        nodes: resources of each.
        needs: of a worker.
        placement: Ray's name of the strategy.
    """
    held = [
        # A hair more, for thirds that are written as floats.
        min(int(node.get(kind, 0) / amount + 1e-6) for kind, amount in needs.items())
        for node in nodes
    ]
    if placement == "STRICT_PACK":
        return max(held, default=0)
    if placement == "STRICT_SPREAD":
        return sum(count > 0 for count in held)
    return sum(held)
