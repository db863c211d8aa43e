"""What a run costs beside its training: through `raymsa submit`, and by the very same call in a bare process.

    python -m tests.benchmarks.bench_overhead [--seconds 180] [--trials 3]

The tiny Thinker on clips that raymsa makes, prepared before; one core for training. First the bare process (its
imports counted), then the same run from the command to its table, then a search whose trials take turns on one device.
Times are those at which lines appear. Memory is PSS: a page that two processes share counts half for each.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.benchmarks.bench_stream import family
from tests.jobs import RAYMSA, environment, job_file

CLIPS = {"kind": "synthetic", "name": "synthetic", "counts": {"train": 128, "valid": 32, "test": 32}}
TRIAL_EPOCHS = 4
LOOK_S = 0.02
MEASURE_S = 1.0  # between two looks at processes: PSS is slow to read

# The way from the command to the first step: what begins when the line appears that the one before has waited for.
WAY = {
    "command starts, job queued": "is queued",
    "driver's process": "starting Ray",
    "Ray starts": "Ray is up",
    "train task claimed": "at a time",
    "clips shared": "all runs share",
    "Tune, Train, worker process": "worker process",
    "model loaded": "starts at step",
    "first step": "step 1",
}


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--seconds", type=float, default=180.0, help="training time of the compared run")
    asked.add_argument("--trials", type=int, default=3)
    args = asked.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended then, too
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / "home"
        home.mkdir()
        epochs = prepare(Path(folder), home, args.seconds)
        bare = direct(Path(folder), home, epochs, "direct")
        whole = submitted(job(Path(folder), "compared", epochs), home)
        search = {"trials": args.trials, "space": {"train.lora_lr": {"loguniform": [1e-4, 1e-2]}}}
        turns = submitted(
            job(Path(folder), "search", TRIAL_EPOCHS, search=search, queue={"runs_at_once": 1}, variants={}), home
        )
    show(epochs, bare, whole, turns)


def job(folder: Path, name: str, epochs: int, **more: Any) -> Path:
    """A job file; its clips are the same for every name."""
    train = {"epochs": epochs, "patience": epochs, "batch_clips": 8, "lora_lr": 2e-3, "checkpointing": False}
    return job_file(folder, name, dataset=CLIPS, train=train, **more)


def prepare(folder: Path, home: Path, seconds: float) -> int:
    """Make the shards, and find out how many epochs take so long."""
    file = folder / "clips.yaml"
    file.write_text(json.dumps(CLIPS))
    subprocess.run([*RAYMSA, "prepare", str(file)], env=environment(home), check=True, capture_output=True)
    few, more = (direct(folder, home, epochs, f"tried{epochs}")["execute"] for epochs in (2, 8))
    return max(2, round(seconds / ((more - few) / 6)))


def direct(folder: Path, home: Path, epochs: int, name: str) -> dict[str, float]:
    """The run in a process that has no Ray; seconds of the process, and of the call in it."""
    words = [str(job(folder, name, epochs)), str(folder / f"{name}-run")]
    begun, busy = time.monotonic(), children_cpu_s()
    line = [sys.executable, "-c", "from tests.benchmarks.bench_overhead import bare; bare()", *words]
    ended = subprocess.run(line, env=environment(home), check=True, capture_output=True, text=True)
    cpu = children_cpu_s() - busy
    return {"process": time.monotonic() - begun, "cpu": cpu, **json.loads(ended.stdout.splitlines()[-1])}


def bare() -> None:
    """What the direct process does: all of `training/worker.py` but Ray."""
    import torch

    from raymsa.data import groups, manifest
    from raymsa.jobfile import load_job
    from raymsa.plan import shards_of
    from raymsa.spec import runs
    from raymsa.training.run import Work, execute

    spec = runs(load_job(Path(sys.argv[1])))[0].spec
    shards, errors = shards_of(spec.dataset), []
    torch.set_num_threads(spec.resources.cpus)
    begun = time.monotonic()
    work = Work(spec, shards, manifest.read(shards), Path(sys.argv[2]))
    execute(work, torch.device("cpu"), groups.read, lambda said: errors.append(said.get("valid_error")))
    best = min(error for error in errors if error is not None)
    print(json.dumps({"execute": time.monotonic() - begun, "valid_error": best}))


def submitted(file: Path, home: Path) -> dict[str, Any]:
    """The job from the command to its table: when each line appeared, and what its processes took."""
    busy = children_cpu_s()
    begun, at = time.time(), time.monotonic()
    command = subprocess.Popen(
        [*RAYMSA, "submit", str(file), "--json"],
        env=environment(home),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with ended_with_us(command), Lines(command, home, begun) as lines, Family(command.pid) as processes:
        assert command.stdout is not None
        table = json.loads(command.stdout.read())
        assert command.wait() == 0, lines.seen
    seconds = time.monotonic() - at
    return {
        "seconds": seconds,
        "cpu": children_cpu_s() - busy,
        "seen": lines.seen,
        "processes": processes.seen,
        "table": table,
    }


@contextmanager
def ended_with_us(command: subprocess.Popen[str]) -> Iterator[None]:
    """No Ray session is left behind by a benchmark that was interrupted."""
    try:
        yield
    finally:
        if command.poll() is None:
            command.send_signal(signal.SIGINT)
            command.wait(120)


class Lines:
    """What the command and its runs write, each line with the seconds since `begun` (UNIX)."""

    def __init__(self, command: subprocess.Popen[str], home: Path, begun: float) -> None:
        self.seen: list[tuple[float, str, str]] = []  # seconds, who (a run, or "" for the command), line
        self._command, self._home, self._begun = command, home, begun
        self._done = threading.Event()
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._hear, self._watch)]

    def __enter__(self) -> Lines:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        self.seen.sort()

    def _hear(self) -> None:
        assert self._command.stderr is not None
        for line in self._command.stderr:
            self._note("", line)

    def _watch(self) -> None:
        """The runs' own files, which are there before their driver hears of anything."""
        read: dict[Path, int] = defaultdict(int)
        while not self._done.wait(LOOK_S):
            for path in self._home.glob("runs/*/*"):
                if path.name in ("log.txt", "steps.jsonl") and path.stat().st_mtime > self._begun:
                    lines = path.read_text().splitlines()
                    for line in lines[read[path] :]:
                        step = path.name == "steps.jsonl"
                        self._note(path.parent.name, f"step {json.loads(line)['step']}" if step else line)
                    read[path] = len(lines)

    def _note(self, who: str, line: str) -> None:
        self.seen.append((time.time() - self._begun, who, line.strip()))


class Family:
    """The processes of a command: name, when it was first seen, and the most it held (PSS, bytes)."""

    def __init__(self, pid: int) -> None:
        self.seen: dict[int, dict[str, Any]] = {}
        self._pid, self._done = pid, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Family:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(MEASURE_S):
            for pid in family(self._pid):
                with suppress(OSError, StopIteration, ValueError):
                    about = self.seen.setdefault(pid, {"name": "", "bytes": 0})
                    about["name"] = name_of(pid)
                    about["bytes"] = max(about["bytes"], pss_bytes(pid))
                    about["cpu"] = own_cpu_s(pid)


def name_of(pid: int) -> str:
    """An actor by its class, another process by its program."""
    words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")[0].decode()
    return words.removeprefix("ray::").split(".")[0] if words.startswith("ray::") else Path(words).name


def pss_bytes(pid: int) -> int:
    """Memory of a process, shared pages divided among those that have them."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("Pss:")).split()[1]) * 1024


def own_cpu_s(pid: int) -> float:
    """Processor time of one process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def children_cpu_s() -> float:
    """Processor time of all processes that we started and that have ended, and of those that they had started."""
    times = os.times()
    return times.children_user + times.children_system


def first(seen: list[tuple[float, str, str]], words: str, after_s: float = 0.0, who: str | None = None) -> float:
    """When a line with these words appeared first."""
    found = (at for at, run, line in seen if words in line and at >= after_s and who in (None, run))
    return next(found)


def show(epochs: int, bare_run: dict[str, float], whole: dict[str, Any], turns: dict[str, Any]) -> None:
    """The tables."""
    seen = whole["seen"]
    up = first(seen, "Ray is up")
    after = whole["seconds"] - up
    print(f"{epochs} epochs of 128 clips, {os.cpu_count()} cores\n")
    print("| one run | wall s | processor s |\n|---|---|---|")
    print(f"| called directly, whole process | {bare_run['process']:.1f} | {bare_run['cpu']:.1f} |")
    print(f"| called directly, without imports | {bare_run['execute']:.1f} | |")
    print(f"| `raymsa submit`, from the command to the table | {whole['seconds']:.1f} | {whole['cpu']:.1f} |")
    print(f"| `raymsa submit`, after Ray is up | {after:.1f} | |")
    print(f"| the same, of the direct process | {after / bare_run['process']:.3f} | |\n")
    print("| from the command to the first step | s |\n|---|---|")
    last = 0.0
    for what, words in WAY.items():
        at = first(seen, words, last)
        print(f"| {what} | {at - last:.1f} |")
        last = at
    print(f"| together | {last:.1f} |\n")
    print("| between two trials on one device | s |\n|---|---|")
    for what, seconds in gaps(turns["seen"]).items():
        print(f"| {what} | {statistics.median(seconds):.1f} |")
    print("\n| process that one more run adds | PSS MiB | processor s |\n|---|---|---|")
    added = [about for about in whole["processes"].values() if about["name"] in actors(whole["processes"])]
    for about in sorted(added, key=lambda about: -about["bytes"]):
        print(f"| {about['name']} | {about['bytes'] / 2**20:,.0f} | {about['cpu']:.1f} |")
    print(f"| together, {len(added)} | {sum(about['bytes'] for about in added) / 2**20:,.0f} | |")


def actors(processes: dict[int, dict[str, Any]]) -> set[str]:
    """Names of actors that belong to one run; what the session or the job has once is left out."""
    once = {"IDLE", "_Holder", "DashboardAgent", "RuntimeEnvAgent", "_StatsActor", "AutoscalingCoordinator"}
    titles = {about["name"] for about in processes.values()}
    return {name for name in titles if name[:1] in "ABCDEFGHIJKLMNOPQRSTUVWXYZ_"} - once


def gaps(seen: list[tuple[float, str, str]]) -> dict[str, list[float]]:
    """From a trial's last words to the first step of the next one."""
    order = sorted({run for _, run, _ in seen if run}, key=lambda run: first(seen, "", who=run))
    found: dict[str, list[float]] = defaultdict(list)
    for before, run in pairwise(order):
        ended = max(at for at, who, _ in seen if who == before)
        begun, loaded = first(seen, "worker process", who=run), first(seen, "starts at step", who=run)
        found["last words to the next worker's first"].append(begun - ended)
        found["model loaded"].append(loaded - begun)
        found["last words to the next first step"].append(first(seen, "step 1", who=run) - ended)
    return found


if __name__ == "__main__":
    main()
