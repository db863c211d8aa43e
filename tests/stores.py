"""Stores to test on, SQLite's and PostgreSQL's, and what other processes do to them."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from raymsa import queue
from raymsa.store import Store, records
from tests import postgres

# Why there is no PostgreSQL to test on; empty when there is.
NO_POSTGRESQL = "" if postgres.GIVEN else postgres.missing()
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(bool(NO_POSTGRESQL), reason=NO_POSTGRESQL))]
ROOT = Path(__file__).parent.parent


@contextmanager
def fresh_url(backend: str, folder: Path) -> Iterator[str]:
    """The URL of a store that does not exist yet."""
    if backend == "sqlite":
        yield f"sqlite:///{folder}/home/store.db"
        return
    with postgres.database() as url:
        yield url


def put(store: Store, name: str = "demo", tasks: int = 1, **options: Any) -> str:
    """A job with some tasks."""
    new = [queue.NewTask("runs", {"number": number}) for number in range(tasks)]
    return queue.put(store, name, {"name": name}, new, submitted_by="ada", folder="/work", git_commit=None, **options)


def add_runs(store: Store, job_id: str, *ids: str) -> None:
    rows = [
        {"id": run_id, "job_id": job_id, "task_id": None, "variant": "disc", "seed": seed, "group_key": "g"}
        | {"spec": {"seed": seed}, "spec_digest": "d"}
        for seed, run_id in enumerate(ids)
    ]
    records.create_runs(store, rows)


def start(action: str, *arguments: Any) -> "subprocess.Popen[str]":
    """Another process that runs a function of this file."""
    code = f"import sys, json; from tests import stores; stores.{action}(*json.loads(sys.argv[1]))"
    command = [sys.executable, "-c", code, json.dumps([str(a) if isinstance(a, Path) else a for a in arguments])]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def outputs(processes: "list[subprocess.Popen[str]]", go: Path) -> list[Any]:
    """Let the processes go all at once; what each printed, when all have ended well."""
    for process in processes:
        assert process.stdout is not None and process.stdout.readline() == "ready\n", process.communicate()
    go.touch()
    ended = [(*process.communicate(timeout=120), process.returncode) for process in processes]
    assert all(code == 0 and not err for _, err, code in ended), ended
    return [json.loads(out) for out, _, _ in ended]


def open_and_write(url: str, go: str) -> None:
    _wait_for(go)
    with Store.open(url) as store:
        records.add_event(store, "opened", who=str(os.getpid()))
    print(os.getpid())


def claim_until_empty(url: str, go: str, driver: str) -> None:
    taken = []
    with Store.open(url) as store:
        _wait_for(go)
        while task := queue.claim(store, driver, 60):
            taken.append(task.id)
            queue.finish(store, task)
    print(json.dumps(taken))


def write_steps(url: str, go: str, run_id: str, count: int) -> None:
    with Store.open(url) as store:
        _wait_for(go)
        for step in range(count):
            records.record_steps(store, run_id, step, 0, {"loss": 1.0 / (step + 1), "clips": 16.0})
    print(count)


def claim_and_hang(url: str, driver: str, lease_s: float) -> None:
    with Store.open(url) as store:
        task = queue.claim(store, driver, lease_s)
        print(task and task.id, flush=True)
        time.sleep(600)


def _wait_for(go: str) -> None:
    print("ready", flush=True)
    while not Path(go).exists():
        time.sleep(0.001)
