"""Faults of the driver's process and of its Ray session, for real: nothing is recorded twice, and nothing is lost."""

import os
import signal
import time
from pathlib import Path

import pytest

from raymsa import leftovers
from raymsa.jobfile import load_job
from raymsa.store import Store, queries
from raymsa.submit import submit
from tests.faults import (
    COUNTS,
    FOR_EVER,
    Watched,
    driver_of,
    fault_job,
    home_with_models,
    make_shards,
    raylet_of,
    started,
)
from tests.jobs import job_file, wait_for

pytestmark = pytest.mark.slow
EPOCHS = 60
LONG = {"epochs": EPOCHS, "patience": EPOCHS, "checkpoint_every_s": 0.2}
WORK = ("work", "--until-empty")


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("faults") / "shards", COUNTS)


@pytest.fixture
def mine(tmp_path, tiny_folder, home) -> Path:
    return home_with_models(tmp_path / "home", home / "models")


def entered(home: Path, job: Path) -> Watched:
    """A job in the queue of a home."""
    store = Store.open(f"sqlite:///{home}/store.db")
    return Watched(store, submit(store, load_job(job, [])), home)


def the_driver(process) -> int:
    return wait_for(lambda: driver_of(process), 60, process)[0]


@pytest.mark.timeout(1500)
def test_a_job_outlives_a_killed_raylet_and_then_a_killed_driver(mine, shards, tmp_path):
    it = entered(mine, fault_job(tmp_path, shards, train=LONG))
    with started(mine, *WORK) as process:
        wait_for(lambda: it.trains(1), 300, process)
        first = the_driver(process)
        os.kill(raylet_of(first), signal.SIGKILL)
        wait_for(lambda: driver_of(process) not in ([first], []), 60, process)
        assert not leftovers.members(first)  # nothing of the dead session is beside the new driver
        wait_for(lambda: it.trains(2), 300, process)

        second = the_driver(process)
        os.kill(second, signal.SIGKILL)
        wait_for(lambda: it.trains(3), 300, process)
        assert not leftovers.members(second)
        third = the_driver(process)
        assert process.wait(300) == 0
        said = process.words.read_text()
    assert "the driver died (its Ray session died)" in said and "the driver died (SIGKILL)" in said
    it.is_whole(EPOCHS)
    assert not leftovers.members(third)
    assert [task["attempts"] for task in it.told()["tasks"]] == [1, 3]
    whys = [e.detail for e in it.events() if e.task_id and e.what == "queued"]
    assert whys[-2:] == ["its driver died (its Ray session died)", "its driver died (SIGKILL)"]


@pytest.mark.timeout(1500)
def test_a_preempted_job_goes_on_at_that_very_step_and_outlives_its_driver_and_who_watched_it(mine, shards, tmp_path):
    it = entered(mine, fault_job(tmp_path, shards, train={**LONG, "checkpoint_every_s": 600}))
    with started(mine, *WORK) as process:
        wait_for(lambda: it.trains(1), 300, process)
        driver = the_driver(process)
        process.terminate()  # as a preemption does
        assert process.wait(60) == 0
        assert "given back; it keeps its place" in process.words.read_text()
    assert (it.state(), it.run.state, it.saved()) == ("queued", "queued", it.step())
    assert not leftovers.members(driver)
    at = it.step()

    with started(mine, *WORK) as process:
        wait_for(lambda: it.trains(2), 300, process)
        assert it.starts()[1] == at
        driver = the_driver(process)
        for pid in (process.pid, driver):
            os.kill(pid, signal.SIGKILL)
        process.wait(10)
    with started(mine, "resume", it.job_id) as process:
        assert process.wait(600) == 0
    it.is_whole(EPOCHS)
    assert not leftovers.members(driver)
    assert [task["attempts"] for task in it.told()["tasks"]] == [1, 2]  # a preemption does not count
    whys = [e.detail for e in it.events() if e.task_id and e.what == "queued"]
    assert whys[-1] == "its driver and who watched it died"


def test_ctrl_c_while_clips_are_prepared_counts_as_no_attempt(mine, tmp_path):
    counts = {"train": 800, "valid": 8, "test": 8}
    dataset = {"kind": "synthetic", "name": "many", "counts": counts}
    it = entered(mine, job_file(tmp_path, dataset=dataset))
    with started(mine, *WORK) as process:
        wait_for(lambda: "816 rows" in process.words.read_text(), 300, process)
        driver = the_driver(process)
        time.sleep(1)
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        said = process.words.read_text()
    assert "given back; it keeps its place" in said and "failed" not in said and "Traceback" not in said
    tasks = queries.tasks(it.store, it.job_id)
    assert [(t.state, t.attempts, t.error) for t in tasks] == [("queued", 0, None)] * 2
    assert not leftovers.members(driver)


def test_a_second_sigterm_ends_everything_at_once(mine, shards, tmp_path):
    it = entered(mine, fault_job(tmp_path, shards, train=FOR_EVER))
    with started(mine, *WORK) as process:
        wait_for(it.workers, 300, process)  # it loads its model: the first one takes a while
        driver = the_driver(process)
        process.terminate()
        time.sleep(1)  # else two signals may become one
        process.terminate()
        assert process.wait(60) == 0
    assert not leftovers.members(driver)
    assert (it.state(), it.told()["tasks"][1]["driver"] is not None) == ("queued", True)
