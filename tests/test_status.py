"""What `raymsa list` and `raymsa status` say, and that they stay quick in a large store."""

import itertools
import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner
from sqlalchemy import event, update

from raymsa import orders, queue
from raymsa.cli import main
from raymsa.cli.columns import cells, columns, sentence
from raymsa.errors import NotFound, UsageError
from raymsa.home import driver_lock, run_dir
from raymsa.report import rows
from raymsa.report import status as report
from raymsa.report.evidence import evidence
from raymsa.report.page_words import findings
from raymsa.store import Store, overview, queries, records, tables
from raymsa.store.queries import finding
from raymsa.store.states import RANKS, state_of
from raymsa.supervise import alone
from tests import made_up_runs
from tests.stores import BACKENDS, add_runs, entry, fresh_url, put


@pytest.fixture(params=BACKENDS)
def store(request, tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "raymsa"))
    with fresh_url(request.param, tmp_path) as url, Store.open(url) as opened:
        yield opened


def set_task(store: Store, job_id: str, **values) -> None:
    with store.write() as connection:
        connection.execute(update(tables.tasks).where(tables.tasks.c.job_id == job_id).values(values))


def set_run(store: Store, run_id: str, **values) -> None:
    with store.write() as connection:
        connection.execute(update(tables.runs).where(tables.runs.c.id == run_id).values(values))


def waits(store: Store, job_id: str) -> dict[str, str]:
    return report.status(store, job_id).waits


def running(store: Store, *run_ids: str) -> str:
    """A job whose task runs, with these runs in it."""
    job_id = put(store)
    task = queue.claim(store, "gpu1:1", 60)
    add_runs(store, job_id, *run_ids)
    for run_id in run_ids:
        set_run(store, run_id, task_id=task.id)
    return job_id


# What a job waits for


def test_a_job_that_nobody_serves_is_told_what_to_type(store) -> None:
    job_id = put(store)
    assert re.match(r"a driver, since \d+s", waits(store, job_id)["runs"])
    set_task(store, job_id, created_at=time.time() - 60)
    assert waits(store, job_id) == {"runs": "a driver, and none serves the queue: raymsa work"}
    with alone(lambda other: False):
        assert "serves this machine" in waits(store, job_id)["runs"]
    assert driver_lock().exists()
    assert "none serves the queue" in waits(store, job_id)["runs"]


def test_a_job_behind_others_knows_who_is_busy_and_how_many_come_first(store) -> None:
    first = put(store)
    queue.claim(store, "gpu1:1", 60)
    put(store)
    put(store, priority=3)
    late = put(store)
    assert waits(store, late)["runs"] == f"a free driver: gpu1:1 does runs of job {first}; 2 tasks are before it"


def test_a_job_waits_for_another_and_the_state_of_that_says_what_to_do(store) -> None:
    first = put(store, "prep")
    after = [task.id for task in queries.tasks(store, first)]
    late = put(store, after=after)
    assert waits(store, late)["runs"] == f"runs of job {first} (prep), which is queued"
    orders.pause(store, first, "ada")
    assert waits(store, late)["runs"] == f"runs of job {first} (prep), which is paused: raymsa resume {first}"
    assert waits(store, first)["runs"] == f"somebody to go on with it: raymsa resume {first}"
    orders.cancel(store, first, "ada")
    assert f"raymsa retry {first}" in waits(store, late)["runs"]


def test_a_task_waits_for_the_one_before_it_in_its_job(store) -> None:
    job_id = put(store, tasks=1)
    with store.write() as connection:
        row = connection.execute(tables.tasks.select()).one()._mapping
        connection.execute(tables.tasks.insert().values({**row, "id": row["id"] + 1, "seq": 1, "kind": "train"}))
    assert waits(store, job_id)["train"] == "runs of this job"
    set_task(store, job_id, state="failed")
    set_task_state = update(tables.tasks).where(tables.tasks.c.kind == "train").values(state="queued")
    with store.write() as connection:
        connection.execute(set_task_state)
    assert waits(store, job_id)["train"] == "runs of this job, which is failed"


def test_two_tasks_of_one_kind_are_told_apart(store) -> None:
    assert list(waits(store, put(store, tasks=2))) == ["runs 1", "runs 2"]


def test_a_retry_at_a_time_is_told_with_the_cause_and_how_often(store) -> None:
    job_id = put(store)
    task = queue.claim(store, "elsewhere:1", 60)
    queue.fail(store, task, "no space left", "disk", 120)
    found = report.status(store, job_id)
    assert re.search(r"its next try at (\d{4}-\d\d-\d\d )?\d\d:\d\d, in (1m[345]|2m0)\ds", found.waits["runs"])
    (failure,) = found.failures
    assert (failure.cause, failure.words, failure.times) == ("disk", "no space was left on a disk", 1)
    assert failure.again_at == pytest.approx(time.time() + 120, abs=30)
    assert failure.log_at == "its log is on elsewhere, not here"


def test_a_driver_that_is_silent_is_not_shown_as_working(store) -> None:
    job_id = put(store)
    queue.claim(store, "gpu1:1", 60)
    assert waits(store, job_id) == {}
    set_task(store, job_id, lease_until=time.time() - 180)
    assert "gpu1:1 is silent, its lease ended 3m0" in waits(store, job_id)["runs"]


def test_what_was_asked_for_and_has_not_happened_yet_is_told(store) -> None:
    job_id = put(store)
    queue.claim(store, "gpu1:1", 60)
    orders.cancel(store, job_id, "ada")
    assert waits(store, job_id) == {"runs": "its end: cancelled was asked for"}


def test_runs_wait_for_a_device_a_model_or_their_next_try(store) -> None:
    job_id = running(store, "a", "b", "c")
    records.record_steps(store, "b", [])
    set_run(store, "b", place="gpu1 GPU 0")
    records.fail_run(store, "c", "the worker died", "lost", 300)
    found = waits(store, job_id)
    assert found["a"] == "a free device"
    assert found["b"] == "its model, which is loaded on gpu1 GPU 0"
    assert found["c"].startswith("its next try at ")


# How long still


def run_row(store: Store, job_id: str, run_id: str, state: str, **values) -> None:
    add_runs(store, job_id, run_id)
    set_run(store, run_id, state=state, **values)


def test_the_time_since_a_run_was_heard_is_taken_off_what_it_said(store) -> None:
    job_id = put(store)
    now = time.time()
    run_row(store, job_id, "a", "running", left_s=100.0, heard_at=now - 30, started_at=now - 100)
    left, words = report.rest(queries.runs(store, job_id), 1, now)
    assert (left, words) == (70.0, "about 1m10s of training left")


def test_the_rest_of_a_job_supposes_that_the_others_take_as_long_and_says_so(store) -> None:
    job_id = put(store)
    now = time.time()
    run_row(store, job_id, "a", "done", wall_s=300.0)
    run_row(store, job_id, "b", "running", left_s=100.0, heard_at=now, started_at=now - 200)
    left, words = report.rest(queries.runs(store, job_id), 4, now)
    assert left == 100 + 2 * 300
    assert "if the 2 not begun take 5m00s like the others, 1 at a time" in words


def test_nothing_is_guessed_when_nothing_is_known(store) -> None:
    job_id = put(store)
    run_row(store, job_id, "a", "running", started_at=time.time())
    assert report.rest(queries.runs(store, job_id), 4, time.time()) == (None, "")
    assert report.rest([], 4, time.time()) == (None, "")


# Failures


def test_a_failed_run_shows_its_cause_in_words_and_the_last_lines_of_its_log(store) -> None:
    job_id = running(store, "a")
    folder = run_dir("a")
    folder.mkdir(parents=True)
    (folder / "log.txt").write_text("".join(f"line {n}\n" for n in range(100_000)))
    records.fail_run(store, "a", "step 3: the loss is NaN", "diverged")
    (failure,) = report.status(store, job_id).failures
    assert failure.words == "the loss was not a number"
    assert failure.log == [f"line {n}" for n in range(99_992, 100_000)]
    assert failure.log_at == str(folder / "log.txt")


def test_of_many_failed_runs_the_first_logs_are_read_and_of_the_others_it_is_said_where_they_are(
    store, monkeypatch
) -> None:
    monkeypatch.setattr(report, "LOGS", 1)
    job_id = running(store, "a", "b")
    for run_id in "ab":
        run_dir(run_id).mkdir(parents=True, exist_ok=True)
        (run_dir(run_id) / "log.txt").write_text("last words\n")
        records.fail_run(store, run_id, "the loss is NaN", "diverged")
    first, second = report.status(store, job_id).failures
    assert (first.log, second.log) == (["last words"], [])
    assert second.log_at == str(run_dir("b") / "log.txt")


def test_status_prints_all_of_it_and_json_holds_all_of_it(store, monkeypatch) -> None:
    import json

    job_id = running(store, "a", "b")
    records.start_run(store, "a", steps_total=10)
    records.record_steps(store, "a", [entry(4, {"loss": 1.0})], left_s=30.0, place="gpu1 GPU 0")
    records.fail_run(store, "b", "boom [bold]", "fault")
    set_task(store, job_id, said="epoch 1/2", deadline=time.time() + 3600)
    words = ["status", job_id, "--store", store.secret_url()]
    shown = CliRunner().invoke(main, words).stdout
    for part in (f"job {job_id} (demo): running", "4/10", "gpu1 GPU 0", "runs: epoch 1/2", "in 59m", "boom [bold]"):
        assert part in shown, shown
    assert "b failed: raymsa or a library broke (fault)" in shown
    said = json.loads(CliRunner().invoke(main, [*words, "--json"]).stdout)
    assert {"job", "tasks", "runs", "events", "waits", "left_s", "failures"} <= said.keys()
    assert said["failures"][0]["error"] == "boom [bold]"


def test_valid_has_the_decimals_and_the_unit_of_the_tables(store) -> None:
    job_id = running(store, "a", "b")
    records.start_run(store, "a", steps_total=10)
    records.record_steps(store, "a", [entry(4, {"loss": 1.0})], valid_error=0.52437)
    found = report.status(store, job_id)
    assert (rows.runs(found)[0][7], rows.runs(found)[1][7]) == ("valid MAE", "0.524")
    classes = {"dataset": {"task": {"kind": "classification"}}}
    assert rows.valid_heading(classes) == "valid weighted F1 (%)"
    assert rows.valid(replace(found.runs[0], spec=classes)) == "47.6"


def test_runs_of_a_finished_job_that_the_store_does_not_hold_are_said(store) -> None:
    spec = made_up_runs.job_spec()
    job_id = made_up_runs.submit(store, spec)
    made_up_runs.finish(store, job_id, spec, made_up_runs.small(4))
    assert report.status(store, job_id).not_here == 0
    with store.write() as connection:
        for table in (tables.predictions, tables.finals, tables.steps):
            connection.execute(table.delete().where(table.c.run_id != f"{job_id}-disc-1"))
        connection.execute(tables.runs.delete().where(tables.runs.c.id != f"{job_id}-disc-1"))
    assert report.status(store, job_id).not_here == 3
    shown = CliRunner().invoke(main, ["status", job_id, "--store", store.secret_url()]).stdout
    assert "3 of 4 runs are not in this store" in shown
    assert "1 of 4 runs have results; 3 of them are not in this store." in next(findings(evidence(store, job_id)))


# Lists


def test_the_states_of_a_list_are_those_of_the_queue(store) -> None:
    made = {}
    for states in itertools.combinations_with_replacement(RANKS, 2):
        job_id = put(store, tasks=2)
        made[job_id] = state_of(states)
        for task, state in zip(queries.tasks(store, job_id), states, strict=True):
            with store.write() as connection:
                connection.execute(update(tables.tasks).where(tables.tasks.c.id == task.id).values(state=state))
    assert {line.id: line.state for line in overview.listed(store, everything=True).jobs} == made
    assert sum(overview.job_counts(store).values()) == len(made)


def test_what_is_next_is_what_a_driver_is_given(store) -> None:
    first = put(store)
    put(store, tasks=2, priority=1)
    put(store, after=[task.id for task in queries.tasks(store, first)])
    later = put(store, priority=9)
    set_task(store, later, not_before=time.time() + 60)
    expected = [waiting.task.id for waiting in overview.next_tasks(store, 10)]
    assert [overview.before(store, queries.tasks(store, first)[0])] == [expected.index(1)]
    claimed = []
    while (task := queue.claim(store, "d", 60)) is not None:
        claimed.append(task.id)
    assert claimed == expected


def test_a_task_waits_since_the_one_before_it_was_done(store) -> None:
    job_id = put(store, tasks=2)
    assert overview.ready_since(store) == pytest.approx(time.time(), abs=30)
    set_task(store, job_id, created_at=1000.0)
    assert overview.ready_since(store) == 1000.0
    queue.finish(store, queue.claim(store, "d", 60))
    assert overview.ready_since(store) == pytest.approx(time.time(), abs=30)
    queue.claim(store, "d", 60)
    assert overview.ready_since(store) is None


def test_a_list_is_short_and_says_what_it_left_out(store) -> None:
    jobs = [put(store, f"job{n}") for n in range(30)]
    for job_id in jobs[1:]:
        orders.cancel(store, job_id, "ada")
    found = overview.listed(store)
    assert [line.id for line in found.jobs] == [jobs[0], *jobs[10:]]
    assert found.hidden == {"cancelled": 9}
    assert len(overview.listed(store, everything=True).jobs) == 30
    assert [line.id for line in overview.listed(store, states=["queued"]).jobs] == [jobs[0]]


def test_a_list_takes_three_statements_however_many_jobs_there_are(store) -> None:
    for _ in range(5):
        put(store)
    said = []
    event.listen(store.engine, "before_cursor_execute", lambda *call: said.append(call[2]))
    overview.listed(store)
    assert sum(statement.startswith("SELECT") for statement in said) == 3


@pytest.mark.parametrize("word", ["%", "_", "[0-9a-f]", "*", "A", "\U0010ffff"])
def test_the_start_of_an_id_is_taken_literally(store, word: str) -> None:
    put(store, "other")
    with pytest.raises(NotFound):
        queries.job(store, word)


def test_the_start_of_an_id_or_a_name_is_found(store) -> None:
    job_id = put(store, "x")
    run_ids = [f"{job_id}-disc-1", f"{job_id}-disc-11"]
    add_runs(store, job_id, *run_ids)
    assert {queries.job(store, word).id for word in (job_id, job_id[:3], "x")} == {job_id}
    assert queries.run(store, run_ids[0]).id == run_ids[0]
    with pytest.raises(UsageError, match="could be"):
        queries.run(store, f"{job_id}-d")
    put(store, "x")
    with pytest.raises(UsageError, match=rf"could be {job_id} \(x\), "):
        queries.job(store, "x")


def test_the_start_of_an_id_is_looked_up_in_the_index(tmp_path: Path) -> None:
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store, store.read() as connection:
        statement = finding.starting(store, tables.jobs.c.id, "ab").compile(store.engine)
        plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", ("ab", "ac")).all()
    assert "SEARCH jobs USING COVERING INDEX" in str(plan)


# Columns


def test_a_table_that_is_too_wide_goes_on_below_and_cuts_nothing() -> None:
    rows = [("run", "where", "left"), ("1a2b3c4d-disc-1111", "machine GPU 0", "10m")]
    assert columns(rows, None) == ["run                 where          left", "1a2b3c4d-disc-1111  machine GPU 0  10m"]
    narrow = columns(rows, 36)
    assert max(map(len, narrow)) <= 36
    assert narrow == ["run                 where", "    left", "1a2b3c4d-disc-1111  machine GPU 0", "    10m"]
    assert columns(rows, 5)[0] == "run"


def test_columns_of_wide_characters_stand_below_each_other() -> None:
    lines = columns([("name", "state"), ("情感分析", "done"), ("a", "done")], None)
    assert len({cells(line[: line.index("d")]) for line in lines[1:]}) == 1


def test_a_sentence_breaks_no_word() -> None:
    text = "job 1a2b3c4d-e waits for it: raymsa resume 1a2b3c4d-e"
    assert " ".join(line.strip() for line in sentence(text, 12)) == text
    assert sentence(text, None) == [text]
