"""Faults of a store that several drivers share, and of their clocks: a real PostgreSQL server, real drivers."""

import os
import subprocess
import sys
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from raymsa.jobfile import load_job
from raymsa.store import Store, queries
from raymsa.submit import submit
from tests import postgres
from tests.faults import COUNTS, Watched, fault_job, home_with_models, make_shards, served, started
from tests.jobs import raymsa, wait_for
from tests.stores import NO_POSTGRESQL

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(NO_POSTGRESQL), reason=NO_POSTGRESQL)]
DOWN_S = 30
JOBS = 4
WRONG_S = 300


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return make_shards(tmp_path_factory.mktemp("faults") / "shards", COUNTS)


@pytest.mark.ray
@pytest.mark.skipif(bool(postgres.missing()), reason=postgres.missing())
def test_a_run_goes_on_and_ends_while_its_store_is_down_and_is_recorded_afterwards(shards, tmp_path, ray_session, home):
    job = fault_job(tmp_path, shards, train={"epochs": 40, "patience": 40})
    with postgres.server() as server:
        store = Store.open(server.url())
        with served(store, job, home) as it:
            wait_for(lambda: it.trains(1))
            before, workers = it.step(), it.workers()
            folder = it.folder
            server.stop("immediate")
            stopped = time.monotonic()
            asked = raymsa(home, "status", it.job_id, "--store", server.url())
            assert asked.returncode == 1 and asked.stderr.startswith("error: store ") and asked.stderr.count("\n") == 1
            time.sleep(max(0.0, stopped + DOWN_S - time.monotonic()))
            done = (folder / "steps.jsonl").read_text().count('"loss"')
            server.start()
        it.is_whole(epochs=40)
        assert done > before + 20 and it.workers() == workers  # it did not need the store
        told = it.told()
        assert [task["attempts"] for task in told["tasks"]] == [1, 1]
        assert told["runs"][0]["wall_s"] < time.monotonic() - stopped + 60  # counted once
        store.close()


# What every Python process of a driver runs first. libfaketime would shift what Ray waits by too, and Ray never starts.
WRONG_CLOCK = f"""
import time
right = time.time

def wrong():  # with a name, so that what refers to it can be pickled
    return right() + {WRONG_S}

time.time = wrong
"""


@pytest.fixture(scope="module")
def two_drivers(shards, tmp_path_factory, tiny_folder, home):
    """Jobs that two drivers did, the second of which believes that it is five minutes later."""
    folder = tmp_path_factory.mktemp("two")
    homes = [home_with_models(folder / name / "home", home / "models") for name in ("right", "wrong")]
    (folder / "sitecustomize.py").write_text(WRONG_CLOCK)
    wrong = ("env", f"PYTHONPATH={folder}:{os.environ.get('PYTHONPATH', '')}")
    clock = [*wrong, sys.executable, "-c", "import time; print(time.time())"]
    assert float(subprocess.check_output(clock)) > time.time() + WRONG_S - 60
    with postgres.database() as url:
        store = Store.open(url)
        made = [fault_job(folder, shards, f"job{i}", train={"epochs": 2}) for i in range(JOBS)]
        jobs = [Watched(store, submit(store, load_job(path, [])), *homes) for path in made]
        words = ("work", "--until-empty", "--store", url)
        with started(homes[0], *words) as right, started(homes[1], *words, under=wrong) as other:
            wait_for(lambda: right.poll() is not None and other.poll() is not None, 400)
            assert right.returncode == 0, right.words.read_text()
            assert other.returncode == 0, other.words.read_text()
        yield jobs
        store.close()


@pytest.mark.timeout(900)
def test_two_drivers_on_one_queue_do_every_job_once(two_drivers):
    for job in two_drivers:
        job.is_whole(epochs=2)
        tasks = queries.tasks(job.store, job.job_id)
        assert [(task.state, task.attempts) for task in tasks] == [("done", 1), ("done", 1)]
    assert len(drivers(two_drivers)) == 2


def test_a_driver_whose_clock_is_five_minutes_wrong_takes_no_task_and_loses_none(two_drivers):
    assert len(drivers(two_drivers)) == 2
    details = [event.detail for job in two_drivers for event in job.events()]
    assert not [detail for detail in details if "silent" in detail or "its driver" in detail]
    times = [event["at"] for event in two_drivers[0].told()["events"]]
    assert max(times) < time.time() + 1
    assert all(later > earlier - 2 for earlier, later in pairwise(times))  # each asks the server's clock for itself


def drivers(jobs: list[Watched]) -> Counter:
    return Counter(task.driver for job in jobs for task in queries.tasks(job.store, job.job_id))
