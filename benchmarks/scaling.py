"""What Ray Data itself costs a shard as nodes are added, apart from the shard's own work.

python benchmarks/scaling.py [--nodes 1 2 4 8] [--shards 4000]

Simulated nodes (a raylet each, with a CPU each, all on this machine) and a head without a CPU run a
pipeline of as many tasks as extraction has for the shards, whose steps do nothing. Prints a
markdown table, what a line through it says of 100 nodes, and draws docs/scale.svg.
"""

import argparse
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
import ray
import ray.data
from ray.cluster_utils import Cluster

from raysound.distributed.extraction.pipeline import SHARDS_PER_TASK

ROOT = Path(__file__).resolve().parents[1]
TICKS = os.sysconf("SC_CLK_TCK")
PREDICTED = 100
STORE = 100 << 20


class Row(NamedTuple):
    """What was measured with so many nodes: ms of a shard, MB."""

    nodes: int
    wall: float
    driver: float
    gcs: float
    driver_memory: float
    gcs_memory: float
    store: float


def run_tasks(count: int) -> Iterator[None]:
    """Runs a pipeline of tasks that do nothing; yields after each."""
    tasks = ray.data.range(count, override_num_blocks=count)
    for _ in tasks.map_batches(lambda rows: rows, batch_size=None).iter_batches(batch_size=None):
        yield


def used(pid: int) -> tuple[float, float]:
    """Seconds of a processor that a process took, and MB that are its own."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    status = Path(f"/proc/{pid}/status").read_text()
    memory = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return (int(fields[11]) + int(fields[12])) / TICKS, int(memory.split()[1]) / 1e3


def stored() -> float:
    """MB of the cluster's object store that are taken."""
    total, free = ray.cluster_resources(), ray.available_resources()
    name = "object_store_memory"
    return (total[name] - free.get(name, 0)) / 1e6


def measured(nodes: int, shards: int) -> Row:
    """One cluster, started and ended here."""
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "include_dashboard": False, "object_store_memory": STORE},
    )
    try:
        for _ in range(nodes):
            cluster.add_node(num_cpus=1, object_store_memory=STORE)
        ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
        ray.data.DataContext.get_current().enable_progress_bars = False
        gcs = cluster.head_node.all_processes["gcs_server"][0].process.pid
        # Every node has its process by then.
        for _ in run_tasks(100 * nodes):
            pass
        (driver, _), (service, _) = used(os.getpid()), used(gcs)
        began, most = time.monotonic(), 0.0
        for index, _ in enumerate(run_tasks(shards // SHARDS_PER_TASK)):
            if index % 100 == 0:
                most = max(most, stored())
        wall = time.monotonic() - began
        (driver_end, driver_memory), (service_end, gcs_memory) = used(os.getpid()), used(gcs)
        per_shard = 1e3 / shards
        return Row(
            nodes, wall * per_shard, (driver_end - driver) * per_shard,
            (service_end - service) * per_shard, driver_memory, gcs_memory, most,
        )  # fmt: skip
    finally:
        ray.shutdown()
        cluster.shutdown()


def predicted(rows: list[Row], column: str) -> float:
    """A straight line through the column, at 100 nodes."""
    slope, start = np.polyfit(
        [row.nodes for row in rows], [getattr(row, column) for row in rows], 1
    )
    return float(start + PREDICTED * slope)


def draw(rows: list[Row], path: Path) -> None:
    """Times of a shard, and memory, over the number of nodes."""
    figure, (times, memory) = plt.subplots(1, 2, figsize=(9, 3.4), constrained_layout=True)
    nodes = [row.nodes for row in rows]
    for column, label in (("wall", "wall clock"), ("driver", "driver"), ("gcs", "GCS")):
        times.plot(nodes, [getattr(row, column) for row in rows], "o-", label=label)
    for column, label in (("driver_memory", "driver"), ("gcs_memory", "GCS")):
        memory.plot(nodes, [getattr(row, column) for row in rows], "o-", label=label)
    times.set_ylabel("ms a shard, without its work")
    memory.set_ylabel("MB")
    for axes in (times, memory):
        axes.set_xlabel("nodes, all on one machine")
        axes.set_xticks(nodes)
        axes.set_ylim(bottom=0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--nodes", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--shards", type=int, default=4000)
    arguments = parser.parse_args()
    print("| nodes | ms a shard | of the driver | of the GCS | driver, MB | GCS, MB | store, MB |")
    print("|---|---|---|---|---|---|---|")
    rows = []
    for nodes in arguments.nodes:
        rows.append(measured(nodes, arguments.shards))
        cells = " | ".join(f"{value:.2f}" for value in rows[-1][1:4])
        memory = " | ".join(f"{value:.0f}" for value in rows[-1][4:])
        print(f"| {nodes} | {cells} | {memory} |", flush=True)
    if len(rows) > 1:
        for column in ("driver", "gcs", "driver_memory", "gcs_memory"):
            print(f"{PREDICTED} nodes, {column}: {predicted(rows, column):.2f}")
        draw(rows, ROOT / "docs" / "scale.svg")


if __name__ == "__main__":
    main()
