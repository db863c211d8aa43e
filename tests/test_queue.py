"""The queue: each task is done once, whatever dies, and the log tells all of it."""

import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule
from sqlalchemy import Connection, event

from raymsa import orders, queue
from raymsa.errors import LeaseLost, NotFound, StoreError, UsageError
from raymsa.orders import Ended
from raymsa.store import Store, queries
from raymsa.store.queries import Task
from raymsa.store.states import state_of
from tests import stores
from tests.stores import put

LEASE_S = 30.0


@pytest.fixture(params=stores.BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with stores.fresh_url(request.param, tmp_path) as fresh:
        yield fresh


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


def claim(store: Store, driver: str = "ann", now: float | None = None) -> Task:
    task = queue.claim(store, driver, LEASE_S, now=now)
    assert task is not None
    return task


def states(store: Store, job_id: str) -> list[str]:
    return [task.state for task in queries.tasks(store, job_id)]


def story(store: Store, job_id: str) -> list[str]:
    return [f"{event.what}: {event.detail} ({event.who})" for event in queries.events(store, job_id)]


# Claiming


def test_eight_drivers_claim_200_tasks_and_none_twice(store: Store, url: str, tmp_path: Path) -> None:
    for _ in range(200):
        put(store)
    go = tmp_path / "go"
    taken = stores.outputs([stores.start("claim_until_empty", url, go, f"driver{n}") for n in range(8)], go)
    everything = [task_id for mine in taken for task_id in mine]
    assert sorted(everything) == [task.id for task in queries.tasks(store)]
    assert {(task.state, task.attempts) for task in queries.tasks(store)} == {("done", 1)}


def test_tasks_come_by_priority_and_then_as_they_were_submitted(store: Store) -> None:
    first, second, urgent = put(store), put(store), put(store, priority=5)
    assert [claim(store).job_id for _ in range(3)] == [urgent, first, second]
    assert queue.claim(store, "ann", LEASE_S) is None


def test_a_task_waits_for_the_earlier_ones_of_its_job(store: Store) -> None:
    job_id = put(store, tasks=2)
    other = put(store)
    first = claim(store)
    assert claim(store).job_id == other  # not the second task of the first job
    queue.finish(store, first)
    assert claim(store).payload == {"number": 1}
    assert queries.tasks(store, job_id)[1].state == "running"


def test_a_driver_can_serve_one_job_only(store: Store) -> None:
    put(store)
    mine = put(store)
    task = queue.claim(store, "ann", LEASE_S, job_id=mine)
    assert task is not None and task.job_id == mine
    assert queue.claim(store, "ann", LEASE_S, job_id=mine) is None


def test_a_job_without_tasks_is_refused(store: Store) -> None:
    with pytest.raises(UsageError, match="nothing to do"):
        put(store, tasks=0)
    assert queries.jobs(store) == []


# Leases


def test_a_dead_drivers_task_is_claimed_again(store: Store, url: str) -> None:
    put(store)
    driver = stores.start("claim_and_hang", url, "dead", 4.0)
    assert driver.stdout is not None
    task_id = int(driver.stdout.readline())
    driver.kill()  # -9
    driver.communicate()
    assert queue.claim(store, "ann", LEASE_S) is None  # its lease still holds
    time.sleep(4.1)
    task = claim(store)
    assert (task.id, task.attempts, task.driver) == (task_id, 2, "ann")
    assert "queued: driver dead was silent for longer than its lease (ann)" in story(store, task.job_id)


def test_a_renewed_lease_is_not_taken_away(store: Store) -> None:
    put(store)
    task = claim(store, now=0)
    for now in (20, 40, 60):
        queue.renew(store, task, LEASE_S, now=now)
    assert queue.claim(store, "bob", LEASE_S, now=89) is None
    assert claim(store, "bob", now=91).attempts == 2


@pytest.mark.parametrize("late", ["renew", "finish", "fail", "release"])
def test_a_driver_that_was_silent_too_long_is_told_it_lost_the_lease(store: Store, late: str) -> None:
    job_id = put(store)
    old = claim(store, "ann", now=0)
    new = claim(store, "ann", now=LEASE_S + 1)  # by the same name, after a restart
    arguments = {"renew": (LEASE_S,), "fail": ("broke",)}.get(late, ())
    with pytest.raises(LeaseLost, match=rf"task {old.id} \(runs\) of job {job_id} is running at ann"):
        getattr(queue, late)(store, old, *arguments)
    assert queries.tasks(store, job_id) == [new]


def test_nobody_ends_a_task_twice(store: Store) -> None:
    put(store)
    task = claim(store)
    queue.finish(store, task)
    with pytest.raises(LeaseLost, match="is done"):
        queue.fail(store, task, "broke")


def test_a_lease_that_ended_but_was_not_taken_can_still_be_renewed(store: Store) -> None:
    put(store)
    task = claim(store, now=0)
    queue.renew(store, task, LEASE_S, now=1000)  # a laptop that slept
    assert queue.claim(store, "bob", LEASE_S, now=1001) is None


def test_a_released_task_keeps_its_place_and_its_attempts(store: Store) -> None:
    first = put(store)
    put(store)
    queue.release(store, claim(store))
    again = claim(store)
    assert (again.job_id, again.attempts) == (first, 1)


def test_a_task_whose_drivers_all_died_is_given_up(store: Store) -> None:
    job_id = put(store, tasks=2)
    for attempt in range(queue.MAX_ATTEMPTS):
        assert claim(store, now=100.0 * attempt).attempts == attempt + 1
    assert queue.claim(store, "bob", LEASE_S, now=1000) is None
    task = queries.tasks(store, job_id)[0]
    assert (task.state, task.finished_at) == ("failed", 1000)
    assert task.error == "gave up after 5 attempts: driver ann was silent for longer than its lease"
    assert queries.state(store, job_id) == "failed"


# Cancel and retry


def test_cancel_ends_what_waits_and_asks_what_runs(store: Store) -> None:
    job_id = put(store, tasks=3)
    task = claim(store)
    assert orders.cancel(store, job_id, "eve") == Ended(ended=2, asked=1)
    assert states(store, job_id) == ["running", "cancelled", "cancelled"]
    assert orders.cancel(store, job_id, "eve") == Ended(ended=0, asked=0)
    assert queue.renew(store, task, LEASE_S) == "cancelled"
    assert queue.release(store, task) == "cancelled"
    assert states(store, job_id) == ["cancelled"] * 3
    assert queue.claim(store, "ann", LEASE_S) is None


def test_a_driver_that_stops_in_order_has_time_to(store: Store) -> None:
    job_id = put(store)
    task = claim(store, now=0)
    orders.cancel(store, job_id, "eve", now=1)
    assert queue.renew(store, task, LEASE_S, now=29) == "cancelled"
    assert queue.claim(store, "bob", LEASE_S, now=58) is None
    assert queue.release(store, task, now=58) == "cancelled"


@pytest.mark.parametrize("cancelled_at", [5, LEASE_S + 5])
def test_a_dead_drivers_task_can_be_cancelled(store: Store, cancelled_at: float) -> None:
    job_id = put(store)
    claim(store, "dead", now=0)
    orders.cancel(store, job_id, "eve", now=cancelled_at)
    assert queue.claim(store, "bob", LEASE_S, now=LEASE_S + 6) is None
    assert states(store, job_id) == ["cancelled"]


def test_cancelling_what_is_over_changes_nothing(store: Store) -> None:
    job_id = put(store)
    queue.finish(store, claim(store))
    assert orders.cancel(store, job_id, "eve") == Ended(0, 0)
    assert states(store, job_id) == ["done"]


def test_retry_queues_again_what_failed_and_was_cancelled_but_not_what_is_done(store: Store) -> None:
    job_id = put(store, tasks=4)
    queue.finish(store, claim(store))
    queue.fail(store, claim(store), "out of memory")
    orders.cancel(store, job_id, "eve")
    assert states(store, job_id) == ["done", "failed", "cancelled", "cancelled"]
    assert orders.retry(store, job_id, "eve") == 3
    assert states(store, job_id) == ["done", "queued", "queued", "queued"]
    task = claim(store)
    assert (task.seq, task.attempts, task.error, task.asked) == (1, 1, None, None)


def test_retry_of_what_runs_waits_or_is_done_is_refused(store: Store) -> None:
    job_id = put(store)
    with pytest.raises(UsageError, match="no failed or cancelled task to retry; it is queued"):
        orders.retry(store, job_id, "eve")
    task = claim(store)
    with pytest.raises(UsageError, match="still runs"):
        orders.retry(store, job_id, "eve")
    queue.finish(store, task)
    with pytest.raises(UsageError, match="it is done"):
        orders.retry(store, job_id, "eve")


def test_a_job_that_is_not_there_is_not_found(store: Store) -> None:
    for change in (orders.cancel, orders.pause, orders.resume, orders.retry, orders.remove):
        with pytest.raises(NotFound, match="no job 'abc'"):
            change(store, "abc", "eve")


def test_a_jobs_state_follows_from_its_tasks() -> None:
    for expected, found in {
        "failed": ["done", "failed", "cancelled"],
        "cancelled": ["done", "cancelled", "queued"],
        "done": ["done", "done"],
        "running": ["done", "running", "queued"],
        "paused": ["done", "paused", "queued"],
        "queued": ["done", "queued"],
    }.items():
        assert state_of(found) == expected


def test_the_log_tells_what_happened_when_and_by_whom(store: Store) -> None:
    job_id = put(store, now=1)
    queue.release(store, claim(store, "ann", now=2), now=3)
    queue.fail(store, claim(store, "bob", now=4), "NaN loss at step 7", now=5)
    orders.retry(store, job_id, "ada", now=6)
    claim(store, "cid", now=7)
    orders.cancel(store, job_id, "ada", now=8)
    queue.finish(store, claim_of(store, job_id), now=9)
    assert [event.at for event in queries.events(store, job_id)] == list(range(1, 10))
    assert story(store, job_id) == [
        "queued: submitted (ada)",
        "running: attempt 1 of 5 (ann)",
        "queued: released (ann)",
        "running: attempt 1 of 5 (bob)",
        "failed: fault: NaN loss at step 7 (bob)",
        "queued: retry (ada)",
        "running: attempt 1 of 5 (cid)",
        "cancelled asked for:  (ada)",
        "done:  (cid)",
    ]


def claim_of(store: Store, job_id: str) -> Task:
    return next(task for task in queries.tasks(store, job_id) if task.state == "running")


# Anything, in any order

DRAWN = {  # the states of queue.py's docstring
    "queued": {"running", "cancelled", "paused", "failed"},
    "running": {"queued", "done", "failed", "cancelled", "paused"},
    "paused": {"queued", "cancelled", "failed"},
    "failed": {"queued"},
    "cancelled": {"queued"},
    "done": set(),
}


class QueueMachine(RuleBasedStateMachine):
    """Three drivers, some of them slow or killed, and a person who changes her mind."""

    held = Bundle("held")
    job_ids = Bundle("job_ids")

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.folder = TemporaryDirectory()
        self.store = Store.open(f"{self.folder.name}/store.db")

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def tick(self, seconds: float = 0.001) -> float:
        self.now += seconds
        return self.now

    def starts(self, task_id: int) -> int:
        told = queries.events(self.store)
        return sum(event.task_id == task_id and event.what == "running" for event in told)

    @rule(target=job_ids, tasks=st.integers(1, 3), priority=st.integers(0, 1), deadline_s=st.none() | st.just(40.0))
    def submit(self, tasks: int, priority: int, deadline_s: float | None) -> str:
        about = {"tasks": tasks, "priority": priority, "deadline_s": deadline_s}
        return put(self.store, **about, max_attempts=2, now=self.tick())

    @rule(target=held, driver=st.sampled_from("abc"))
    def claim(self, driver: str) -> object:
        task = queue.claim(self.store, driver, 10, now=self.tick())
        return multiple() if task is None else (task, self.starts(task.id))

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.tick(seconds)

    @rule(claimed=held, action=st.sampled_from(["renew", "finish", "fail", "fail for now", "release"]))
    def act(self, claimed: tuple[Task, int], action: str) -> None:
        task, start = claimed
        row = next(row for row in queries.tasks(self.store) if row.id == task.id)
        name, *arguments = {
            "renew": ("renew", 10),
            "fail": ("fail", "broke"),
            "fail for now": ("fail", "x", "lost", 5.0),
        }.get(action, (action,))
        holds = row.state == "running" and self.starts(task.id) == start
        try:
            said = getattr(queue, name)(self.store, task, *arguments, now=self.tick())
        except LeaseLost:
            assert not holds
        else:
            assert holds
            assert action != "renew" or said in (row.asked, "deadline")

    @rule(driver=st.sampled_from("abc"))
    def is_known_to_be_dead(self, driver: str) -> None:
        queue.gone(self.store, driver, "it was killed", now=self.tick())
        assert not any(task.state == "running" and task.driver == driver for task in queries.tasks(self.store))

    @rule(job_id=job_ids)
    def cancel(self, job_id: str) -> None:
        orders.cancel(self.store, job_id, "eve", now=self.tick())
        assert not {"queued", "paused"} & set(states(self.store, job_id))

    @rule(job_id=job_ids)
    def pause(self, job_id: str) -> None:
        orders.pause(self.store, job_id, "eve", now=self.tick())
        assert "queued" not in states(self.store, job_id)

    @rule(job_id=job_ids)
    def resume(self, job_id: str) -> None:
        orders.resume(self.store, job_id, "eve", now=self.tick())
        assert "paused" not in states(self.store, job_id)

    @rule(job_id=job_ids)
    def retry(self, job_id: str) -> None:
        try:
            orders.retry(self.store, job_id, "eve", now=self.tick())
        except UsageError:
            return
        assert not {"failed", "cancelled"} & set(states(self.store, job_id))

    @rule(claimed=consumes(held))
    def die(self, claimed: tuple[Task, int]) -> None:
        """The driver forgets its task."""

    @invariant()
    def the_log_leads_to_each_tasks_state(self) -> None:
        told = queries.events(self.store)
        for task in queries.tasks(self.store):
            path = [event.what for event in told if event.task_id == task.id and event.what in DRAWN]
            assert path[0] == "queued" and path[-1] == task.state, path
            assert all(after in DRAWN[before] for before, after in pairwise(path))

    @invariant()
    def a_task_is_what_its_state_says(self) -> None:
        for task in queries.tasks(self.store):
            assert (task.state == "running") == (task.lease_until is not None)
            assert (task.state in ("done", "failed", "cancelled")) == (task.finished_at is not None)
            assert task.asked is None or task.state in ("running", "done", "failed")
            assert task.error is not None or task.state != "failed"
            assert task.error is None or task.state != "running"
            assert task.attempts <= task.max_attempts

    @invariant()
    def tasks_of_a_job_run_in_order(self) -> None:
        rows = queries.tasks(self.store)
        for task in rows:
            if task.state == "running":
                assert all(r.state == "done" for r in rows if r.job_id == task.job_id and r.seq < task.seq)


TestAnything = QueueMachine.TestCase
TestAnything.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)


def test_a_claim_reads_no_more_than_it_must(tmp_path: Path) -> None:
    """10,000 waiting tasks must not be read or sorted for each claim."""
    with Store.open(str(tmp_path / "store.db")) as store:
        put(store, tasks=2)
        said: list[tuple[str, Any]] = []
        event.listen(store.engine, "before_cursor_execute", lambda *about: said.append((about[2], about[3])))
        claim(store)
        with store.read() as connection:
            asked = [about for about in said if about[0].startswith(("SELECT", "UPDATE"))]
            plans = [connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}", given).all() for sql, given in asked]
    steps = [row.detail for plan in plans for row in plan]
    assert len(plans) == 2 and any("tasks USING INDEX ix_tasks_claim" in step for step in steps)
    assert not [step for step in steps if "SCAN" in step or "TEMP B-TREE" in step], steps


# Waiting for other jobs, later, and too late


def test_a_job_waits_for_the_tasks_it_is_after(store: Store) -> None:
    first = put(store, tasks=2)
    early = [task.id for task in queries.tasks(store, first)]
    late = put(store, priority=9, after=[early[0]])
    last = put(store, priority=9, after=early)
    assert claim(store).id == early[0] and queue.claim(store, "bob", LEASE_S) is None
    queue.finish(store, claim_of(store, first))
    assert claim(store).job_id == late
    assert claim(store).id == early[1]
    queue.fail(store, claim_of(store, first), "broke")
    assert queue.claim(store, "bob", LEASE_S) is None and states(store, last) == ["queued"]
    orders.retry(store, first, "eve")
    queue.finish(store, claim(store))
    assert claim(store).job_id == last


def test_a_task_that_is_tried_again_waits_first_and_not_for_ever(store: Store) -> None:
    job_id = put(store, max_attempts=2)
    task = claim(store, now=0)
    assert queue.fail(store, task, "node 7 is gone", "lost", 30.0, now=1) == "queued"
    assert queue.claim(store, "bob", LEASE_S, now=30) is None
    task = claim(store, now=32)
    assert (task.attempts, task.error, task.not_before) == (2, None, None)
    assert queue.fail(store, task, "node 8 is gone", "lost", 30.0, now=33) == "failed"
    assert queries.tasks(store, job_id)[0].cause == "lost"
    assert "queued: lost: node 7 is gone; again in 30 s (ann)" in story(store, job_id)


@pytest.mark.parametrize(("order", "state"), [(orders.cancel, "cancelled"), (orders.pause, "paused")])
def test_a_task_that_fails_after_it_was_asked_to_stop_is_not_tried_again(store: Store, order: Any, state: str) -> None:
    job_id = put(store, max_attempts=3)
    task = claim(store)
    order(store, job_id, "eve")
    assert queue.fail(store, task, "node 7 is gone", "lost", 0.0) == state
    (row,) = queries.tasks(store, job_id)
    assert (row.state, row.asked, row.finished_at is None) == (state, None, state == "paused")
    assert queue.claim(store, "bob", LEASE_S) is None
    assert story(store, job_id)[-1] == f"{state}: lost: node 7 is gone (ann)"


def test_what_is_not_done_by_its_deadline_has_failed(store: Store) -> None:
    job_id = put(store, tasks=2, deadline_s=100.0, now=0)
    task = claim(store, now=10)
    assert queue.renew(store, task, 500, now=99) is None
    assert queue.renew(store, task, 500, now=100) == "deadline"
    assert queue.claim(store, "bob", LEASE_S, now=101) is None
    assert [(t.state, t.cause) for t in queries.tasks(store, job_id)] == [("running", None), ("failed", "deadline")]


def test_a_paused_job_starts_nothing_until_it_is_resumed_and_keeps_its_place(store: Store) -> None:
    first = put(store, tasks=2)
    put(store)
    task = claim(store)
    assert orders.pause(store, first, "eve") == Ended(ended=1, asked=1)
    assert queue.renew(store, task, LEASE_S) == "paused" and queue.release(store, task) == "paused"
    assert states(store, first) == ["paused", "paused"]
    assert orders.resume(store, first, "eve") == 2
    assert claim(store).id == task.id


def test_a_driver_that_is_known_to_be_dead_gives_its_tasks_back_at_once(store: Store) -> None:
    job_id = put(store)
    claim(store, "dead:1")
    put(store)
    claim(store, "alive:2")
    assert queue.gone(store, "dead:1", "its process was killed") == 1
    assert claim(store, "bob").job_id == job_id
    assert "queued: its process was killed (dead:1)" in story(store, job_id)


def test_a_job_cannot_begin_to_wait_for_one_that_is_being_removed(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = put(store)
    early = [task.id for task in queries.tasks(store, job_id)]
    waiting = orders._waiting

    def somebody_submits_now(connection: Connection, removed: str) -> list[Any]:
        found = waiting(connection, removed)
        late.append(pool.submit(put, store, "late", after=early))
        wait(late, timeout=1)
        return found

    with ThreadPoolExecutor() as pool:
        late: list[Future[str]] = []
        monkeypatch.setattr(orders, "_waiting", somebody_submits_now)
        orders.remove(store, job_id, "eve")
        with pytest.raises(StoreError):
            late[0].result()
    assert queries.jobs(store) == []


def test_a_removed_job_leaves_its_story_and_nothing_else(store: Store) -> None:
    job_id = put(store)
    stores.add_runs(store, job_id, "r1")
    waiting = put(store, "later", after=[task.id for task in queries.tasks(store, job_id)])
    with pytest.raises(UsageError, match=f"{waiting} waits for it"):
        orders.remove(store, job_id, "eve")
    orders.remove(store, waiting, "eve")
    task = claim(store)
    with pytest.raises(UsageError, match="still runs"):
        orders.remove(store, job_id, "eve")
    queue.finish(store, task)
    assert orders.remove(store, job_id, "eve") == ["r1"]
    assert queries.jobs(store) == queries.tasks(store) == queries.runs(store) == []
    assert story(store, job_id)[-1] == "removed:  (eve)"
