"""A Ray cluster on this machine: a head and nodes as processes of their own, which tests kill and start again."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import urllib.request
from contextlib import suppress
from pathlib import Path
from typing import Any

from tests.jobs import wait_for
from tests.ports import free_port

RAY = (sys.executable, "-m", "ray.scripts.scripts")
# What it starts must not outlive killed tests; asked in order, it takes its own processes with it.
DIES = ("setpriv", "--pdeathsig", "TERM") if shutil.which("setpriv") else ()
STORE_BYTES = 100_000_000  # of each node's object store
SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_raylet_start_wait_time_s": "180",  # a machine with other tests on it is slow
}


class Node:
    """One `ray start --block`; what it starts is in its session, and dies with `kill`."""

    def __init__(self, cluster: Cluster, name: str, words: list[str]) -> None:
        self._cluster, self.name, self._words = cluster, name, words
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it may not be up yet."""
        with (self._cluster.folder / f"{self.name}.txt").open("ab") as log:
            self._process = subprocess.Popen(
                [*DIES, *RAY, "start", *self._words, *own_ports(), "--block"],
                env=self._cluster.environment,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )

    def start_again(self) -> None:
        """Start it if it came to an end by itself."""
        if self._process is not None and self._process.poll() is not None:
            self.kill()
            self.start()

    def kill(self) -> None:
        """SIGKILL for all of it at once, as when a machine loses its power."""
        if self._process is None:
            return
        for pid in (self._process.pid, *descendants(self._process.pid)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(30)
        self._process = None


class Cluster:
    """A head that runs nothing, on ports of its own, and nodes with one device each."""

    def __init__(self, environment: dict[str, str], nodes: int = 2, cpus: int = 2) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="rm-", dir="/tmp"))  # short: sockets in it have 107 characters
        token = {"RAY_AUTH_TOKEN": secrets.token_hex(16)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"  # where the head finds raymsa
        self.environment = {**environment, **SETTINGS, **token, "RAY_TMPDIR": str(self.folder), "PATH": path}
        self.port, self.dashboard = free_port(), free_port()
        self.address, self.url = f"127.0.0.1:{self.port}", f"http://127.0.0.1:{self.dashboard}"
        self._cpus = cpus
        common = ["--node-ip-address", "127.0.0.1", "--object-store-memory", str(STORE_BYTES), "--num-gpus", "0"]
        ports = ["--port", str(self.port), "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.dashboard)]
        ports += ["--ray-client-server-port", str(free_port())]
        self.head = Node(
            self,
            "head",
            ["--head", *ports, *common, "--num-cpus", "0", "--temp-dir", str(self.folder), "--include-dashboard=true"],
        )
        self._common = common
        self.nodes = [self.node(f"node{number}") for number in range(nodes)]

    def node(self, name: str) -> Node:
        """One more node, not started."""
        about = ["--num-cpus", str(self._cpus), "--resources", '{"device": 1}']
        return Node(self, name, ["--address", self.address, *self._common, *about])

    def start(self) -> None:
        """Start the head and all nodes, and wait until they are one cluster."""
        self.start_head()
        for number, node in enumerate(self.nodes):
            node.start()  # one after the other: two that start at once on one machine take the same socket's name
            wait_for(lambda joined=number + 2: self._joined(joined), 400)

    def start_head(self) -> None:
        """Start the head, again on the same ports."""
        self.head.start()
        wait_for(self._headed, 300)  # a node that comes too early ends

    def whole(self) -> bool:
        """All nodes have joined."""
        return self._joined(len(self.nodes) + 1)

    def _joined(self, count: int) -> bool:
        """So many nodes are there. One that gave up, because it waits for half a minute only, is started again."""
        for node in self.nodes:
            node.start_again()
        return self.alive() == count

    def _headed(self) -> bool:
        self.head.start_again()
        return self.alive() > 0

    def alive(self) -> int:
        """Nodes that the head takes for alive, itself among them; 0 while it does not answer."""
        with suppress(OSError, ValueError, KeyError):
            found = self.ask("/nodes?view=summary")["data"]["summary"]
            return len([node for node in found if node["raylet"]["state"] == "ALIVE"])
        return 0

    def placement_groups(self) -> list[str]:
        """States of all placement groups but those that were removed; UNKNOWN when nobody answers."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            found = self.ask("/api/v0/placement_groups?limit=1000&detail=false")["data"]["result"]["result"]
            return [group["state"] for group in found if group["state"] != "REMOVED"]
        return ["UNKNOWN"]

    def ask(self, path: str) -> Any:
        """What the dashboard answers."""
        token = {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}
        with urllib.request.urlopen(urllib.request.Request(self.url + path, headers=token), timeout=30) as answer:
            return json.load(answer)

    def __enter__(self) -> Cluster:
        try:
            self.start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for node in (*self.nodes, self.head):
            node.kill()
        shutil.rmtree(self.folder, ignore_errors=True)


def own_ports() -> list[str]:
    """Ports that Ray would give to the first node of a machine only; or would wait for, a quarter of a minute at most,
    until its helpers have chosen them."""
    names = ("dashboard-agent-listen", "dashboard-agent-grpc", "runtime-env-agent", "metrics-export")
    return ["--min-worker-port=0", "--max-worker-port=0", *(f"--{name}-port={free_port()}" for name in names)]


def descendants(pid: int) -> list[int]:
    """Every process below one, whatever sessions they made."""
    parents: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            parents.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found, left = [], [pid]
    while left:
        below = parents.get(left.pop(), [])
        found += below
        left += below
    return found
