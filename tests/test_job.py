"""A job from its file to its table, in one Ray session, through every real part."""

import csv
import json
import math
import threading
import time
from pathlib import Path

import pytest

from raymsa import orders
from raymsa.driver import Driver
from raymsa.home import job_log, run_dir
from raymsa.jobfile import load_job
from raymsa.predict import predict
from raymsa.report.results import results
from raymsa.store import Store, queries
from raymsa.submit import submit
from tests.jobs import job_file, wait_for

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]
BOTH = {"disc": {}, "gen": {"readout.kind": "gen"}}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/store.db")


def do(store: Store, path: Path, *overrides: str) -> queries.Job:
    """Submit a job and serve the queue until it is over."""
    job_id = submit(store, load_job(path, list(overrides)))
    driver = Driver(store, lambda line: None)
    driver.serve(lambda: state(store, job_id) not in ("queued", "running"))
    return queries.job(store, job_id)


def state(store: Store, job_id: str) -> str:
    return queries.state(store, job_id)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, ray_session):
    """A finished job with both readouts, and its store: several tests look at it."""
    folder = tmp_path_factory.mktemp("job")
    store = Store.open(f"sqlite:///{folder}/store.db")
    return store, do(store, job_file(folder, variants=BOTH))


def test_a_job_with_two_readouts_ends_in_a_table_with_both(finished):
    store, job = finished
    assert state(store, job.id) == "done", job_log(job.id).read_text()
    found = results(store, job.id)
    assert [row.variant for row in found.rows] == ["disc", "gen"]
    assert all(row.finished == row.planned == 1 and math.isfinite(row.test["mae"].mean) for row in found.rows)
    assert not found.unfinished


def test_a_run_records_what_a_reviewer_asks_for(finished):
    store, job = finished
    for run in queries.runs(store, job.id):
        assert run.spec["seeds"] == [1] == [run.seed]
        assert run.data_digest and run.versions["torch"] and run.spec_digest and run.group_key
        assert run.trainable_parameters > 0 and run.peak_memory_bytes > 2**20
        assert run.wall_s > 0 and run.device_s > 0 and run.attempts == 1
        assert [s.step for s in queries.steps(store, run.id) if s.name == "loss"] == list(range(1, 9))
        finals = queries.finals(store, run.id)
        assert set(finals) == {"valid", "test"}
        assert finals["test"]["constant_mae"] > 0
        assert ("unparsable" in finals["test"]) == (run.variant == "gen")
        assert len(queries.predictions(store, run.id, "test")) == 8


def test_finals_are_what_the_metrics_say_of_the_stored_predictions(finished):
    from raymsa.evaluation.metrics import measure

    store, job = finished
    for run in queries.runs(store, job.id):
        clips = queries.predictions(store, run.id, "test")
        again = measure("mosi", [c.score for c in clips], [c.label for c in clips])
        recorded = queries.finals(store, run.id)["test"]
        assert all(recorded[name] == pytest.approx(value, nan_ok=True) for name, value in again.items())


def test_a_trained_run_scores_a_clip_as_it_did_in_its_job(finished):
    store, job = finished
    run = next(r for r in queries.runs(store, job.id) if r.variant == "disc")
    known = queries.predictions(store, run.id, "test")[0]
    raw = next((Path(run_dir(run.id)).parents[1] / "raw").glob("*/Raw"))
    video, clip = known.clip_id.split("$_$")
    with (raw.parent / "label.csv").open(newline="") as file:
        text = next(r["text"] for r in csv.DictReader(file) if (r["video_id"], r["clip_id"]) == (video, clip))
    (row,) = predict(store, run.id, [str(raw / video / f"{clip}.mp4")], [text])
    assert row["score"] == pytest.approx(known.score, abs=1e-4)


def test_zero_shot_on_data_that_is_prepared_already_trains_nothing_and_is_scored(finished, tmp_path):
    store, before = finished
    job = do(store, job_file(tmp_path, readout={"kind": "gen"}, train={"epochs": 0}))
    (run,) = queries.runs(store, job.id)
    assert (run.state, run.trainable_parameters, run.steps_total) == ("done", 0, 0)
    assert len(queries.predictions(store, run.id, "test")) == 8
    assert "prepared already" in job_log(job.id).read_text()
    assert run.data_digest == queries.runs(store, before.id)[0].data_digest


def test_a_job_that_asks_for_a_gpu_that_is_not_there_says_so_within_seconds(store, tmp_path, finished):
    begun = time.monotonic()
    job = do(store, job_file(tmp_path), "resources.gpus=1")
    assert time.monotonic() - begun < 30
    (error,) = [t.error for t in queries.tasks(store, job.id) if t.error]
    assert "asks for 1 GPU" in error and "has 0 GPU" in error and "resources.gpus=0" in error
    assert "\n" not in error


@pytest.mark.slow
def test_a_run_whose_loss_is_not_a_number_fails_with_step_and_clips_and_the_others_go_on(store, tmp_path):
    variants = {"fine": {}, "mad": {"train.head_lr": 1e30, "train.max_grad_norm": 1e30, "train.lora_lr": 1e30}}
    job = do(store, job_file(tmp_path, variants=variants, train={"epochs": 1, "checkpointing": False}))
    by_variant = {r.variant: r for r in queries.runs(store, job.id)}
    assert by_variant["fine"].state == "done"
    assert by_variant["mad"].state == "failed"
    assert "step" in by_variant["mad"].error and "clips -" in by_variant["mad"].error
    assert state(store, job.id) == "failed"


@pytest.mark.slow
def test_a_stopped_driver_gives_its_task_back_and_another_finishes_it(store, tmp_path):
    job_id = submit(store, load_job(job_file(tmp_path, train={"epochs": 30, "batch_clips": 4, "patience": 30})))
    driver = Driver(store, lambda line: None)
    thread = in_thread(driver)
    wait_for(lambda: any((r.epoch or 0) > 1 for r in queries.runs(store, job_id)))
    driver.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert state(store, job_id) == "queued"
    assert [t.attempts for t in queries.tasks(store, job_id)] == [1, 0]
    assert no_placement_group_is_left()
    orders.cancel(store, job_id, "a test")
    assert state(store, job_id) == "cancelled"


def test_a_cancelled_job_stops_while_it_runs_and_frees_what_it_held(store, tmp_path):
    job_id = submit(store, load_job(job_file(tmp_path, train={"epochs": 30, "batch_clips": 4, "patience": 30})))
    thread = in_thread(Driver(store, lambda line: None), lambda: state(store, job_id) not in ("queued", "running"))
    wait_for(lambda: any((r.epoch or 0) > 1 for r in queries.runs(store, job_id)))
    assert orders.cancel(store, job_id, "a test").asked == 1
    thread.join(60)
    assert not thread.is_alive()
    assert state(store, job_id) == "cancelled"
    (run,) = queries.runs(store, job_id)
    assert run.state == "cancelled"
    assert list(run_dir(run.id).glob("last-*"))  # its checkpoint stays
    assert no_placement_group_is_left()


def test_a_search_tries_settings_and_goes_on_where_it_was(store, tmp_path):
    space = {"lora.rank": {"choice": [2, 4]}, "train.lora_lr": {"loguniform": [1e-4, 1e-2]}}
    search = {"space": space, "trials": 2}
    job = do(store, job_file(tmp_path, search=search, train={"epochs": 1, "batch_clips": 8}))
    assert state(store, job.id) == "done", job_log(job.id).read_text()
    runs = queries.runs(store, job.id)
    assert [r.variant for r in runs] == ["t000", "t001"]
    assert all(r.spec["lora"]["rank"] in (2, 4) and 1e-4 <= r.spec["train"]["lora_lr"] <= 1e-2 for r in runs)
    assert len({json.dumps(r.spec) for r in runs}) == 2


def in_thread(driver: Driver, done=lambda: False) -> threading.Thread:
    thread = threading.Thread(target=driver.serve, args=(done,), daemon=True)
    thread.start()
    return thread


def no_placement_group_is_left() -> bool:
    from ray.util import placement_group_table

    def gone() -> bool:
        return all(group["state"] == "REMOVED" for group in placement_group_table().values())

    return bool(wait_for(gone, 20))
