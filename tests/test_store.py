"""The store: it opens at once for everybody, loses nothing, and says in one line what is wrong."""

import math
import os
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import func, make_url, select, text

from raymsa.errors import NotFound, StoreAway, StoreError, UsageError
from raymsa.store import Store, migrations, queries, records, tables
from tests import postgres, stores

needs_a_server = pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing())
PREDICTION = {"split": "test", "label": 1.0, "score": 0.5, "parsed": True, "in_range": True}


@pytest.fixture(params=stores.BACKENDS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with stores.fresh_url(request.param, tmp_path) as fresh:
        yield fresh


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store.open(url) as opened:
        yield opened


@pytest.fixture
def run_id(store: Store) -> str:
    stores.add_runs(store, stores.put(store), "r-disc-1")
    return "r-disc-1"


# Opening


def test_a_fresh_store_opens_for_eight_processes_at_once(url: str, tmp_path: Path) -> None:
    go = tmp_path / "go"
    writers = stores.outputs([stores.start("open_and_write", url, go) for _ in range(8)], go)
    with Store.open(url) as store:
        assert sorted(event.who for event in queries.events(store)) == sorted(map(str, writers))


def test_a_new_sqlite_store_is_in_wal_mode_and_leaves_no_other_file(tmp_path: Path) -> None:
    Store.open(f"sqlite:///{tmp_path}/deep/home/store.db").close()
    with sqlite3.connect(tmp_path / "deep/home/store.db") as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    assert {path.name for path in (tmp_path / "deep/home").iterdir()} == {"store.db", "store.db.lock"}


def test_what_a_killed_creator_left_behind_does_no_harm(tmp_path: Path) -> None:
    for name in ("store.db.new", "store.db.new-wal", "store.db.lock"):
        (tmp_path / name).write_bytes(b"half a store")
    with Store.open(f"sqlite:///{tmp_path}/store.db") as store:
        assert queries.jobs(store) == []


def test_an_empty_file_becomes_a_store(tmp_path: Path) -> None:
    (tmp_path / "store.db").touch()
    with Store.open(str(tmp_path / "store.db")) as store:  # a path will do for a URL
        assert queries.jobs(store) == []


def test_reading_where_nothing_was_submitted_makes_no_file(url: str, tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"no store at .*; nothing was submitted yet"):
        Store.open(url, create=False)
    assert list(tmp_path.iterdir()) == []
    Store.open(url).close()
    Store.open(url, create=False).close()


def test_opening_an_up_to_date_store_does_without_alembic(store: Store, url: str) -> None:
    code = "import sys; from raymsa.store import Store; Store.open(sys.argv[1]); assert 'alembic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, url], check=True, cwd=stores.ROOT)


def test_migrating_prints_and_logs_nothing(
    url: str, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    Store.open(url).close()
    assert capfd.readouterr() == ("", "")
    assert caplog.text == ""


def test_migrations_from_empty_give_the_tables_of_the_code(store: Store) -> None:
    options = {"version_table": migrations.VERSION_TABLE, "compare_type": True, "compare_server_default": True}
    with store.read() as connection:
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, tables.metadata) == []
        assert migrations.version(connection) == migrations.HEAD == max(migrations.known())


def test_a_store_of_the_first_schema_is_upgraded_and_keeps_what_it_holds(url: str) -> None:
    stores.first_schema(url)
    with Store.open(url) as store:
        run = queries.run(store, "r1")
        assert (run.valid_error, run.data_wait, run.failures) == (0.75, None, 0)
        prepare, train = queries.tasks(store)
        assert (prepare.asked, train.asked) == (None, "cancelled")
        with store.read() as connection:  # train waits for prepare, as it did
            assert connection.execute(tables.waits.select()).all() == [(train.id, prepare.id)]


# What is wrong, in one line


def test_a_store_of_a_newer_version_is_refused(store: Store, url: str) -> None:
    with store.write() as connection:
        connection.execute(text(f"UPDATE {migrations.VERSION_TABLE} SET version_num = '0999'"))
    with pytest.raises(StoreError, match=r"version 0999 .* knows versions up to 0003: upgrade raymsa"):
        Store.open(url)


def test_a_file_that_is_no_database_is_refused(tmp_path: Path) -> None:
    (tmp_path / "store.db").write_text("clips,labels\n" * 1000)
    _refused(f"sqlite:///{tmp_path}/store.db", "not a database .*name another with --store")


def test_somebody_elses_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "photos.db") as connection:
        connection.execute("CREATE TABLE photos (id)")
    connection.close()
    before = (tmp_path / "photos.db").read_bytes()
    _refused(f"sqlite:///{tmp_path}/photos.db", "holds other tables")
    assert (tmp_path / "photos.db").read_bytes() == before


def test_a_path_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    _refused(f"sqlite:///{tmp_path}/file/store.db", "a file is where a folder should be")
    _refused(f"sqlite:///{tmp_path}", "unable to open database file .*check that")


def test_a_folder_without_permission_is_refused(tmp_path: Path) -> None:
    user = os.geteuid()
    tmp_path.chmod(0o555)
    if user == 0:  # root may do anything: be somebody else for a moment
        os.seteuid(65534)
    try:
        _refused(f"sqlite:///{tmp_path}/store.db", "Permission denied")
    finally:
        os.seteuid(user)
        tmp_path.chmod(0o755)


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("sqlite://", "name a file"),
        ("sqlite:///:memory:", "name a file"),
        ("mysql://ada:s3cret@host/db", "a store is sqlite"),
        ("postgresql://ada:s3cret@host:port/db", "not a database URL"),
        ("postgresql://ada:s3cret@127.0.0.1:1/db", r"refused|pip install 'raymsa\[postgres\]'"),
        ("postgresql://127.0.0.1:1/db?user=ada&password=s3cret", r"refused|pip install 'raymsa\[postgres\]'"),
    ],
)
def test_a_wrong_url_is_refused_without_its_password(url: str, problem: str) -> None:
    assert "s3cret" not in _refused(url, problem)


def test_a_full_disk_and_a_read_only_store_are_told_and_nothing_is_half_written(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        with pytest.raises(StoreError, match=r"full \(free some disk space"), store.write() as connection:
            pages = connection.exec_driver_sql("PRAGMA page_count").scalar()
            connection.exec_driver_sql(f"PRAGMA max_page_count={pages}")
            for _ in range(100):
                records.insert_event(connection, "big", at=0.0, detail="x" * 10_000)
        with pytest.raises(StoreError, match=r"readonly database \(check"), store.write() as connection:
            connection.exec_driver_sql("PRAGMA query_only=1")
            records.insert_event(connection, "small", at=0.0)
        assert queries.events(store) == []


@needs_a_server
def test_a_server_that_stops_is_told_in_one_line_and_what_was_committed_is_there_when_it_is_back() -> None:
    with postgres.server() as server, postgres.database(server.url()) as url, Store.open(url) as store:
        records.add_event(store, "before")
        for how in ("fast", "immediate"):
            _told(_stop_in_the_middle, store, server, how)
            assert str(make_url(url).password) not in _told(records.add_event, store, "lost")
            server.start()
            records.add_event(store, f"after {how}")
        assert [event.what for event in queries.events(store)] == ["before", "after fast", "after immediate"]


def _stop_in_the_middle(store: Store, server: postgres.Server, how: Any) -> None:
    with store.write() as connection:
        records.insert_event(connection, "half", at=0.0)
        server.stop(how)
        records.insert_event(connection, "and half", at=0.0)


def _told(do: Callable[..., None], *arguments: Any) -> str:
    with pytest.raises(StoreError, match=r"connection .*check that the server runs") as caught:
        do(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@needs_a_server
def test_a_file_that_is_damaged_while_it_is_open_is_told_in_one_line(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store:
        stores.put(store)
        for path in tmp_path.glob("store.db*"):
            path.write_bytes(b"x" * path.stat().st_size)
        with pytest.raises(StoreError, match="not a database"):
            stores.put(store)


def test_a_store_that_keeps_all_connections_busy_is_waited_for(tmp_path: Path) -> None:
    with Store.open(str(tmp_path / "store.db")) as store, ExitStack() as held:
        store.engine.pool._timeout = 0.1
        with pytest.raises(StoreAway, match="QueuePool limit"):
            for _ in range(100):
                held.enter_context(store.read())


@needs_a_server
def test_of_two_that_wait_for_each_other_one_may_try_again() -> None:
    with postgres.database() as url, Store.open(url) as store:
        stores.add_runs(store, stores.put(store), "r1", "r2")
        both, errors = threading.Barrier(2), []

        def change(first: str, second: str) -> None:
            try:
                with store.write() as connection:
                    records._set(connection, first, step=1)
                    both.wait(10)
                    records._set(connection, second, step=1)
            except StoreError as error:
                errors.append(type(error))

        threads = [threading.Thread(target=change, args=order) for order in (("r1", "r2"), ("r2", "r1"))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert errors == [StoreAway]


def test_a_database_that_is_not_there_is_told_with_what_to_do() -> None:
    with postgres.database() as url:
        pass  # dropped again
    _refused(url, r"does not exist \(make it first: createdb")


def test_a_long_read_sees_one_moment_and_stops_nobody_from_writing(store: Store) -> None:
    records.add_event(store, "before")
    count = select(func.count()).select_from(tables.events)
    with store.snapshot() as connection:
        assert connection.execute(count).scalar() == 1
        records.add_event(store, "meanwhile")
        assert connection.execute(count).scalar() == 1
    with store.snapshot() as connection:
        assert connection.execute(count).scalar() == 2


def test_an_exception_of_the_caller_rolls_back_and_stays_what_it_is(store: Store) -> None:
    with pytest.raises(FileNotFoundError), store.write() as connection:
        records.insert_event(connection, "undone", at=0.0)
        raise FileNotFoundError("a checkpoint")
    assert queries.events(store) == []


def _refused(url: str, problem: str) -> str:
    with pytest.raises(StoreError, match=problem) as caught:
        Store.open(url)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Numbers


def test_what_was_not_a_number_comes_back_so_and_infinity_stays(store: Store, run_id: str) -> None:
    records.record_steps(store, run_id, [stores.entry(1, {"loss": math.nan, "lr": math.inf, "drop": -math.inf})])
    records.finish_run(
        store, run_id, {}, {"test": {"corr": math.nan, "mae": 0.5}}, [{**PREDICTION, "clip_id": "a", "score": math.nan}]
    )
    values = {step.name: step.value for step in queries.steps(store, run_id)}
    assert math.isnan(values["loss"]) and values["lr"] == math.inf and values["drop"] == -math.inf
    final = queries.finals(store, run_id)["test"]
    assert math.isnan(final["corr"]) and final["mae"] == 0.5 and "f1" not in final
    assert math.isnan(queries.predictions(store, run_id)[0].score)


def test_a_text_that_no_database_holds_is_stored_all_the_same(store: Store, run_id: str) -> None:
    odd, kept = "a\0b\udc80", "a\ufffdb?"
    records.finish_run(store, run_id, {}, {}, [{**PREDICTION, "clip_id": "one", "text": odd}])
    records.set_run_state(store, run_id, "failed", error=odd)
    assert queries.predictions(store, run_id)[0].text == queries.run(store, run_id).error == kept
    assert queries.events(store)[-1].detail == kept


def test_numbers_of_numpy_are_stored_as_numbers(store: Store, run_id: str) -> None:
    records.start_run(store, run_id, trainable_parameters=np.int64(7), valid_error=np.float32(0.5))
    records.record_steps(
        store, run_id, [{"step": np.int64(3), "epoch": np.int32(1), "values": {"loss": np.float32(0.25)}}]
    )
    row, (step,) = queries.run(store, run_id), queries.steps(store, run_id)
    assert (row.trainable_parameters, row.valid_error, row.step, row.epoch) == (7, 0.5, 3, 1)
    assert (step.step, step.value, step.epoch) == (3, 0.25, 1)


def test_nan_in_a_spec_is_refused(store: Store) -> None:
    with pytest.raises(StoreError, match="not JSON compliant"):
        records.create_runs(store, [{"id": "x", "spec": {"lr": math.nan}}])


# Runs


def test_a_run_that_is_finished_twice_is_recorded_once(store: Store, run_id: str) -> None:
    records.start_run(store, run_id, data_digest="abc", versions={"torch": "2.13.0"}, git_commit="f00")
    given = (
        {"peak_memory_bytes": 12_000_000_000, "valid_error": 0.6, "best_epoch": 3},
        {"valid": {"mae": 0.6}, "test": {"mae": 0.7, "corr": 0.8}},
        [{**PREDICTION, "clip_id": clip_id} for clip_id in ("-a", "b")],
        [{"name": "checkpoint", "path": "/runs/r/best", "bytes": 123}],
    )
    seen = []
    for _ in range(2):
        records.finish_run(store, run_id, *given)
        details = (queries.finals, queries.predictions, queries.artifacts)
        seen.append([queries.run(store, run_id), queries.events(store), *(read(store, run_id) for read in details)])
    assert seen[0] == seen[1]
    assert queries.finals(store, run_id) == given[1]
    assert [p.clip_id for p in queries.predictions(store, run_id, "test")] == ["-a", "b"]
    assert queries.run(store, run_id).state == "done"


def test_a_finish_that_breaks_records_nothing(store: Store, run_id: str) -> None:
    with pytest.raises(StoreError):
        records.finish_run(
            store, run_id, {"valid_error": 0.5}, {"test": {"mae": 0.7}}, [{"split": "test", "clip_id": "a"}]
        )
    assert queries.finals(store, run_id) == {}
    assert queries.run(store, run_id).state == "queued"


def test_creating_runs_again_leaves_what_they_have_done(store: Store, run_id: str) -> None:
    records.start_run(store, run_id)
    stores.add_runs(store, queries.run(store, run_id).job_id, run_id, "r-disc-2")
    assert [(row.id, row.attempts, row.state) for row in queries.runs(store)] == [
        ("r-disc-1", 1, "running"),
        ("r-disc-2", 0, "queued"),
    ]


def test_a_step_that_is_reported_again_is_replaced_and_progress_is_the_latest(store: Store, run_id: str) -> None:
    for step, epoch, loss in [(1, 0, 3.0), (2, 0, 2.0), (1, 0, 1.0)]:  # a run resumed before step 1
        records.record_steps(store, run_id, [{"step": step, "epoch": epoch, "values": {"loss": loss}}])
    assert [(s.step, s.value) for s in queries.steps(store, run_id)] == [(1, 1.0), (2, 2.0)]
    assert queries.run(store, run_id).step == 1


def test_cost_adds_up_over_attempts_and_an_error_is_cleared_by_the_next(store: Store, run_id: str) -> None:
    for wall_s in (10.0, 2.5):
        records.start_run(store, run_id)
        records.record_steps(store, run_id, [], (wall_s, wall_s / 2))
        records.fail_run(store, run_id, "out of memory")
    row = queries.run(store, run_id)
    assert (row.wall_s, row.device_s, row.attempts, row.error) == (12.5, 6.25, 2, "out of memory")
    records.start_run(store, run_id)
    assert queries.run(store, run_id).error is None
    told = [event.what for event in queries.events(store) if event.run_id == run_id]
    assert told == ["queued", "running", "failed", "running", "failed", "running"]


def test_a_run_that_is_not_there_is_not_found(store: Store) -> None:
    writes: list[Callable[[], None]] = [
        lambda: records.start_run(store, "nobody"),
        lambda: records.record_steps(store, "nobody", [stores.entry(1, {"loss": 1.0})]),
        lambda: records.finish_run(store, "nobody", {}, {}),
    ]
    for write in writes:
        with pytest.raises(NotFound, match="no run 'nobody'"):
            write()


def test_eight_writers_lose_nothing(store: Store, url: str, tmp_path: Path) -> None:
    ids = [f"r-{number}" for number in range(8)]
    stores.add_runs(store, stores.put(store), *ids)
    go = tmp_path / "go"
    stores.outputs([stores.start("write_steps", url, go, run_id, 50) for run_id in ids], go)
    assert [len(queries.steps(store, run_id)) for run_id in ids] == [100] * 8


# Names


def test_the_start_of_an_id_is_enough_if_it_is_the_only_one(store: Store) -> None:
    ids = [stores.put(store, f"job{number}") for number in range(30)]
    longer = next(i for i in ids if sum(other[0] == i[0] for other in ids) > 1)  # 30 ids, 16 first digits
    with pytest.raises(UsageError, match=rf"'{longer[0]}' could be .*{longer} \(job\d+\).*give more of the id"):
        queries.job(store, longer[0])
    assert queries.job(store, longer[:7]).id == longer
    for nobody in ("xyz", "", "%", ids[0].upper() + "0"):
        with pytest.raises(NotFound, match=f"no job '{nobody}'"):
            queries.job(store, nobody)


def test_a_job_can_be_named_if_only_one_has_the_name(store: Store) -> None:
    first = stores.put(store, "mosi_disc")
    assert queries.job(store, "mosi_disc").id == first
    second = stores.put(store, "mosi_disc")
    with pytest.raises(UsageError, match=f"'mosi_disc' could be {first} .*{second}"):
        queries.job(store, "mosi_disc")


def test_a_whole_run_id_wins_over_longer_ones(store: Store) -> None:
    stores.add_runs(store, stores.put(store), "ab-disc-1", "ab-disc-11", "ab-Disc-1")
    assert queries.run(store, "ab-disc-1").id == "ab-disc-1"
    assert queries.run(store, "ab-D").id == "ab-Disc-1"
    with pytest.raises(UsageError, match="could be ab-disc-1, ab-disc-11; give more"):
        queries.run(store, "ab-d")
