"""Real processes, killed for real, in the middle of a run."""

import os
import re
import signal
from pathlib import Path

import pytest

from raymsa.queue import job_state
from raymsa.store import Store, queries
from raymsa.training import checkpoint
from tests.jobs import job_file, start_raymsa, wait_for

# Long enough to be killed in the middle; every epoch ends in a checkpoint.
TRAIN = {"epochs": 16, "batch_clips": 4, "lora_lr": 2e-3, "checkpointing": False, "patience": 16}


def store_of(home: Path) -> Store:
    return Store.open(f"sqlite:///{home}/store.db", create=False)


def only_run(home: Path):
    runs = queries.runs(store_of(home))
    return runs[0] if runs else None


def run_folder(home: Path) -> Path | None:
    return next((home / "runs").glob("*"), None) if (home / "runs").exists() else None


def resume_point(home: Path) -> Path | None:
    """The newest checkpoint, once there is one."""
    folder = run_folder(home)
    return checkpoint.find(folder, "last") if folder else None


def worker_pids(home: Path) -> list[int]:
    log = run_folder(home) / "log.txt"
    return [int(pid) for pid in re.findall(r"worker process (\d+)", log.read_text())]


def check_whole(home: Path) -> None:
    """The run is done, every step and every clip is recorded exactly once."""
    store = store_of(home)
    (job,) = queries.jobs(store)
    assert job_state(queries.tasks(store, job.id)) == "done"
    run = only_run(home)
    assert (run.state, run.step, run.epoch) == ("done", run.steps_total, TRAIN["epochs"])
    losses = [s.step for s in queries.steps(store, run.id) if s.name == "loss"]
    assert losses == list(range(1, run.steps_total + 1))
    clips = [(p.split, p.clip_id) for p in queries.predictions(store, run.id)]
    assert len(clips) == len(set(clips)) == 16
    assert [e.what for e in queries.events(store, job.id) if e.run_id].count("done") == 1


@pytest.mark.timeout(500)
def test_a_job_survives_ctrl_c_then_a_killed_driver_then_a_killed_worker(tmp_path):
    home = tmp_path / "home"
    first = start_raymsa(home, "submit", str(job_file(tmp_path, train=TRAIN)), "--lease-s", "6")
    try:
        wait_for(lambda: resume_point(home), 200, first)
        first.send_signal(signal.SIGINT)
        assert first.wait(60) == 130, first.words.read_text()
    finally:
        first.kill()
    assert "keeps its place" in first.words.read_text()
    assert [t.state for t in queries.tasks(store_of(home))] == ["done", "queued"]
    assert only_run(home).state == "queued"

    second = start_raymsa(home, "work", "--lease-s", "6")
    try:
        wait_for(lambda: trained_since(home, 1), 200, second)
    finally:
        second.kill()
    second.wait(10)
    old = worker_pids(home)[-1]
    wait_for(lambda: not Path(f"/proc/{old}").exists(), 60)  # its Ray session dies with it, nothing is left behind

    third = start_raymsa(home, "work", "--until-empty", "--lease-s", "6")
    try:
        wait_for(lambda: trained_since(home, 2), 200, third)
        point = resume_point(home)
        os.kill(worker_pids(home)[-1], signal.SIGKILL)
        assert third.wait(200) == 0, third.words.read_text()
    finally:
        third.kill()
    starts = [int(step) for step in re.findall(r"goes on at step (\d+)", log_of(home))]
    assert len(starts) == 3 and starts == sorted(starts) and starts[-1] >= checkpoint_step(point)
    assert len(set(worker_pids(home))) == 4
    check_whole(home)
    assert any("silent for longer than its lease" in e.detail for e in queries.events(store_of(home)))


def trained_since(home: Path, starts: int) -> bool:
    """An epoch was finished after the run had gone on that many times."""
    parts = log_of(home).split("goes on at step")
    return len(parts) > starts and "done: valid MAE" in parts[starts]


def log_of(home: Path) -> str:
    return (run_folder(home) / "log.txt").read_text()


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.split("-")[1])
