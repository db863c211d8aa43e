"""A real cluster on this machine: jobs sent to its head, a node that dies, a head that dies, a node that is preempted.

Each test is a story on the same cluster; its store is PostgreSQL, as where several drivers serve one.
"""

import json
import re
import subprocess
from collections import Counter
from functools import cached_property

import pytest

from raymsa.store import Store, queries
from tests import postgres
from tests.faults import fault_job, home_with_models, make_shards
from tests.jobs import RAYMSA, environment, wait_for
from tests.ray_nodes import RAY, Cluster
from tests.stores import NO_POSTGRESQL

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(NO_POSTGRESQL), reason=NO_POSTGRESQL),
    pytest.mark.timeout(2100),
]

DEVICE = {"gpus": 0, "cpus": 1, "custom": {"device": 1}}
COUNTS = {"train": 40, "valid": 8, "test": 8}  # 10 steps an epoch
SEARCH = {"trials": 8, "space": {"train.lora_lr": {"loguniform": [1e-4, 1e-2]}}, "algorithm": "random"}
LONG = {"epochs": 60, "patience": 60}


class Place:
    """The cluster, the store of its head, the driver there, and somebody who sends jobs from elsewhere."""

    def __init__(self, folder, models, store_url):
        self.folder, self.home = folder, home_with_models(folder / "head", models)
        self.shards = make_shards(folder / "shards", COUNTS)
        self.cluster = Cluster({**environment(self.home), "RAYMSA_STORE": store_url})
        self.store_url = store_url
        self.words = folder / "work.txt"

    def say(self, *words, token=None):
        """A command of somebody who knows the head's address and token, and nothing else of it."""
        mine = environment(self.folder / "mine") | {"RAY_AUTH_MODE": "token"}
        mine["RAY_AUTH_TOKEN"] = token or self.cluster.environment["RAY_AUTH_TOKEN"]
        command = [*RAYMSA, *words, "--cluster", self.cluster.url]
        return subprocess.run(command, env=mine, capture_output=True, text=True, timeout=300, check=False)

    def work(self):
        with self.words.open("a") as out:
            return subprocess.Popen(
                [*RAYMSA, "work", "--address", self.cluster.address, "--lease-s", "20"],
                env=self.cluster.environment,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )

    @cached_property
    def store(self):
        return Store.open(self.store_url, create=False)

    def runs(self, job):
        return queries.runs(self.store, job)

    def done(self, job):
        return [run for run in self.runs(job) if run.state == "done"]

    def job_state(self, job):
        return queries.state(self.store, job)

    def log(self, run):
        path = self.home / "runs" / run.id / "log.txt"
        return path.read_text() if path.exists() else ""

    def at(self, run):
        """The step a run has come to."""
        return next(row.step or 0 for row in self.runs(run.job_id) if row.id == run.id)

    def submit(self, name, **sections):
        job = fault_job(self.folder, self.shards, name, resources=DEVICE, **sections)
        ended = self.say("submit", str(job), "--json")
        assert ended.returncode == 0, ended.stderr
        return json.loads(ended.stdout)["job"]

    def check(self, job, runs):
        """All runs are done, every one recorded once, and nothing of Ray's is left."""
        store = self.store
        found = self.runs(job)
        assert Counter(run.state for run in found) == {"done": runs}
        told = Counter(event.run_id for event in queries.events(store, job) if event.run_id and event.what == "done")
        assert told == {run.id: 1 for run in found}
        for run in found:
            clips = [(row.split, row.clip_id) for row in queries.predictions(store, run.id)]
            assert len(clips) == len(set(clips)) == 16
            losses = [row.step for row in queries.steps(store, run.id) if row.name == "loss"]
            assert losses == list(range(1, run.steps_total + 1))
        wait_for(lambda: not self.cluster.placement_groups(), 60)
        status = self.say("status", job, "--json")
        assert status.returncode == 0, status.stderr
        about = json.loads(status.stdout)
        assert (about["job"]["state"], about["job"]["runs"]) == ("done", {"done": runs})


@pytest.fixture(scope="module")
def place(tmp_path_factory, tiny_folder, home):
    with postgres.database() as url:
        made = Place(tmp_path_factory.mktemp("cluster"), home / "models", url)
        with made.cluster:
            driver = made.work()
            try:
                wait_for(lambda: "tasks" in tables(url), 60)
                yield made
            finally:
                driver.terminate()
                driver.wait(120)
                made.store.close()


@pytest.fixture(autouse=True)
def whole(place):
    """A node that the story before had taken away is there again."""
    wait_for(place.cluster.whole, 300)


def tables(url):
    from sqlalchemy import create_engine, inspect

    engine = create_engine(url)
    try:
        return inspect(engine).get_table_names()
    finally:
        engine.dispose()


def test_eight_trials_sent_from_outside_end_once_each_though_a_node_dies(place):
    refused = place.say("list", token="0" * 32)
    assert (refused.returncode, "does not know this token" in refused.stderr) == (1, True), refused.stderr

    job = place.submit("search", train={"epochs": 1}, search=SEARCH)
    wait_for(lambda: len(place.done(job)) >= 2, 400)
    place.cluster.nodes[0].kill()
    try:
        wait_for(lambda: place.job_state(job) in ("done", "failed"), 400)
    finally:
        place.cluster.nodes[0].start()
    place.check(job, 8)
    assert "8 runs, 0 done already; 2 at a time" in place.words.read_text()
    shown = place.say("list")
    assert (shown.returncode, "8/8" in shown.stdout) == (0, True), shown.stderr


def test_a_node_that_is_to_be_taken_away_hands_its_run_to_another_one(place):
    job = place.submit("preempted", train=LONG, seeds=[1])
    (run,) = wait_for(lambda: place.runs(job), 200)
    wait_for(lambda: place.at(run) >= 15, 200)
    node = re.findall(r"on node ([0-9a-f]{56})", place.log(run))[-1]
    drain = [*RAY, "drain-node", "--address", place.cluster.address, "--node-id", node]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot", "--deadline-remaining-seconds", "90"]
    subprocess.run([*drain, *why], env=place.cluster.environment, check=True, capture_output=True, timeout=120)
    wait_for(lambda: place.job_state(job) in ("done", "failed"), 400)
    place.check(job, 1)
    stopped = int(re.search(r"stopped at step (\d+)", place.log(run))[1])
    assert f"goes on at step {stopped}" in place.log(run)
    assert len(set(re.findall(r"on node ([0-9a-f]{56})", place.log(run)))) == 2


def test_a_job_goes_on_when_the_head_was_killed_and_started_again(place):
    job = place.submit("headless", train=LONG, seeds=[1, 2])
    wait_for(lambda: [run for run in place.runs(job) if (run.step or 0) >= 15], 300)
    place.cluster.head.kill()
    assert place.say("status", job).returncode == 1
    place.cluster.start_head()

    def over():
        place.cluster.whole()  # starts nodes again that gave up while there was no head
        return place.job_state(job) in ("done", "failed")

    wait_for(over, 500)
    place.check(job, 2)
    assert "the driver died" in place.words.read_text()
    assert any("goes on at step" in place.log(run) for run in place.runs(job))
