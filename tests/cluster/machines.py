"""A cluster as people start one: `ray start` on a head and on workers, a token, jobs submitted.

Each machine is a network namespace with an address of its own where this process may make some
(root on Linux); elsewhere all of them share this machine's loopback.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID
from ray.util import get_node_ip_address

from tests.processes import poll, processes_below

# In a range that nobody routes.
NETWORK = "10.77.0"
US = f"{NETWORK}.254"
BRIDGE, CABLE = "raysound0", "raysound-"
# What Ray takes into memory for objects on each machine.
STORE = 150 << 20


def may_make_namespaces() -> bool:
    """True where each machine can have a network of its own."""
    if not shutil.which("ip"):
        return False
    tried = subprocess.run(["ip", "netns", "add", "raysound-try"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", "raysound-try"], capture_output=True, check=False)
    return tried.returncode == 0


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def ip(*words: str) -> None:
    """Runs iproute2."""
    subprocess.run(["ip", *words], check=True, capture_output=True, timeout=30)


class Machine:
    """What `ray start` runs on one machine.

    Attributes:
        name: of the machine.
        address: its IP.
        process: `ray start --block`.
    """

    def __init__(
        self, cluster: "Machines", name: str, address: str, options: Sequence[str]
    ) -> None:
        self.cluster, self.name, self.address = cluster, name, address
        if cluster.apart:
            cluster.connect(name, address)
        else:
            # Each has the same by default.
            options = [*options, f"--dashboard-agent-listen-port={free_port()}"]
        self.log = cluster.folder / f"{name}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                self.inside(
                    *cluster.with_a_disk_of_its_own(),
                    "ray", "start", "--block", f"--node-ip-address={address}", *options,
                ),
                env=cluster.environment, stdout=log, stderr=subprocess.STDOUT, text=True,
            )  # fmt: skip

    def inside(self, *command: str) -> list[str]:
        """A command, to be run on this machine."""
        return ["ip", "netns", "exec", self.name, *command] if self.cluster.apart else [*command]

    def processes(self) -> dict[int, str]:
        """Process ids and titles of all that runs there, but for `ray start` itself."""
        return processes_below(self.process.pid)

    def die(self) -> None:
        """All at once, as when the plug is pulled."""
        for pid in [self.process.pid, *self.processes()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(10)


class Machines:
    """A head without work of its own, and workers with a CPU each.

    Attributes:
        apart: whether each machine has a network of its own.
        token: what opens the cluster.
        head: the machine that takes the jobs.
        workers: those alive, by name.
    """

    def __init__(
        self, root: Path, environment: Mapping[str, str], node_types: Mapping[str, object] = {}
    ) -> None:
        """Starts the head; with `node_types`, a cluster that grows by itself on this machine.

        Args:
            root: the folder that is submitted.
            environment: of all machines.
            node_types: as `available_node_types` of a cluster.yaml, without the head's.
        """
        self.root = root
        self.apart = not node_types and may_make_namespaces()
        # Short: the names of sockets below it have to fit into 107 bytes.
        self.folder = Path(tempfile.mkdtemp(prefix="rc", dir="/tmp"))
        self.token = self.folder / "token"
        self.token.touch(mode=0o600)
        self.token.write_text("0123456789abcdef" * 4)
        networks = {"GLOO_SOCKET_IFNAME": "eth0"} if self.apart else {}
        self.environment = {
            **os.environ,
            **environment,
            **networks,
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token),
            "RAY_USAGE_STATS_ENABLED": "0",
            # Dead machines are noticed after three seconds, not after fifteen.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_failure_threshold": "3",
        }
        # Ours come from the folder that is submitted, and Ray starts no cluster of its own.
        for name in ("PYTHONPATH", "RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"):
            self.environment.pop(name, None)
        self.workers: dict[str, Machine] = {}
        self.started = 0
        self.dashboard, self.metrics, port = free_port(), free_port(), free_port()
        if self.apart:
            self.take_down()
            ip("link", "add", BRIDGE, "type", "bridge")
            ip("address", "add", f"{US}/24", "dev", BRIDGE)
            ip("link", "set", BRIDGE, "up")
        # Ray takes no loopback for a node's address.
        address = f"{NETWORK}.1" if self.apart else get_node_ip_address()
        self.gcs = f"{address}:{port}"
        growing = []
        if node_types:
            growing = [f"--autoscaling-config={self.autoscaling(node_types)}"]
            # Ray's own pretence of a cloud, whose machines are processes on this one.
            self.environment |= {
                "PYTHONPATH": str(Path(__file__).parent / "cloud"),
                "RAY_FAKE_CLUSTER": "1",
                "RAY_enable_autoscaler_v2": "1",
                "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
                "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
                "AUTOSCALER_UPDATE_INTERVAL_S": "1",
            }
        self.head = Machine(
            self, "raysound-head", address,
            [
                "--head", f"--port={port}", "--num-cpus=0", f"--object-store-memory={STORE}",
                f"--dashboard-port={self.dashboard}", f"--metrics-export-port={self.metrics}",
                f"--temp-dir={self.folder}/h", *growing,
            ],
        )  # fmt: skip
        self.until("Ray runtime started", self.head)

    def with_a_disk_of_its_own(self) -> list[str]:
        """What a machine's command begins with: others don't see what it has in `apart/`."""
        folder = self.folder / "apart"
        folder.mkdir(exist_ok=True)
        mounted = f'mount -t tmpfs none {folder} && exec "$@"'
        return ["sh", "-c", mounted, "sh"] if self.apart else []

    def autoscaling(self, node_types: Mapping[str, object]) -> Path:
        """The autoscaler's config, as a file."""
        head = {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0}
        tree = {
            "cluster_name": "raysound-test",
            "provider": {
                "type": "external",
                "module": "apart.MachinesApart",
                "folder": str(self.folder),
                "disable_node_updaters": True,
                "gcs_address": self.gcs,
                "head_node_id": FAKE_HEAD_NODE_ID,
                "launch_multiple": True,
            },
            "max_workers": 8,
            "head_node_type": "ray.head.default",
            "available_node_types": {"ray.head.default": head, **node_types},
            "idle_timeout_minutes": 5,
            "upscaling_speed": 1.0,
            **{f"{who}setup_commands": [] for who in ("", "head_", "worker_")},
            "cluster_synced_files": [],
            "file_mounts_sync_continuously": False,
        }
        path = self.folder / "autoscaling.yaml"
        path.write_text(yaml.safe_dump(tree))
        return path

    def until(self, words: str, machine: Machine) -> None:
        """Waits for a word of `ray start`."""

        def is_there() -> bool:
            console = machine.log.read_text()
            assert machine.process.poll() is None, console
            return words in console

        poll(is_there, 90, f"{machine.name}: {words}")

    def connect(self, name: str, address: str) -> None:
        """A namespace with a cable to the bridge."""
        cable = f"{CABLE}{address.rpartition('.')[2]}"
        ip("netns", "add", name)
        ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
        ip("link", "set", cable, "master", BRIDGE, "up")
        ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("eth0", "lo"):
            ip("-n", name, "link", "set", device, "up")

    def add_worker(self, **labels: str) -> Machine:
        """Another worker; it joins when it is ready."""
        self.started += 1
        name = f"raysound-worker{self.started}"
        address = f"{NETWORK}.{1 + self.started}" if self.apart else self.head.address
        options = [
            f"--address={self.gcs}", "--num-cpus=1", f"--object-store-memory={STORE}",
            f"--temp-dir={self.folder}/{self.started}",
        ]  # fmt: skip
        if labels:
            options.append("--labels=" + ",".join(f"{key}={labels[key]}" for key in labels))
        worker = self.workers[name] = Machine(self, name, address, options)
        self.until("Ray runtime started", worker)
        return worker

    def kill(self, worker: Machine) -> None:
        """Pulls a worker's plug."""
        worker.die()
        del self.workers[worker.name]

    def ray(self, *words: str, **environment: str) -> subprocess.Popen[str]:
        """The command `ray …` as typed on the head, or through a tunnel to it."""
        return subprocess.Popen(
            self.head.inside("ray", *words),
            cwd=self.root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            env={
                **self.environment,
                "RAY_ADDRESS": self.gcs,
                "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{self.dashboard}",
                **environment,
            },
        )  # fmt: skip

    def submit(self, name: str, *command: str) -> subprocess.Popen[str]:
        """Submits the project's folder and a command, and follows it."""
        return self.ray(
            "job", "submit", f"--submission-id={name}", "--working-dir", ".", "--", *command
        )

    def take_down(self) -> None:
        """Removes namespaces and bridge, whoever left them."""
        listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
        for name in re.findall(r"^raysound-\w+", listed, re.MULTILINE):
            ip("netns", "delete", name)
        # With a namespace goes its cable, but later.
        for cable in Path("/sys/class/net").glob(f"{CABLE}*"):
            with suppress(subprocess.CalledProcessError):
                ip("link", "delete", cable.name)
        if Path(f"/sys/class/net/{BRIDGE}").exists():
            ip("link", "delete", BRIDGE)

    def end(self) -> None:
        """Ends all of it."""
        for machine in [*self.workers.values(), self.head]:
            machine.die()
        if self.apart:
            self.take_down()
        shutil.rmtree(self.folder, ignore_errors=True)
