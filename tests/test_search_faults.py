"""A real search, killed for real on the way."""

import os
import re
import signal
from pathlib import Path

import pytest

from raymsa.store import Store, queries
from tests.faults import COUNTS, driver_of, fault_job, is_over, make_shards
from tests.jobs import raymsa, start_raymsa, wait_for
from tests.searches import SPACE

EPOCHS = 12
SEARCH = {"space": SPACE, "trials": 4, "scheduler": "asha", "min_epochs": 4, "confirm": {"top": 1, "seeds": [7]}}


def epochs_told(home: Path) -> int:
    """Epochs of all runs so far, as the job's log says."""
    log = next((home / "jobs").glob("*.log"), None)
    return len(re.findall("done: valid MAE", log.read_text())) if log else 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_search_whose_driver_and_supervisor_are_killed_makes_each_trial_once(tmp_path):
    home, shards = tmp_path / "home", make_shards(tmp_path / "shards", COUNTS)
    train = {"epochs": EPOCHS, "patience": EPOCHS}
    first = start_raymsa(
        home, "submit", str(fault_job(tmp_path, shards, search=SEARCH, train=train)), "--lease-s", "10"
    )
    try:
        wait_for(lambda: epochs_told(home) >= 1, process=first)
        os.kill(driver_of(first)[0], signal.SIGKILL)
        wait_for(lambda: "a new one goes on" in first.words.read_text(), process=first)
        before = epochs_told(home)
        wait_for(lambda: epochs_told(home) > before + 2, process=first)
        (driver,) = driver_of(first)
    finally:
        first.kill()
    first.wait(10)
    wait_for(lambda: is_over(driver))  # it ends in order when nobody watches it

    store = Store.open(f"sqlite:///{home}/store.db", create=False)
    (job,) = queries.jobs(store)
    assert {task.state for task in queries.tasks(store, job.id)[1:]} == {"queued"}
    ended = raymsa(home, "resume", job.id, "--lease-s", "10", timeout_s=480)
    assert ended.returncode == 0, ended.stderr[-3000:]
    rows = queries.runs(store, job.id)
    assert {row.state for row in rows} <= {"done", "pruned"} and any(row.attempts == 3 for row in rows)
    assert sorted(row.variant for row in rows if row.seed == 1) == ["t000", "t001", "t002", "t003"]
    assert "default" in {row.variant for row in rows if row.seed == 7}
    told = [(e.run_id, e.what) for e in queries.events(store, job.id) if e.run_id and e.what in ("done", "pruned")]
    assert len(told) == len(set(told)) == len(rows)
    for row in rows:
        steps = queries.steps(store, row.id)
        losses = [step.step for step in steps if step.name == "loss"]
        assert losses == list(range(1, len(losses) + 1))  # it went on where it was
        assert {"valid_mae", "valid_corr", "valid_acc7"} <= {step.name for step in steps}
    assert "trials, each with seed 1: for choosing" in raymsa(home, "results", job.id).stdout
