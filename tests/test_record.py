"""What the store holds of reports that come twice, or late."""

import pytest

from raymsa.data.manifest import Manifest
from raymsa.record import Recorder
from raymsa.spec import QueueSpec
from raymsa.store import Store, queries, records
from raymsa.target import Labels
from tests.stores import entry, put


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/store.db")


@pytest.fixture
def recorder(store) -> Recorder:
    none = dict.fromkeys(("train", "valid", "test"), 0)
    labels = Labels(mean=0.0, sd=1.0, median=0.0)
    manifest = Manifest(
        name="m", digest="0", counts=none, without_sound=none, without_picture=none, cut_sound=0, damaged=0, rejects=0,
        labels=labels, settings={}, versions={}, files=(),
    )  # fmt: skip
    job_id = put(store)
    about = {"id": "job-disc-1", "job_id": job_id, "task_id": None, "variant": "disc", "seed": 1, "group_key": "g"}
    records.create_runs(store, [{**about, "spec": {"resources": {"gpus": 0, "cpus": 2}}, "spec_digest": "d"}])
    return Recorder(store, manifest, QueueSpec(), {}, lambda line: None)


def test_a_report_that_is_repeated_because_the_store_was_away_is_counted_once(store, recorder):
    begins = {"seconds": 3.0, "place": "here", "steps_total": 9, "trainable_parameters": 1, "resumed_at": 0}
    for values in (begins, {"seconds": 2.0, "steps": [entry(1, {"loss": 1.0})], "line": "step 1"}):
        for _ in range(3):
            recorder.report("job-disc-1", values)
    run = queries.run(store, "job-disc-1")
    assert (run.wall_s, run.device_s, run.attempts, run.step) == (5.0, 10.0, 1, 1)
    assert [event.what for event in queries.events(store, run.job_id) if event.run_id] == ["queued", "running"]


def test_attempts_that_die_one_after_the_other_without_a_word_are_counted_and_come_to_an_end(store, recorder):
    for said in (True, False, False):
        if said:
            recorder.report("job-disc-1", {"error": "it broke", "cause": "lost"})
        recorder.ended("job-disc-1", None if said else ("its node died", "lost"), pruned=False)
    assert queries.run(store, "job-disc-1").failures == 3
    for _ in range(2):
        recorder.ended("job-disc-1", ("its node died", "lost"), pruned=False)
    assert queries.run(store, "job-disc-1").state == "failed"


@pytest.mark.parametrize("how", ["done", "queued"])
def test_a_worker_that_dies_after_its_run_has_ended_does_not_make_it_fail(store, recorder, how, monkeypatch):
    monkeypatch.setattr(recorder, "_finish", lambda run, values: records.finish_run(store, run.id, {}, {}))
    begins = {"steps_total": 9, "trainable_parameters": 1, "resumed_at": 0}
    recorder.report("job-disc-1", begins | ({"finished": True} if how == "done" else {"stopped": "at step 3"}))
    recorder.report("job-disc-1", {"error": "the training worker died: its node died", "cause": "lost"})
    recorder.ended("job-disc-1", None, pruned=False)
    run = queries.run(store, "job-disc-1")
    assert (run.state, run.failures) == (how, 0)
