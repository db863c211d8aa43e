"""Both ways from shards to a run, through every real part: what a job says of them and what its runs record."""

import pytest

from raymsa.driver import Driver
from raymsa.home import job_log, run_dir
from raymsa.jobfile import load_job
from raymsa.store import Store, queries
from raymsa.submit import submit
from tests.jobs import job_file

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_session")]

# Rates that change nothing: the first of 3 epochs is the best one, and with patience 1 the third is never trained. The
# gradient's norm still depends on which clips came, in which order and with which dropout.
STOPS_EARLY = {"epochs": 3, "patience": 1, "batch_clips": 8, "lora_lr": 1e-30, "head_lr": 1e-30}


@pytest.fixture
def store(tmp_path) -> Store:
    return Store.open(f"sqlite:///{tmp_path}/store.db")


def done(store, path):
    """The only run of a job that is served to its end, and what the job and the run said."""
    job_id = submit(store, load_job(path, []))
    over = ("done", "failed", "cancelled")
    Driver(store, lambda line: None).serve(lambda: queries.state(store, job_id) in over)
    (run,) = queries.runs(store, job_id)
    assert run.state == "done", job_log(job_id).read_text()
    return run, job_log(job_id).read_text(), (run_dir(run.id) / "log.txt").read_text()


def scores(store, run):
    return {(p.split, p.clip_id): p.score for p in queries.predictions(store, run.id)}


def steps(store, run):
    """Loss and gradient of every step; a clip more, less or elsewhere changes them."""
    found = [(s.step, s.name, round(s.value, 4)) for s in queries.steps(store, run.id)]
    return [one for one in found if one[1] in ("loss", "grad_norm")]


@pytest.mark.slow
def test_a_run_is_the_same_whether_its_clips_are_shared_or_streamed(store, tmp_path, monkeypatch):
    shared, said, log = done(store, job_file(tmp_path, "shared", train=STOPS_EARLY))
    assert "all runs share their clips in the object store (" in said
    assert "clips are shared with the job's other runs" in log
    monkeypatch.setattr("raymsa.data.shared.SHARE", 0)
    streamed, said, log = done(store, job_file(tmp_path, "streamed", train=STOPS_EARLY))
    assert "every run streams its clips: they are more than 0% of the object store (" in said
    assert "clips are streamed by Ray Data; at most " in log and " are on their way (" in log
    for run in (shared, streamed):
        assert run.epoch == 2 < STOPS_EARLY["epochs"]  # what is left of the stream is left out, and scoring goes on
        assert 0 < run.data_wait < 1
    assert "waited for clips in " in log
    assert steps(store, streamed) == steps(store, shared) and len(steps(store, shared)) == 2 * 2 * 4
    assert scores(store, streamed) == pytest.approx(scores(store, shared), abs=1e-6)
    assert len(scores(store, streamed)) == 16
    assert not (run_dir(streamed.id) / "wanted").exists()
