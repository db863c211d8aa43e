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
from sqlalchemy import Connection, create_engine, text

from raymsa import queue
from raymsa.store import Store, migrations, records
from tests import postgres

# Why there is no PostgreSQL to test on; empty when there is.
NO_POSTGRESQL = "" if postgres.GIVEN else postgres.missing()
BACKENDS = ["sqlite", pytest.param("postgresql", marks=pytest.mark.skipif(bool(NO_POSTGRESQL), reason=NO_POSTGRESQL))]
ROOT = Path(__file__).parent.parent
KEY = "0123456789abcdef"  # of a group
SPEC = {"dataset": {"kind": "synthetic", "name": "clips"}, "readout": {"kind": "disc"}, "seeds": [1]}


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
    spec = {"name": name, **SPEC}
    return queue.put(store, name, spec, new, submitted_by="ada", folder="/work", git_commit=None, **options)


def add_runs(store: Store, job_id: str, *ids: str) -> None:
    rows = [
        {"id": run_id, "job_id": job_id, "task_id": None, "variant": "disc", "seed": seed, "group_key": KEY}
        | {"spec": {**SPEC, "seeds": [seed]}, "spec_digest": "d"}
        for seed, run_id in enumerate(ids)
    ]
    records.create_runs(store, rows)


def first_schema(url: str) -> None:
    """A store as the first raymsa left it: a job with two tasks, the second to be cancelled, and a run."""
    job = {"name": "old", "spec": "{}", "created_at": 1, "submitted_by": "ada", "folder": "/work"}
    task = {"job_id": "aaaaaaaa", "kind": "prepare", "payload": "{}", "state": "queued", "priority": 0, "attempts": 0}
    run = {"id": "r1", "job_id": "aaaaaaaa", "variant": "disc", "seed": 1, "group_key": "g", "spec": "{}"}
    run |= {"spec_digest": "d", "state": "done", "attempts": 1, "wall_s": 1, "device_s": 1, "valid_mae": 0.75}
    engine = create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    if engine.dialect.name == "sqlite":
        Path(str(engine.url.database)).parent.mkdir(parents=True, exist_ok=True)
    with engine.begin() as connection:
        migrations.upgrade(connection, "0001")
        _insert(connection, "jobs", {"id": "aaaaaaaa", **job})
        for seq, asked in enumerate((False, True)):
            _insert(
                connection, "tasks", {**task, "seq": seq, "max_attempts": 5, "created_at": 1, "cancel_requested": asked}
            )
        _insert(connection, "runs", run)
    engine.dispose()


def _insert(connection: Connection, table: str, row: dict[str, Any]) -> None:
    names = ", ".join(row)
    connection.execute(text(f"INSERT INTO {table} ({names}) VALUES ({', '.join(f':{name}' for name in row)})"), row)


def entry(step: int, values: dict[str, float]) -> dict[str, Any]:
    """What a run reports of a step."""
    return {"step": step, "epoch": 0, "values": values}


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
            records.record_steps(store, run_id, [entry(step, {"loss": 1.0 / (step + 1), "clips": 16.0})])
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
