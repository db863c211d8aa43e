"""Stores as the page shows them, the page in this process, and the real one in its own."""

from __future__ import annotations

import asyncio
import functools
import math
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from starlette.testclient import TestClient

from raymsa import queue
from raymsa.evaluation.metrics import PROFILES
from raymsa.home import job_log, run_dir
from raymsa.jobfile import load_job
from raymsa.store import Store, records
from raymsa.ui import kept, live
from raymsa.ui.app import Site, guarded, listening, port_of
from raymsa.ui.security import Door
from tests.jobs import start_raymsa, wait_for
from tests.stores import ROOT

HOSTILE = {
    "script": "<script>window.hacked = 1</script>",
    "title": "</title><img src=x onerror='window.hacked=1'>",
    "quotes": '"\'><b onmouseover="window.hacked=1">',
    "template": "{{ 7*191 }}{% raw %}",
    "formula": "=cmd|' /C calc'!A0",
    "event": 'data: x\n\ndata: {"parts": {"main": "hacked"}}\r\n\r\n',
    "long": "x" * 10_000,
    "right to left": "abc\u202egnp.exe",
    "emoji": "👩🏽‍🔬 \U0001f6a8",
    "terminal": "\x1b[31mred\x1b[0m\x1b]0;title\x07",
}


@pytest.fixture(name="home")
def own_home(tmp_path, monkeypatch) -> Path:
    """A RAYMSA_HOME of the test's own; a page waits for a busy machine."""
    monkeypatch.setattr(live, "PATIENCE_S", 60)
    monkeypatch.setattr(kept, "PATIENCE_S", 60)
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(name="store")
def own_store(home) -> Iterator[Store]:
    with Store.open(str(home / "store.db")) as opened:
        yield opened


@functools.cache
def spec() -> dict[str, Any]:
    return load_job(ROOT / "jobs/demo.yaml").model_dump(mode="json")


def add_job(
    store: Store,
    name: str = "demo",
    variants: tuple[str, ...] = ("disc", "gen"),
    seeds: int = 2,
    steps: int = 20,
    done: bool = True,
) -> str:
    """A job that ran: losses, metrics on valid, finals; with `done` false, its last run still trains."""
    named = {**spec(), "name": name, "variants": {v: {} for v in variants}, "seeds": list(range(1, seeds + 1))}
    tasks = [queue.NewTask("prepare", {}), queue.NewTask("train", {})]
    job_id = queue.put(store, name, named, tasks, submitted_by="ada", folder="/data", git_commit="c0ffee")
    prepare = queue.claim(store, "box:1", 600)
    queue.finish(store, prepare)
    task = queue.claim(store, "box:1", 600)
    ids = [(f"{job_id}-{variant}-{seed}", variant, seed) for variant in variants for seed in range(1, seeds + 1)]
    for run_id, variant, seed in ids:
        add_run(store, job_id, run_id, variant, seed, task_id=task.id)
        train(store, run_id, 1, steps, of=steps if done or run_id != ids[-1][0] else 2 * steps)
        if done or run_id != ids[-1][0]:
            finish(store, run_id, seed)
    if done:
        queue.finish(store, task)
    return job_id


def add_run(store: Store, job_id: str, run_id: str, variant: str, seed: int, task_id: int | None = None) -> None:
    row = {"id": run_id, "job_id": job_id, "task_id": task_id, "variant": variant, "seed": seed}
    row |= {"group_key": f"{job_id}{variant}", "spec": {**spec(), "seed": seed}, "spec_digest": "d"}
    records.create_runs(store, [row])


def train(store: Store, run_id: str, first: int, last: int, of: int | None = None) -> None:
    """What a run reports from one step to another, all at once."""
    if first == 1:
        records.start_run(store, run_id, steps_total=of or last, trainable_parameters=1234)
    chance = random.Random(run_id)
    entries = []
    for step in range(first, last + 1):
        loss = 2 * math.exp(-step / (0.4 * (of or last))) + 0.2 * chance.random()
        values = {"loss": loss, "clips_per_s": 12.5, "grad_norm": 1.0, "tokens_per_s": 900.0, "data_wait": 0.02}
        if step % 10 == 0:
            values["valid_mae"] = 0.6 + loss / 3
        entries.append({"step": step, "epoch": 1 + step // 10, "values": values})
    spent = (float(last - first + 1), float(last - first + 1))
    facts = {"valid_error": 0.6 + entries[-1]["values"]["loss"] / 3, "place": "box GPU 0", "left_s": 60.0}
    records.record_steps(store, run_id, entries, spent, **facts)


def finish(store: Store, run_id: str, seed: int) -> None:
    chance = random.Random(run_id)
    test = {name: 0.5 + 0.1 * chance.random() for name in PROFILES["mosi"]}
    valid = {name: value + 0.01 for name, value in test.items()}
    test |= {f"constant_{name}": 0.4 for name in PROFILES["mosi"]} | {"out_of_range": 0.0}
    records.finish_run(store, run_id, {"best_epoch": 2}, {"test": test, "valid": valid})
    folder = run_dir(run_id)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "log.txt").write_text(f"run {run_id}\nepoch 1\nepoch 2\n")


def hostile_store(store: Store) -> str:
    """A job, a run and logs in which every text that others write is hostile."""
    words = " ".join(HOSTILE.values())
    job_id = queue.put(
        store,
        words,
        {**spec(), "name": words},
        [queue.NewTask("train", {})],
        submitted_by=words,
        folder="/",
        git_commit=None,
    )
    task = queue.claim(store, words, 600)
    queue.renew(store, task, 600, words)
    for number, (name, text) in enumerate(HOSTILE.items()):
        run_id = f"{job_id}-{name}"
        add_run(store, job_id, run_id, text, number, task.id)
        train(store, run_id, 1, 10)
        records.update_run(store, run_id, place=words)
    records.fail_run(store, f"{job_id}-script", words)
    job_log(job_id).parent.mkdir(parents=True, exist_ok=True)
    job_log(job_id).write_text(words)
    run_dir(f"{job_id}-title").mkdir(parents=True)
    (run_dir(f"{job_id}-title") / "log.txt").write_text(words)
    return job_id


class Visitor(TestClient):
    """A browser without a screen that came in with the token."""

    def __init__(self, url: str, reports: Path, enter: bool = True) -> None:
        self.site, self.door = Site(url, reports), Door()
        super().__init__(guarded(self.site.app(), self.door, "127.0.0.1", 8650), base_url="http://127.0.0.1:8650")
        if enter:
            assert self.get("/", params={"token": self.door.token}, follow_redirects=False).status_code == 303


@contextmanager
def served(home: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The real command; gives the address with its token, and the process."""
    process = start_raymsa(home, "ui", "--port", "0", "--no-open", *words)
    try:
        said = wait_for(lambda: re.search(r"open (\S+)", process.words.read_text()), 60, process)
        yield said[1], process
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@contextmanager
def opened(home: Path) -> Iterator[tuple[str, Callable[[], None]]]:
    """The page on a socket, served by a thread of this process; gives the address with its token, and what ends it."""
    door, bound = Door(), listening("127.0.0.1", 0)
    app = guarded(Site(f"sqlite:///{home}/store.db", home / "reports").app(), door, "127.0.0.1", port_of(bound))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_level="error", ws="none"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[bound])), daemon=True)

    def end() -> None:
        server.should_exit = server.force_exit = True
        thread.join(30)

    thread.start()
    try:
        yield f"http://127.0.0.1:{port_of(bound)}/?token={door.token}", end
    finally:
        end()


def steps_for_a_while(url: str, run_id: str, first: int, last: int, every_s: float) -> None:
    """In another process: a run that trains."""
    with Store.open(url) as store:
        for step in range(first, last + 1):
            train(store, run_id, step, step, of=last)
            time.sleep(every_s)


def start_training(url: str, run_id: str, first: int, last: int, every_s: float = 0.2) -> subprocess.Popen[bytes]:
    code = f"from tests.ui_site import *; steps_for_a_while({url!r}, {run_id!r}, {first}, {last}, {every_s})"
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)
