"""A real search, killed for real on the way."""

import os
import re
import signal
from pathlib import Path

import pytest

from raymsa.store import Store, queries
from tests.jobs import job_file, raymsa, start_raymsa, wait_for
from tests.searches import SPACE


def killed(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not Path(f"/proc/{pid}").exists() or "State:\tZ" in Path(f"/proc/{pid}/status").read_text(), 60)


def driver_of(home: Path, supervisor: int) -> int:
    """The process that holds the task, once it has one."""
    kids = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    return next((int(kid) for kid in kids if b"raymsa.serve" in Path(f"/proc/{kid}/cmdline").read_bytes()), 0)


def epochs_told(home: Path) -> int:
    log = next((home / "jobs").glob("*"), None) if (home / "jobs").exists() else None
    return len(re.findall("done: valid MAE", log.read_text())) if log else 0


@pytest.mark.timeout(560)
def test_a_search_whose_driver_and_supervisor_are_killed_makes_each_trial_once(tmp_path):
    home = tmp_path / "home"
    search = {"space": SPACE, "trials": 4, "scheduler": "asha", "min_epochs": 2, "confirm": {"top": 1, "seeds": [7]}}
    train = {"epochs": 4, "batch_clips": 8, "head_lr": 1e-3, "patience": 4, "checkpointing": False}
    file = job_file(tmp_path, search=search, train=train, queue={"backoff_s": 1})
    first = start_raymsa(home, "submit", str(file), "--lease-s", "10")
    try:
        wait_for(lambda: epochs_told(home) >= 1, 300, first)
        killed(driver_of(home, first.pid))
        wait_for(lambda: "a new one goes on" in first.words.read_text(), 60, first)
        wait_for(lambda: epochs_told(home) >= 4, 300, first)
        driver = driver_of(home, first.pid)
    finally:
        first.kill()
    first.wait(10)
    wait_for(lambda: not Path(f"/proc/{driver}").exists(), 120)  # it ends in order when nobody watches it

    store = Store.open(f"sqlite:///{home}/store.db", create=False)
    (job,) = queries.jobs(store)
    ended = raymsa(home, "resume", job.id, "--lease-s", "10", timeout_s=300)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = queries.runs(store, job.id)
    assert {row.state for row in rows} <= {"done", "pruned"}
    assert sorted(row.variant for row in rows if row.seed == 1) == ["t000", "t001", "t002", "t003"]
    assert {row.variant for row in rows if row.seed == 7} > {"default"}
    told = [(e.run_id, e.what) for e in queries.events(store, job.id) if e.run_id and e.what in ("done", "pruned")]
    assert len(told) == len(set(told)) == len(rows)
    for row in rows:
        losses = [step.step for step in queries.steps(store, row.id) if step.name == "loss"]
        assert losses == list(range(1, len(losses) + 1))  # it went on where it was
        names = {step.name for step in queries.steps(store, row.id)}
        assert {"valid_mae", "valid_corr", "valid_acc7"} <= names
    assert "trials, each with seed 1: for choosing" in raymsa(home, "results", job.id).stdout
