"""Checkpoints that can go: those of bad runs, of a search's other trials, and where done runs would have gone on."""

import json
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from raymsa import garbage, orders, queue
from raymsa.cli import main
from raymsa.proposals import confirming, enter
from raymsa.store import Store, queries, records, tables
from tests import searches, stores

KEPT = ["data.txt", "log.txt", "predictions.parquet"]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYMSA_STORE", raising=False)
    return tmp_path / "home"


@pytest.fixture
def store(home: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{home}/store.db") as opened:
        yield opened


def call(*words: str) -> Result:
    result = CliRunner().invoke(main, list(words), prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def checkpoint(home: Path, run_id: str, name: str, size: int = 1000) -> None:
    folder = home / "runs" / run_id / name
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter/weights").write_bytes(b"x" * size)
    (folder / "state.json").write_text("{}")


def run(store: Store, home: Path, job_id: str, name: str, state: str, valid_error: float | None = None) -> str:
    """A run in a state, with both checkpoints, what a killed process left, and what must stay."""
    run_id = f"{job_id}-{name}-1"
    about = {"id": run_id, "job_id": job_id, "task_id": None, "variant": name, "seed": 1, "group_key": name}
    records.create_runs(store, [{**about, "spec": {}, "spec_digest": "d"}])
    records.set_run_state(store, run_id, state)
    if valid_error is not None:
        records.update_run(store, run_id, valid_error=valid_error)
    for checkpoint_name in ("best-000010", "last-000020", ".last-000030.part"):
        checkpoint(home, run_id, checkpoint_name)
    for kept in KEPT:
        (home / "runs" / run_id / kept).write_text("stays")
    return run_id


def job(store: Store, state: str, spec: dict[str, Any] | None = None) -> str:
    """A job whose only task is in a state."""
    job_id = stores.put(store, "demo")
    with store.write() as connection:
        connection.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(spec=spec or {}))
    if state in ("done", "failed", "running"):
        task = queue.claim(store, "ann", 60, job_id)
        assert task is not None
        if state != "running":
            queue.finish(store, task) if state == "done" else queue.fail(store, task, "it broke")
    elif state in ("cancelled", "paused"):
        {"cancelled": orders.cancel, "paused": orders.pause}[state](store, job_id, "ann")
    assert [task.state for task in queries.tasks(store, job_id)] == [state]
    return job_id


def left(home: Path, run_id: str) -> list[str]:
    return sorted(path.name for path in (home / "runs" / run_id).iterdir() if path.name not in KEPT)


ALL = [".last-000030.part", "best-000010", "last-000020"]


@pytest.mark.parametrize("state", ["failed", "cancelled", "pruned"])
@pytest.mark.parametrize("over", ["done", "failed", "cancelled"])
def test_a_bad_run_of_a_job_that_is_over_loses_its_checkpoints_and_keeps_the_rest(
    state: str, over: str, store: Store, home: Path
) -> None:
    run_id = run(store, home, job(store, over), "disc", state)
    garbage.remove(store, garbage.find(store).waste)
    assert left(home, run_id) == []
    assert sorted(path.name for path in (home / "runs" / run_id).iterdir()) == KEPT


@pytest.mark.parametrize("state", ["failed", "cancelled", "pruned", "running", "queued"])
@pytest.mark.parametrize("pending", ["queued", "running", "paused"])
def test_while_a_task_is_still_to_be_done_a_run_that_is_not_done_keeps_everything(
    state: str, pending: str, store: Store, home: Path
) -> None:
    run_id = run(store, home, job(store, pending), "disc", state)
    assert garbage.find(store) == ([], [])
    assert left(home, run_id) == ALL


@pytest.mark.parametrize("job_state", ["running", "done", "failed"])
def test_a_done_run_keeps_its_best_and_loses_what_it_would_have_gone_on_from(
    job_state: str, store: Store, home: Path
) -> None:
    run_id = run(store, home, job(store, job_state), "disc", "done", 0.5)
    garbage.remove(store, garbage.find(store).waste)
    assert left(home, run_id) == ["best-000010"]


def search(store: Store, home: Path, tmp_path: Path, **block: Any) -> tuple[str, dict[str, float]]:
    """A search whose trials are done, their checkpoints beside them; its job's id, and every trial's MAE on valid."""
    job = searches.new_job(store, tmp_path, algorithm="random", trials=4, **block)
    made = searches.train(store, searches.proposals(store, job))
    for run_id in made:
        checkpoint(home, run_id, "best-000010")
    return job.id, {run_id: queries.finals(store, run_id)["valid"]["mae"] for run_id in made}


def finish(store: Store, job_id: str) -> None:
    while task := queue.claim(store, "ann", 60, job_id):
        queue.finish(store, task)


def kept(home: Path, run_ids: Iterable[str]) -> set[str]:
    return {run_id for run_id in run_ids if left(home, run_id)}


@pytest.mark.parametrize("keep", [0, 1, 2, 9])
def test_of_a_search_that_is_over_the_best_trials_on_valid_stay(
    keep: int, store: Store, home: Path, tmp_path: Path
) -> None:
    job_id, maes = search(store, home, tmp_path)
    garbage.remove(store, garbage.find(store, keep).waste)
    assert kept(home, maes) == set(maes)  # it is not over
    finish(store, job_id)
    garbage.remove(store, garbage.find(store, keep).waste)
    assert kept(home, maes) == set(sorted(maes, key=lambda run_id: maes[run_id])[:keep])


def test_the_best_are_those_by_what_the_search_looked_for(store: Store, home: Path, tmp_path: Path) -> None:
    job_id, maes = search(store, home, tmp_path, metric="valid_corr", direction="low")  # corr is -mae there
    finish(store, job_id)
    garbage.remove(store, garbage.find(store).waste)
    assert kept(home, maes) == {max(maes, key=lambda run_id: maes[run_id])}


def test_runs_that_confirm_a_search_all_stay(store: Store, home: Path, tmp_path: Path) -> None:
    job_id, maes = search(store, home, tmp_path, confirm={"top": 2, "seeds": [7, 8]})
    rows = enter(store, job_id, queries.tasks(store, job_id)[-1].id, confirming(store, queries.job(store, job_id)))
    confirm = {row.id for row in rows} - set(maes)
    assert len(confirm) == 6
    for run_id in confirm:
        records.finish_run(store, run_id, {}, {"valid": {"mae": 9.0}})
        checkpoint(home, run_id, "best-000010")
    finish(store, job_id)
    garbage.remove(store, garbage.find(store).waste)
    assert kept(home, confirm | set(maes)) == confirm | {min(maes, key=lambda run_id: maes[run_id])}


def test_a_search_that_this_raymsa_cannot_read_keeps_its_trials(store: Store, home: Path, tmp_path: Path) -> None:
    job_id, _ = search(store, home, tmp_path)
    finish(store, job_id)
    with store.write() as connection:
        spec = {**queries.job(store, job_id).spec, "mood": "of an older raymsa"}
        connection.execute(tables.jobs.update().where(tables.jobs.c.id == job_id).values(spec=spec))
    assert garbage.find(store) == ([], [])


def test_runs_of_another_machine_other_folders_and_links_are_not_looked_at(
    store: Store, home: Path, tmp_path: Path
) -> None:
    job_id = job(store, "failed")
    run_id = run(store, home, job_id, "disc", "failed")
    away = run(store, home, job_id, "away", "failed")
    (home / "runs" / away).rename(tmp_path / "another machine")
    checkpoint(home, "00000000-of-no-store-1", "best-000001")
    checkpoint(home, run_id, "best-of-all")
    (tmp_path / "mine").mkdir()
    (home / "runs" / run_id / "best-000099").symlink_to(tmp_path / "mine")
    garbage.remove(store, garbage.find(store).waste)
    assert left(home, run_id) == ["best-000099", "best-of-all"]
    assert left(home, "00000000-of-no-store-1") == ["best-000001"]


def test_checkpoints_that_are_newer_than_the_stores_last_word_stay(store: Store, home: Path) -> None:
    """The run was tried again by a driver of another store, of which this one is an old copy."""
    run_id = run(store, home, job(store, "failed"), "disc", "failed")
    later = time.time() + 3600
    os.utime(home / "runs" / run_id / "last-000020", (later, later))
    assert garbage.find(store) == ([], [run_id])
    said = call("store", "gc")
    assert f"run {run_id}: its checkpoints are newer than what this store knows of it; they stay" in said.stderr
    assert left(home, run_id) == ALL


def test_a_job_that_is_retried_meanwhile_keeps_its_checkpoints(store: Store, home: Path) -> None:
    job_id = job(store, "failed")
    run_id = run(store, home, job_id, "disc", "failed")
    found = garbage.find(store).waste
    orders.retry(store, job_id, "ann")
    assert garbage.remove(store, found) == []
    assert left(home, run_id) == ALL


# The command


def test_a_dry_run_says_what_would_go_and_touches_nothing(store: Store, home: Path) -> None:
    run_id = run(store, home, job(store, "failed"), "disc", "failed")
    before = {path: path.stat().st_mtime_ns for path in home.rglob("*") if "store.db" not in path.name}
    result = call("store", "gc", "--dry-run")
    assert result.exit_code == 0
    shown = [line.split() for line in result.stdout.splitlines()]
    assert shown == [["0.0", "MB", str(home / "runs" / run_id / name), "(failed)"] for name in ALL]
    assert "3 checkpoints would go, 0.0 MB" in result.stderr
    told = json.loads(call("store", "gc", "--dry-run", "--json").stdout)
    assert (told["dry_run"], told["bytes"], len(told["checkpoints"])) == (True, 3 * 1002, 3)
    assert {path: path.stat().st_mtime_ns for path in home.rglob("*") if "store.db" not in path.name} == before


def test_what_went_is_told(store: Store, home: Path) -> None:
    run_id = run(store, home, job(store, "done"), "disc", "done", 0.5)
    told = json.loads(call("store", "gc", "--json").stdout)
    assert [Path(one["path"]).name for one in told["checkpoints"]] == [".last-000030.part", "last-000020"]
    assert [one["why"] for one in told["checkpoints"]] == ["done"] * 2
    assert left(home, run_id) == ["best-000010"]
    assert "0 checkpoints are gone" in call("store", "gc").stderr
