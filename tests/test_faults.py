"""Faults of one run inside a session that goes on: for real, and nothing is recorded twice, nothing is lost."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from raymsa import orders
from raymsa.search import Experiments
from raymsa.store import Store
from tests.faults import COUNTS, FOR_EVER, SLOW_TO_SCORE, fault_job, fill, make_shards, make_space, served, small_disk
from tests.jobs import wait_for

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("faults") / "shards", COUNTS)


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/store.db")


def test_a_run_whose_worker_is_killed_goes_on_from_its_checkpoint(store, shards, tmp_path, home):
    job = fault_job(tmp_path, shards, train={"epochs": 18, "patience": 18, "checkpoint_every_s": 0.2})
    with served(store, job, home) as it:
        wait_for(lambda: it.trains(1, 45))
        os.kill(it.workers()[0], signal.SIGKILL)
    it.is_whole(epochs=18)
    assert len(it.starts()) == 2 and it.starts()[1] >= 35
    assert it.run.failures == 1
    (lost,) = [e.detail for e in it.events() if e.run_id and e.what == "queued" and e.detail]
    assert lost.startswith("lost: the training worker died") and "\n" not in lost
    told = it.told()
    assert [t["attempts"] for t in told["tasks"]] == [1, 1] and told["runs"][0]["attempts"] == 2


@pytest.mark.slow
def test_a_run_out_of_memory_is_tried_once_more_and_then_fails_with_advice(store, tmp_path, home):
    shards = make_shards(tmp_path / "long", COUNTS, words=600)
    train = {**FOR_EVER, "batch_clips": 40, "batch_tokens": 1_000_000}
    with served(store, fault_job(tmp_path, shards, train=train), home) as it:
        for attempt in (1, 2):
            wait_for(lambda attempt=attempt: len(it.workers()) == attempt)
            leave_memory(it.workers()[-1], 2**30)
    run = it.run
    assert (it.state(), run.state, run.cause, run.failures, run.attempts) == ("failed", "failed", "memory", 2, 2)
    assert "step 1: out of memory" in run.error and "lower train.batch_tokens (now 1000000)" in run.error
    told = it.told()
    assert told["tasks"][1]["cause"] == "runs" and run.id in told["tasks"][1]["error"]
    assert len(it.workers()) == 2


def leave_memory(pid: int, left: int) -> None:
    """The process gets so many bytes more, and then its allocations fail."""
    size = int(Path(f"/proc/{pid}/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    subprocess.run(["prlimit", "--pid", str(pid), f"--as={size + left}"], check=True)


@pytest.mark.slow
def test_a_full_disk_costs_no_checkpoint_and_the_run_goes_on_when_there_is_space(
    store, shards, tmp_path, ray_session, monkeypatch
):
    home = tmp_path / "small"
    monkeypatch.setenv("RAYMSA_HOME", str(home))
    wishes = {"retries": 8, "backoff_s": 1}
    job = fault_job(tmp_path, shards, train={"epochs": 12, "patience": 12, "checkpoint_every_s": 0.2}, queue=wishes)
    with small_disk(home / "runs") as disk, served(store, job, home) as it:
        wait_for(lambda: it.trains(1, 25))
        fill(disk)
        # again and again: a checkpoint that was being replaced leaves room when it goes
        wait_for(lambda: fill(disk) or it.run.failures)
        kept = it.saved()
        assert kept > 0 and it.run.cause == "disk"
        assert not list(it.folder.glob(".*.part"))
        assert (
            it.run.error.startswith("no space left on the disk of ") and it.run.error in it.told()["runs"][0]["error"]
        )
        make_space(disk)
        wait_for(lambda: it.state() == "done")
        it.is_whole(epochs=12)
        assert kept in it.starts()


def test_what_a_trial_holds_that_was_killed_before_it_said_so_is_given_back(ray_session):
    import ray
    from ray.util.placement_group import placement_group, placement_group_table

    @ray.remote(num_cpus=0)
    class Trial:
        def begin(self):
            self.held = placement_group([{"CPU": 0.01}], lifetime="detached")
            return self.held.id.hex()

    experiments = Experiments()
    experiments.begin()
    trial = Trial.remote()
    group = ray.get(trial.begin.remote())
    ray.kill(trial)
    experiments.begin()  # another task of the same driver, which must not lose what it trains on
    experiments.end()
    time.sleep(1)
    assert placement_group_table()[group]["state"] != "REMOVED"
    experiments.end()
    wait_for(lambda: placement_group_table()[group]["state"] == "REMOVED", 20)


def test_a_job_that_is_cancelled_while_a_model_is_loaded_ends(store, shards, tmp_path, home):
    with served(store, fault_job(tmp_path, shards, train=FOR_EVER), home) as it:
        wait_for(it.workers)
        assert orders.cancel(store, it.job_id, "a test").asked == 1
    assert (it.state(), it.run.state) == ("cancelled", "cancelled")
    assert len(it.workers()) == 1 and it.step() < 10


@pytest.mark.slow
def test_a_job_is_paused_in_training_resumed_and_cancelled_while_it_is_scored(store, tmp_path, home):
    shards = make_shards(tmp_path / "many", SLOW_TO_SCORE)
    job = fault_job(tmp_path, shards, train={"epochs": 8, "patience": 8, "checkpoint_every_s": 600})
    with served(store, job, home) as it:
        wait_for(lambda: it.trains(1))
        assert orders.pause(store, it.job_id, "a test").asked == 1
    assert (it.state(), it.run.state, it.told()["tasks"][1]["attempts"]) == ("paused", "queued", 0)
    at = it.step()
    assert it.saved() == at  # the last step, not the last epoch's
    assert orders.resume(store, it.job_id, "a test") == 1
    before = len(it.log())
    with served(store, it, home):
        wait_for(lambda: "scored valid" in it.log()[before:])
        assert orders.cancel(store, it.job_id, "a test").asked == 1
    assert (it.state(), it.run.state, it.told()["runs"][0]["state"]) == ("cancelled", "cancelled", "cancelled")
    assert it.starts() == [0, at] and "stopped while clips were scored" in it.log()
    assert orders.retry(store, it.job_id, "a test") == 1
    with served(store, it, home):
        pass
    it.is_whole(epochs=8, clips=4008)
    assert it.starts() == [0, at, 80]
