"""The queue: each task is done once, whatever dies, and the log tells all of it."""

import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, multiple, rule

from raymsa import queue
from raymsa.errors import Cancelled, LeaseLost, NotFound, UsageError
from raymsa.queue import Stopped
from raymsa.store import Store, queries
from raymsa.store.queries import Task
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
    driver = stores.start("claim_and_hang", url, "dead", 1.0)
    assert driver.stdout is not None
    task_id = int(driver.stdout.readline())
    driver.kill()  # -9
    driver.communicate()
    assert queue.claim(store, "ann", LEASE_S) is None  # its lease still holds
    time.sleep(1.1)
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


@pytest.mark.parametrize("late", ["renew", "finish", "fail", "release", "cancelled"])
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
    assert queue.job_state(queries.tasks(store, job_id)) == "failed"


# Cancel and retry


def test_cancel_ends_what_waits_and_asks_what_runs(store: Store) -> None:
    job_id = put(store, tasks=3)
    task = claim(store)
    assert queue.cancel(store, job_id, "eve") == Stopped(cancelled=2, asked=1)
    assert states(store, job_id) == ["running", "cancelled", "cancelled"]
    assert queue.cancel(store, job_id, "eve") == Stopped(cancelled=0, asked=0)
    with pytest.raises(Cancelled, match="was cancelled"):
        queue.renew(store, task, LEASE_S)
    queue.cancelled(store, task)
    assert states(store, job_id) == ["cancelled"] * 3
    assert queue.claim(store, "ann", LEASE_S) is None


def test_a_driver_that_stops_in_order_has_time_to(store: Store) -> None:
    job_id = put(store)
    task = claim(store, now=0)
    queue.cancel(store, job_id, "eve", now=1)
    with pytest.raises(Cancelled):
        queue.renew(store, task, LEASE_S, now=29)
    assert queue.claim(store, "bob", LEASE_S, now=58) is None
    queue.cancelled(store, task, now=58)


def test_a_task_that_was_cancelled_and_is_released_does_not_run_again(store: Store) -> None:
    job_id = put(store)
    task = claim(store)
    queue.cancel(store, job_id, "eve")
    queue.release(store, task)
    assert states(store, job_id) == ["cancelled"]


@pytest.mark.parametrize("cancelled_at", [5, LEASE_S + 5])
def test_a_dead_drivers_task_can_be_cancelled(store: Store, cancelled_at: float) -> None:
    job_id = put(store)
    claim(store, "dead", now=0)
    queue.cancel(store, job_id, "eve", now=cancelled_at)
    assert queue.claim(store, "bob", LEASE_S, now=LEASE_S + 6) is None
    assert states(store, job_id) == ["cancelled"]


def test_cancelling_what_is_over_changes_nothing(store: Store) -> None:
    job_id = put(store)
    queue.finish(store, claim(store))
    assert queue.cancel(store, job_id, "eve") == Stopped(0, 0)
    assert states(store, job_id) == ["done"]


def test_retry_queues_again_what_failed_and_was_cancelled_but_not_what_is_done(store: Store) -> None:
    job_id = put(store, tasks=4)
    queue.finish(store, claim(store))
    queue.fail(store, claim(store), "out of memory")
    queue.cancel(store, job_id, "eve")
    assert states(store, job_id) == ["done", "failed", "cancelled", "cancelled"]
    assert queue.retry(store, job_id, "eve") == 3
    assert states(store, job_id) == ["done", "queued", "queued", "queued"]
    task = claim(store)
    assert (task.seq, task.attempts, task.error, task.cancel_requested) == (1, 1, None, False)


def test_retry_of_what_runs_waits_or_is_done_is_refused(store: Store) -> None:
    job_id = put(store)
    with pytest.raises(UsageError, match="no failed or cancelled task to retry; it is queued"):
        queue.retry(store, job_id, "eve")
    task = claim(store)
    with pytest.raises(UsageError, match="still runs"):
        queue.retry(store, job_id, "eve")
    queue.finish(store, task)
    with pytest.raises(UsageError, match="it is done"):
        queue.retry(store, job_id, "eve")


def test_a_job_that_is_not_there_is_not_found(store: Store) -> None:
    for change in (queue.cancel, queue.retry):
        with pytest.raises(NotFound, match="no job 'abc'"):
            change(store, "abc", "eve")


def test_a_jobs_state_follows_from_its_tasks(store: Store) -> None:
    put(store)
    (task,) = queries.tasks(store)
    for expected, found in {
        "failed": ["done", "failed", "cancelled"],
        "cancelled": ["done", "cancelled", "queued"],
        "done": ["done", "done"],
        "running": ["done", "running", "queued"],
        "queued": ["done", "queued"],
    }.items():
        assert queue.job_state([replace(task, state=state) for state in found]) == expected


def test_the_log_tells_what_happened_when_and_by_whom(store: Store) -> None:
    job_id = put(store, now=1)
    queue.release(store, claim(store, "ann", now=2), now=3)
    queue.fail(store, claim(store, "bob", now=4), "NaN loss at step 7", now=5)
    queue.retry(store, job_id, "ada", now=6)
    claim(store, "cid", now=7)
    queue.cancel(store, job_id, "ada", now=8)
    queue.finish(store, claim_of(store, job_id), now=9)
    assert [event.at for event in queries.events(store, job_id)] == list(range(1, 10))
    assert story(store, job_id) == [
        "queued: submitted (ada)",
        "running: attempt 1 of 5 (ann)",
        "queued: released (ann)",
        "running: attempt 1 of 5 (bob)",
        "failed: NaN loss at step 7 (bob)",
        "queued: retry (ada)",
        "running: attempt 1 of 5 (cid)",
        "cancel requested:  (ada)",
        "done:  (cid)",
    ]


def claim_of(store: Store, job_id: str) -> Task:
    return next(task for task in queries.tasks(store, job_id) if task.state == "running")


# Anything, in any order

DRAWN = {  # the states of queue.py's docstring
    "queued": {"running", "cancelled"},
    "running": {"queued", "done", "failed", "cancelled"},
    "failed": {"queued"},
    "cancelled": {"queued"},
    "done": set(),
}


class QueueMachine(RuleBasedStateMachine):
    """Three drivers, some of them slow, and a person who cancels and retries."""

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

    @rule(target=job_ids, tasks=st.integers(1, 3), priority=st.integers(0, 1))
    def submit(self, tasks: int, priority: int) -> str:
        return put(self.store, tasks=tasks, priority=priority, max_attempts=2, now=self.tick())

    @rule(target=held, driver=st.sampled_from("abc"))
    def claim(self, driver: str) -> object:
        task = queue.claim(self.store, driver, 10, now=self.tick())
        return multiple() if task is None else (task, self.starts(task.id))

    @rule(seconds=st.integers(1, 12))
    def wait(self, seconds: int) -> None:
        self.tick(seconds)

    @rule(claimed=held, action=st.sampled_from(["renew", "finish", "fail", "release", "cancelled"]))
    def act(self, claimed: tuple[Task, int], action: str) -> None:
        task, start = claimed
        row = next(row for row in queries.tasks(self.store) if row.id == task.id)
        arguments = {"renew": (10,), "fail": ("broke",)}.get(action, ())
        expected: type[Exception] | None = None
        if row.state != "running" or self.starts(task.id) != start:
            expected = LeaseLost
        elif action == "renew" and row.cancel_requested:
            expected = Cancelled
        try:
            getattr(queue, action)(self.store, task, *arguments, now=self.tick())
        except (LeaseLost, Cancelled) as error:
            assert type(error) is expected
        else:
            assert expected is None

    @rule(job_id=job_ids)
    def cancel(self, job_id: str) -> None:
        queue.cancel(self.store, job_id, "eve", now=self.tick())
        assert "queued" not in states(self.store, job_id)

    @rule(job_id=job_ids)
    def retry(self, job_id: str) -> None:
        try:
            queue.retry(self.store, job_id, "eve", now=self.tick())
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
            assert path[0] == "queued" and path[-1] == task.state
            assert all(after in DRAWN[before] for before, after in pairwise(path))

    @invariant()
    def a_task_is_what_its_state_says(self) -> None:
        for task in queries.tasks(self.store):
            assert (task.state == "running") == (task.lease_until is not None)
            assert (task.state in ("done", "failed", "cancelled")) == (task.finished_at is not None)
            assert not (task.state == "queued" and task.cancel_requested)
            assert (task.error is not None) == (task.state == "failed")
            assert task.attempts <= task.max_attempts

    @invariant()
    def tasks_of_a_job_run_in_order(self) -> None:
        rows = queries.tasks(self.store)
        for task in rows:
            if task.state == "running":
                assert all(r.state == "done" for r in rows if r.job_id == task.job_id and r.seq < task.seq)


TestAnything = QueueMachine.TestCase
TestAnything.settings = settings(max_examples=30, stateful_step_count=30, deadline=None, derandomize=True)


def test_the_claim_reads_its_index_and_sorts_nothing(tmp_path: Path) -> None:
    """10,000 waiting tasks must not be sorted for each claim."""
    with Store.open(str(tmp_path / "store.db")) as store, store.read() as connection:
        turn = queue._next_id(None).compile(store.engine, compile_kwargs={"literal_binds": True})
        plan = " / ".join(row.detail for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN SELECT {turn}"))
    assert "tasks USING" in plan and "ix_tasks_claim" in plan and "TEMP B-TREE" not in plan, plan
