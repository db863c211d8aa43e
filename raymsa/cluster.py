"""The Ray session: an embedded one on this machine, or a connection to a cluster."""

from __future__ import annotations

import logging
import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from raymsa.errors import DoesNotFit, RaymsaError

# Logical CPUs beside the real ones. A trial is a Tune actor, a Train worker and Data tasks at once; where Ray has only
# the two real cores of a small machine, they wait for each other for ever, silently.
SPARE_CPUS = 4
EMBEDDED = "raymsa_embedded"  # the resource by which a node with spare CPUs is known
# Of the memory that is free, and of /dev/shm, where the store lies. Half of it may be clips that all runs share (see
# `data.shards`); what is not filled costs nothing. A stream needs half a GiB of it.
OBJECT_STORE_SHARE = 0.3
OBJECT_STORE_LEAST, OBJECT_STORE_MOST = 256 * 2**20, 128 * 2**30  # bytes
SHM_SHARE = 0.9

ASK_S, SILENT_S = 5.0, 120.0  # a head is asked so often, and given up; Ray itself waits for a lost one for 60 s

SETTINGS = {
    # The raylet prints notes on stdout, where our data goes; what goes wrong reaches us as errors all the same.
    "RAY_DEDUP_LOGS_SKIP_REGEX": ".",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # the store is the record; Tune's CSV and JSON copies are not wanted
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is the driver's: it gives the task back
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    "TOKENIZERS_PARALLELISM": "false",
    "RAY_ENABLE_AUTO_CONNECT": "0",  # where a session has died, whoever still asks it something would start another
    # Ray frees what nobody holds any more once a second; a fast stream would fill a gigabyte in the meantime.
    "RAY_free_objects_period_milliseconds": "100",
    # Ray would run its workers at niceness 15, behind everything else on the machine, training included.
    "RAY_worker_niceness": "0",
    # Processes started in advance have no environment of ours, so nobody would ever use them.
    "RAY_prestart_worker_first_driver": "0",
}

# Of every process of the session. Tune and Train ask for these; where all processes have them, Ray gives an actor one
# that is idle, and else starts one more, twice: a first Python sets the environment for the second.
WORKER_ENVIRONMENT = {
    "PL_DISABLE_FORK": "1",
    "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0",
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "10000000",  # a device may be busy for days: runs wait
    # bitsandbytes hands two functions to torch.compile when it is imported; nothing of ours is compiled, and importing
    # the compiler is a third of what loading the tiny Thinker costs (2 s of 6 s of a core).
    "TORCHDYNAMO_DISABLE": "1",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",  # how long a report or an end may go unnoticed; Ray's own is 2 s
}


@contextmanager
def session(address: str | None) -> Iterator[None]:
    """A Ray session for the length of the block: embedded on 127.0.0.1, or the cluster at `address`.

    One that this process has already is used as it is. Raises RaymsaError when there is none to be had.
    """
    os.environ.update({name: os.environ.get(name, value) for name, value in SETTINGS.items()})
    if address is None:
        # Ray's own switch for machines without clusters: every port is bound to 127.0.0.1 instead of all addresses
        os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    import ray

    if ray.is_initialized():
        yield
        return
    on_sigterm = signal.getsignal(signal.SIGTERM)
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": True}
    given = {name: os.environ.get(name, value) for name, value in WORKER_ENVIRONMENT.items()}
    common["runtime_env"] = {"env_vars": given}
    try:
        if address is None:
            size = {"num_cpus": _cores() + SPARE_CPUS, "resources": {EMBEDDED: 1}, **_memory()}
            # one machine that is ours: nobody announces that it will be taken, and each run would have a watcher
            given["RAY_TRAIN_ENABLE_PREEMPTION_WATCHER"] = "0"
            ray.init(address="local", include_dashboard=False, **size, **common)
        else:
            ray.init(address=address, **common)
    except Exception as error:  # Ray raises no class of its own when one of its processes did not start
        reason = _refused(error) or " ".join(str(error).split())[:200]
        raise RaymsaError(f"no Ray session at {address or 'this machine'}: {reason}") from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # ray.init puts its own there, which leaves without a word
    try:
        yield
    finally:
        # A thread of Ray's that still waits for something would tell of its own end on a page.
        for name in ("ray", "ray.data"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        ray.shutdown()


def _refused(error: BaseException | None) -> str:
    """What to do about a cluster that asks for a token; empty when that is not the reason."""
    while error is not None and "AuthToken" not in str(error):
        error = error.__cause__ or error.__context__
    if error is None:
        return ""
    return "it asks for a token; set RAY_AUTH_MODE=token and give its own in RAY_AUTH_TOKEN or ~/.ray/auth_token"


class Pulse:
    """Asks a cluster again and again whether it is there: Ray's calls may wait for ever for a head that is gone."""

    def __init__(self) -> None:
        self._heard, self._out = time.monotonic(), False
        threading.Thread(target=self._ask, daemon=True, name="raymsa-pulse").start()

    def trouble(self) -> str:
        """Why nothing more will come of this session; empty when all is well."""
        if self._out:
            return "the cluster has given this node up"
        silent_s = time.monotonic() - self._heard
        return f"the cluster's head has not answered for {silent_s:.0f} s" if silent_s > SILENT_S else ""

    def _ask(self) -> None:
        import ray

        mine = ray.get_runtime_context().get_node_id()
        while ray.is_initialized():
            with suppress(Exception):  # it does not answer: that is what is measured
                alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
                self._heard, self._out = time.monotonic(), bool(alive) and mine not in alive
            time.sleep(ASK_S)


def ended_part() -> str:
    """What has ended of this process's session, without which there is none; empty when all is well."""
    import ray

    node = ray._private.worker._global_node
    if node is None:
        return "connection"
    dead = [kind for kind, _ in node.dead_processes()]
    return next((kind for kind in dead if kind in ("raylet", "gcs_server")), "")


def no_room(cpus: int, gpus: int, custom: dict[str, float]) -> str:
    """That no node of a cluster could ever hold this, in a sentence; empty when one can. One may still join."""
    import ray

    asked = {"CPU": cpus, "GPU": gpus, **custom}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0) >= amount for name, amount in asked.items()) for node in nodes):
        return ""
    words = ", ".join(f"{amount:g} {name}" for name, amount in asked.items() if amount)
    return f"none of the cluster's {len(nodes)} nodes has {words}; waiting for one that joins"


def runs_at_once(cpus: int, gpus: int, custom: dict[str, float], wanted: int | None = None) -> int:
    """How many runs of this size the session holds at a time, `wanted` at most.

    A cluster may grow: there, `wanted` counts if it is given, and is what an autoscaler is asked for. Raises
    DoesNotFit when not even one fits on any node of an embedded session.
    """
    import ray

    alive = [node for node in ray.nodes() if node["Alive"]]
    nodes = [_resources(node) for node in alive]
    asked = {"CPU": cpus, "GPU": gpus, **custom}
    # A head with no CPUs, as it should be, has fewer than none once one is kept back.
    fitting = [max(0, min(int(node.has(name) // amount) for name, amount in asked.items() if amount)) for node in nodes]
    embedded = any(EMBEDDED in node["Resources"] for node in alive)
    if not embedded:
        return wanted or max(1, sum(fitting))
    if not sum(fitting):
        most = max(nodes, key=lambda node: (node.gpus, node.cpus))
        raise DoesNotFit(
            f"a run asks for {gpus} GPU and {cpus} CPU{_named(custom)} (`resources`); the largest node of this "
            f"Ray session has {most.gpus:g} GPU and {most.cpus:g} CPU. --set resources.gpus=0 trains on the CPU"
        )
    return min(sum(fitting), wanted or sum(fitting))


class Node(NamedTuple):
    """What one machine has for runs."""

    cpus: float
    gpus: float
    custom: dict[str, float]

    def has(self, name: str) -> float:
        """The amount of a resource, by Ray's name."""
        return {**self.custom, "CPU": self.cpus, "GPU": self.gpus}.get(name, 0)


def _resources(node: dict[str, Any]) -> Node:
    """What runs may take. The embedded session declares spare CPUs for Tune and Data; on a cluster's nodes one of the
    real ones is kept back for them, because a worker that waits for its data for ever says nothing."""
    has = node["Resources"]
    return Node(has.get("CPU", 0) - (SPARE_CPUS if EMBEDDED in has else 1), has.get("GPU", 0), has)


def _named(custom: dict[str, float]) -> str:
    return "".join(f" and {amount:g} {name}" for name, amount in custom.items())


def remove_placement_group(group: str) -> None:
    """Give back what a stopped trial's worker held: Tune kills the trial, but Train's placement group stays."""
    import ray
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup, remove_placement_group

    if ray.is_initialized():
        remove_placement_group(PlacementGroup(PlacementGroupID(bytes.fromhex(group))))


def remove_own_placement_groups() -> None:
    """Remove all that this process's Ray job has made.

    A group's id ends with the id of Ray's job that made it (src/ray/common/id.h).
    """
    import ray
    from ray.util.placement_group import placement_group_table

    if ray.is_initialized():
        mine = ray.get_runtime_context().get_job_id()
        for group, about in placement_group_table().items():
            if group.endswith(mine) and about["state"] != "REMOVED":
                remove_placement_group(group)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _memory() -> dict[str, int]:
    room = min(OBJECT_STORE_MOST, _free_bytes() * OBJECT_STORE_SHARE, _shm_bytes() * SHM_SHARE)
    return {"object_store_memory": int(max(OBJECT_STORE_LEAST, room))}


def _free_bytes() -> float:
    """Memory that processes can still have: of the machine, or of the container if that has less."""
    known = [float(os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))]
    with suppress(OSError, StopIteration, ValueError):  # counts the disk cache as free, which it is
        lines = Path("/proc/meminfo").read_text().splitlines()
        known = [float(next(line for line in lines if line.startswith("MemAvailable:")).split()[1]) * 1024]
    with suppress(OSError, ValueError, KeyError):  # "max" where the container has no limit
        group = Path("/sys/fs/cgroup")
        most, now = (int((group / f"memory.{what}").read_text()) for what in ("max", "current"))
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        known.append(float(most - now + int(stat["inactive_file"]) + int(stat["active_file"])))  # the disk cache again
    return min(known)


def _shm_bytes() -> float:
    try:
        return float(shutil.disk_usage("/dev/shm").free)  # noqa: S108 - asked, not written
    except OSError:
        return float("inf")
