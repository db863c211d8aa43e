"""Real processes, killed for real, in the middle of a run."""

import os
import re
import signal
from pathlib import Path

import pytest

from raymsa.queue import job_state
from raymsa.store import Store, queries
from raymsa.training import checkpoint
from tests.jobs import job_file, raymsa, start_raymsa, wait_for

# Long enough to be killed in the middle: some hundred steps, a resume point every second.
TRAIN = {
    "epochs": 12,
    "batch_clips": 4,
    "lora_lr": 2e-3,
    "checkpointing": False,
    "checkpoint_every_s": 1,
    "patience": 12,
}


def store_of(home: Path) -> Store:
    return Store.open(f"sqlite:///{home}/store.db", create=False)


def only_run(home: Path):
    runs = queries.runs(store_of(home))
    return runs[0] if runs else None


def run_folder(home: Path) -> Path | None:
    return next((home / "runs").glob("*"), None) if (home / "runs").exists() else None


def resume_point(home: Path) -> Path | None:
    """The newest checkpoint, once there is one in the middle of the run."""
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


@pytest.mark.timeout(400)
def test_a_killed_training_worker_goes_on_from_its_last_checkpoint(tmp_path):
    home = tmp_path / "home"
    process = start_raymsa(home, "submit", str(job_file(tmp_path, train=TRAIN)))
    try:
        point = wait_for(lambda: resume_point(home), 200, process)
        (pid,) = worker_pids(home)
        os.kill(pid, signal.SIGKILL)
        assert process.wait(200) == 0, process.words.read_text()
    finally:
        process.kill()
    log = (run_folder(home) / "log.txt").read_text()
    at = int(re.search(r"goes on at step (\d+)", log)[1])
    assert at >= checkpoint_step(point)
    assert len(set(worker_pids(home))) == 2
    check_whole(home)


@pytest.mark.timeout(400)
def test_a_killed_drivers_job_is_taken_over_and_goes_on_from_its_last_checkpoint(tmp_path):
    home = tmp_path / "home"
    process = start_raymsa(home, "submit", str(job_file(tmp_path, train=TRAIN)), "--lease-s", "6")
    try:
        wait_for(lambda: resume_point(home), 200, process)
    finally:
        process.kill()
    process.wait(10)
    (old,) = worker_pids(home)
    wait_for(lambda: not Path(f"/proc/{old}").exists(), 60)  # its Ray session dies with it, nothing is left behind

    second = raymsa(home, "work", "--until-empty", "--lease-s", "6", timeout_s=300)
    assert second.returncode == 0, second.stderr
    assert "goes on at step" in (run_folder(home) / "log.txt").read_text()
    check_whole(home)
    (job,) = queries.jobs(store_of(home))
    assert any("silent for longer than its lease" in e.detail for e in queries.events(store_of(home), job.id))


def checkpoint_step(folder: Path) -> int:
    return int(folder.name.split("-")[1])
