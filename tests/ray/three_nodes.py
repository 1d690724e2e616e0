"""A cluster of three nodes with a CPU each, on one machine, for whoever wants to kill some of it.

Prints its address and the process ids of its raylets, that of the drivers' node first. Takes one
of them a line on its standard input: kills that node, adds another, and prints all anew.
"""

import json
import sys

from ray._private.node import Node
from ray.cluster_utils import Cluster

NODE = {"num_cpus": 1, "object_store_memory": 100 << 20}


def main() -> None:
    """Lives until its standard input ends."""
    cluster = Cluster(initialize_head=True, head_node_args={**NODE, "include_dashboard": False})
    for _ in range(2):
        cluster.add_node(**NODE)
    print_nodes(cluster)
    for line in sys.stdin:
        (node,) = (node for node in cluster.list_all_nodes() if raylet(node) == int(line))
        # Its raylet gets SIGKILL; its workers end when they notice.
        cluster.remove_node(node, allow_graceful=False)
        cluster.add_node(**NODE)
        print_nodes(cluster)
    cluster.shutdown()


def raylet(node: Node) -> int:
    """The process that makes a node of a machine."""
    return int(node.all_processes["raylet"][0].process.pid)


def print_nodes(cluster: Cluster) -> None:
    """One line of JSON."""
    raylets = [raylet(node) for node in cluster.list_all_nodes()]
    print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)


if __name__ == "__main__":
    main()
