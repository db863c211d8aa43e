"""How fast a full queue is handed out, and how long people wait for `raymsa list` and `raymsa status` beside it.

    python -m tests.benchmarks.bench_queue [--tasks 10000] [--processes 16] [--postgres URL] [--only sqlite]

The store holds as many finished prepare tasks and runs as it has train tasks to do; each of these waits for one of
those. Processes claim and finish them at the same time, as fast as they can, and the end is checked: every task done
once. PostgreSQL is a server of our own that waits for the disk at every commit, unless a URL names another.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from raymsa import queue
from raymsa.jobfile import load_job
from raymsa.spec import digest_of_plain
from raymsa.store import Store, queries, tables
from tests import postgres

ROOT = Path(__file__).parent.parent.parent
RAYMSA = (sys.executable, "-c", "from raymsa.cli import main; main(prog_name='raymsa')")
SAFE = {"fsync": "on", "full_page_writes": "on"}  # the tests' server does without
LEASE_S = 600.0
COMMANDS = {"list": ("list",), "list --json": ("list", "--json"), "status": ("status", "{job}")}
ROUNDS = 5


class Load(NamedTuple):
    """What claiming a full queue gave: seconds in all, and those of every claim."""

    wall_s: float
    claims_s: list[float]


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--tasks", type=int, default=10_000)
    asked.add_argument("--processes", type=int, default=16)
    asked.add_argument("--postgres", metavar="URL", help="a server that may get a database [default: one of our own]")
    asked.add_argument("--only", choices=("sqlite", "postgresql"))
    args = asked.parse_args()
    print(f"{args.tasks:,} tasks, {args.processes} processes, {os.cpu_count()} cores")
    print("| store | claims/s | median ms | p99 ms | longest ms | " + " | ".join(f"`{c}` s" for c in COMMANDS) + " |")
    print("|---" * (5 + len(COMMANDS)) + "|")
    for backend in [args.only] if args.only else ["sqlite", "postgresql"]:
        with fresh(backend, args.postgres) as url:
            fill(url, args.tasks)
            found = load(url, args.processes)
            check(url, args.tasks, found)
            shown = [f"{seconds:.2f}" for seconds in commands(url)]
        print(f"| {backend} | {' | '.join([*figures(found), *shown])} |", flush=True)


@contextmanager
def fresh(backend: str, server: str | None) -> Iterator[str]:
    """The URL of an empty store; removed afterwards."""
    if backend == "sqlite":
        with tempfile.TemporaryDirectory() as folder:
            yield f"sqlite:///{folder}/store.db"
        return
    postgres.SETTINGS.update(SAFE)
    try:
        with postgres.database(server) as url:
            yield url
    finally:
        postgres.stop_shared()


def fill(url: str, count: int) -> None:
    """As many jobs: each has prepared its clips, has one run from an earlier attempt, and a task left to do."""
    spec = load_job(ROOT / "jobs/demo.yaml").model_dump(mode="json")
    rows: dict[str, list[dict[str, Any]]] = {"jobs": [], "tasks": [], "waits": [], "runs": [], "events": []}
    for number in range(count):
        for table, some in rows_of(f"{number:08x}", number, spec).items():
            rows[table] += some
    with Store.open(url) as store, store.write() as connection:
        for table, some in rows.items():
            connection.execute(tables.metadata.tables[table].insert(), some)
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")  # it would do so by itself, a minute later


def rows_of(job_id: str, number: int, spec: dict[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """One job's rows in every table."""
    at = 1.8e9 + number
    common = {"job_id": job_id, "payload": {"shards": "/data/shards/demo"}, "priority": 0, "max_attempts": 5}
    first = {"id": 2 * number + 1, "seq": 0, "kind": "prepare", "state": "done", "attempts": 1, "finished_at": at}
    second = {"id": 2 * number + 2, "seq": 1, "kind": "train", "state": "queued", "attempts": 0, "finished_at": None}
    run = {"id": f"{job_id}-disc-1111", "job_id": job_id, "task_id": second["id"], "variant": "disc", "seed": 1111}
    run |= {"spec": spec, "spec_digest": digest_of_plain(spec), "group_key": job_id, "state": "done", "attempts": 1}
    job = {"id": job_id, "name": f"demo-{number}", "spec": spec, "created_at": at, "submitted_by": "ada"}
    told = {"at": at, "job_id": job_id, "what": "queued", "detail": "submitted", "who": "ada"}
    return {
        "jobs": [{**job, "folder": "/work", "git_commit": None}],
        "tasks": [{**common, **one, "created_at": at} for one in (first, second)],
        "waits": [{"task_id": second["id"], "after_id": first["id"]}],
        "runs": [{**run, "wall_s": 60.0, "device_s": 60.0, "valid_error": 0.5, "failures": 0}],
        "events": [{**told, "task_id": first["id"]}, {**told, "task_id": second["id"]}],
    }


def load(url: str, processes: int) -> Load:
    """Let the processes claim and finish everything, all at once."""
    spawned = multiprocessing.get_context("spawn")
    start, answers = spawned.Barrier(processes + 1), spawned.Queue()
    drivers = [spawned.Process(target=drive, args=(url, f"driver-{n}", start, answers)) for n in range(processes)]
    for driver in drivers:
        driver.start()
    start.wait(120)
    begun = time.monotonic()
    claims_s = [seconds for _ in drivers for seconds in answers.get(timeout=600)]
    wall_s = time.monotonic() - begun
    for driver in drivers:
        driver.join()
    return Load(wall_s, claims_s)


def drive(url: str, name: str, start: Any, answers: Any) -> None:
    """One driver with nothing to do but claim and finish; its claims' seconds."""
    seconds = []
    with Store.open(url) as store:
        start.wait(120)
        while True:
            asked = time.monotonic()
            task = queue.claim(store, name, LEASE_S)
            if task is None:
                break
            seconds.append(time.monotonic() - asked)
            queue.finish(store, task)
    answers.put(seconds)


def check(url: str, count: int, found: Load) -> None:
    """Every task was claimed once, finished once, and its history says so."""
    with Store.open(url) as store:
        told = Counter((event.task_id, event.what) for event in queries.events(store) if event.what != "queued")
        tasks = queries.tasks(store)
    assert len(found.claims_s) == count, f"{len(found.claims_s)} claims for {count} tasks"
    assert {(task.state, task.attempts) for task in tasks} == {("done", 1)}, Counter(task.state for task in tasks)
    mine = {task.id for task in tasks if task.seq == 1}
    assert told == Counter({(task, what): 1 for task in mine for what in ("running", "done")}), "events"


def figures(found: Load) -> list[str]:
    """Claims a second, and how long one takes."""
    ordered = sorted(found.claims_s)
    late = ordered[int(len(ordered) * 0.99)]
    rate = len(ordered) / found.wall_s
    return [f"{rate:,.0f}", *(f"{1000 * s:.1f}" for s in (statistics.median(ordered), late, ordered[-1]))]


def commands(url: str) -> list[float]:
    """Seconds of whole processes, median."""
    environment = {**os.environ, "RAYMSA_STORE": url, "PYTHONPATH": str(ROOT)}
    taken = []
    for words in COMMANDS.values():
        line = [*RAYMSA, *(word.format(job=f"{0:08x}") for word in words)]
        taken.append(statistics.median(seconds_of(line, environment) for _ in range(ROUNDS)))
    return taken


def seconds_of(line: list[str], environment: dict[str, str]) -> float:
    """Of one process, from its start to its end."""
    begun = time.monotonic()
    subprocess.run(line, env=environment, stdout=subprocess.DEVNULL, check=True)
    return time.monotonic() - begun


if __name__ == "__main__":
    main()
