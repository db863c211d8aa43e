"""The driver without Ray: what it does with tasks that nothing can be done with."""

import threading
import time
from pathlib import Path

import pytest

from raymsa import queue
from raymsa.driver import Driver
from raymsa.errors import StoreError
from raymsa.lease import Lease
from raymsa.store import Store, queries
from tests.stores import fresh_url, put


@pytest.mark.parametrize("kind", ["prepare", "odd"])
def test_a_job_that_this_version_cannot_read_fails_and_the_next_is_served(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "raymsa"))
    monkeypatch.setattr("raymsa.driver.ended_part", lambda: "")
    with fresh_url("sqlite", tmp_path) as url, Store.open(url) as store:
        task = queue.NewTask(kind, {"shards": str(tmp_path)})
        spec = {"name": "later", "queue": {"retries": 0, "mood": "odd"}, "nonsense": 1}
        jobs = [
            queue.put(store, "later", spec, [task], submitted_by="ada", folder="/", git_commit=None) for _ in range(2)
        ]
        said: list[str] = []
        Driver(store, said.append, _ray_is_up=True).serve(lambda: not queries.something_to_do(store))
        found = [queries.tasks(store, job_id)[0] for job_id in jobs]
    assert [task.state for task in found] == ["failed", "failed"], said
    assert all(("nonsense" if kind == "prepare" else "unknown to this version") in str(task.error) for task in found)


@pytest.mark.parametrize("broken", ["raymsa.driver.execute", "raymsa.queue.finish"])
def test_what_cannot_be_stored_is_not_tried_for_ever(
    broken: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: object) -> None:
        raise StoreError("a value out of range")

    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "raymsa"))
    monkeypatch.setattr("raymsa.driver.ended_part", lambda: "")
    monkeypatch.setattr("raymsa.driver.execute", lambda *_: None)
    monkeypatch.setattr(broken, cannot)
    with fresh_url("sqlite", tmp_path) as url, Store.open(url) as store:
        spec, task = {"queue": {"retries": 2, "backoff_s": 0}}, queue.NewTask("prepare", {})
        about = {"submitted_by": "ada", "folder": "/", "git_commit": None, "max_attempts": 2}
        job_id = queue.put(store, "odd", spec, [task], **about)
        until = time.monotonic() + 30
        driver = Driver(store, print, lease_s=1.0, _ray_is_up=True)
        driver.serve(lambda: not queries.something_to_do(store) or time.monotonic() > until)
        (task,) = queries.tasks(store, job_id)
    assert (task.state, task.attempts) == ("failed", 2)


def test_a_store_that_breaks_ends_the_driver_when_its_tasks_are_given_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim, claimed = queue.claim, threading.Event()

    def once(*words: object) -> object:
        if claimed.is_set():
            raise StoreError("it is malformed")
        claimed.set()
        return claim(*words)

    def work(store: Store, task: object, lease: Lease, log: object) -> None:
        while not lease.over():
            time.sleep(0.05)

    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "raymsa"))
    monkeypatch.setattr("raymsa.driver.ended_part", lambda: "")
    monkeypatch.setattr("raymsa.driver.execute", work)
    monkeypatch.setattr("raymsa.queue.claim", once)
    with fresh_url("sqlite", tmp_path) as url, Store.open(url) as store:
        job_id = put(store)
        with pytest.raises(StoreError, match="malformed"):
            Driver(store, print, tasks_at_once=2, _ray_is_up=True).serve(lambda: False)
        (task,) = queries.tasks(store, job_id)
    assert (task.state, task.attempts) == ("queued", 0)
