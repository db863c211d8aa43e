"""A driver's hold on a task, in threads of this process."""

import threading
from pathlib import Path

import pytest

from raymsa import orders, queue
from raymsa.lease import JobLog, Lease
from raymsa.store import Store, queries
from tests.jobs import wait_for
from tests.stores import put

LEASE_S = 1.5


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    with Store.open(str(tmp_path / "store.db")) as opened:
        yield opened


def test_a_task_that_was_told_to_stop_stops_although_its_pause_is_taken_back(store: Store) -> None:
    job_id = put(store)
    task = queue.claim(store, "ann", LEASE_S)
    lease = Lease(store, task, LEASE_S, threading.Event(), JobLog(job_id, print))
    lease.begin()
    orders.pause(store, job_id, "eve")
    wait_for(lease.over, 10)
    orders.resume(store, job_id, "eve")
    renewed = queries.tasks(store, job_id)[0].lease_until
    wait_for(lambda: queries.tasks(store, job_id)[0].lease_until > renewed, 10)
    assert lease.over()
    lease.end()
    assert queue.release(store, task) == "queued"  # and it is claimed again


def test_a_job_whose_log_cannot_be_written_is_served(store: Store, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "jobs").write_text("in the way")
    said: list[str] = []
    JobLog("0f3a55c1", said.append)("it starts")
    assert said == ["it starts"]
