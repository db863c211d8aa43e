"""What a search proposes and gives up, and that a search that was interrupted does as if it had not been."""

import math
import sqlite3
from itertools import count
from typing import Any

import pytest

from raymsa.errors import LeaseLost, StoreAway
from raymsa.orders import retry
from raymsa.report import search as report
from raymsa.searchspec import Aim
from raymsa.space import Space
from raymsa.spec import check, runs
from raymsa.store import Store, engine, queries, records
from raymsa.study import Study
from tests.searches import EPOCHS, new_job, one_run, proposals, settings, train, valid_mae

GRID = {"lora.rank": {"choice": [2, 4, 8]}, "train.lora_lr": {"choice": [1e-4, 1e-3]}}


@pytest.fixture
def store(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def template(**sections: Any):
    raw = {"name": "x", "model": {"path": "tiny"}, "dataset": {"kind": "synthetic", "name": "s"}}
    return runs(check({**raw, "readout": {"kind": "disc"}, **sections}, "test"))[0]


def states(source) -> list[str]:
    return source._study.states()


@pytest.mark.parametrize(
    "search",
    [
        {"algorithm": "tpe", "trials": 14},
        {"algorithm": "tpe", "trials": 14, "scheduler": "asha"},
        {"algorithm": "tpe", "trials": 14, "scheduler": "median"},
        {"algorithm": "random", "trials": 8, "scheduler": "asha"},
        {"algorithm": "cma-es", "trials": 8},
        {"algorithm": "grid", "space": GRID, "trials": 4, "scheduler": "asha"},
    ],
    ids=str,
)
def test_a_search_that_was_killed_again_and_again_does_as_if_it_had_not_been(store, tmp_path, search):
    whole, killed = (new_job(store, tmp_path, **search) for _ in range(2))
    train(store, proposals(store, whole))
    for at in count():
        if not train(store, proposals(store, killed), at_most=1 + at % 3, epochs=1 + at % EPOCHS):
            break
    assert settings(store, killed) == settings(store, whole)
    assert len(settings(store, whole)) == search["trials"]


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_what_promises_nothing_is_ended_early_and_keeps_its_best_so_far(store, tmp_path, scheduler):
    job = new_job(store, tmp_path, trials=12, scheduler=scheduler, algorithm="random")
    source = proposals(store, job)
    train(store, source)
    rows = queries.runs(store, job.id)
    ended = [row for row in rows if row.state == "pruned"]
    assert ended and all(row.epoch < EPOCHS and row.valid_error is not None for row in ended)
    best = min(rows, key=lambda row: valid_mae(row.spec, EPOCHS))
    assert best.state == "done"
    assert states(source).count("PRUNED") == len(ended) and "RUNNING" not in states(source)


def test_nothing_is_ended_after_its_last_epoch(store, tmp_path):
    job = new_job(store, tmp_path, trials=8, scheduler="median")
    source = proposals(store, job)
    for at in count():
        if (work := source.next()) is None:
            break
        # The last ones are behind from their last epoch on, and not before.
        one_run(store, source, work, EPOCHS, lambda spec, epoch, at=at: 0.1 if epoch == EPOCHS and at < 6 else 1.0)
    assert {row.state for row in queries.runs(store, job.id)} == {"done"}


def test_every_trial_is_given_its_first_epochs(store, tmp_path):
    job = new_job(store, tmp_path, trials=12, scheduler="asha", min_epochs=2, algorithm="random")
    train(store, proposals(store, job))
    assert {row.epoch for row in queries.runs(store, job.id) if row.state == "pruned"} == {2}


def test_a_trial_without_a_number_has_failed_and_is_not_waited_for(store, tmp_path):
    job = new_job(store, tmp_path, trials=3)
    source = proposals(store, job)
    train(store, source, at_most=1, value=lambda spec, epoch: math.nan)
    failed = source.next()
    records.fail_run(store, failed["run_id"], "the loss is NaN", "diverged")
    source.over(failed["run_id"])
    train(store, source)
    assert states(source) == ["FAIL", "FAIL", "COMPLETE"] == states(proposals(store, job))


def test_a_run_that_was_put_back_is_told_when_it_is_over(store, tmp_path):
    job = new_job(store, tmp_path, trials=2)
    source = proposals(store, job)
    work = source.next()
    one_run(store, source, work, 2)
    records.set_run_state(store, work["run_id"], "queued")
    source.over(work["run_id"])
    assert states(source) == ["RUNNING"] and source.waiting()
    again = source.next()
    assert again["run_id"] == work["run_id"]
    one_run(store, source, again, EPOCHS)
    assert states(source) == ["COMPLETE"]


def test_a_failed_trial_that_is_retried_is_made_again_with_its_own_settings(store, tmp_path):
    job = new_job(store, tmp_path, trials=1)
    source = proposals(store, job)
    work = source.next()
    records.fail_run(store, work["run_id"], "lost", "lost")
    source.over(work["run_id"])
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE tasks SET state = 'failed' WHERE kind = 'train'")
    retry(store, job.id, "me")
    again = proposals(store, job).next()
    assert (again["run_id"], again["spec"]) == (work["run_id"], work["spec"])


def test_retrying_a_later_task_leaves_the_failed_trials_of_a_search_alone(store, tmp_path):
    job = new_job(store, tmp_path, trials=1, confirm={})
    source = proposals(store, job)
    records.fail_run(store, source.next()["run_id"], "the loss is NaN", "diverged")
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE tasks SET state = 'failed' WHERE kind = 'confirm'")
    retry(store, job.id, "me")
    assert [row.state for row in queries.runs(store, job.id)] == ["failed"]


# Grids and choices


def test_a_grid_without_trials_is_all_its_points_each_once(store, tmp_path):
    job = new_job(store, tmp_path, algorithm="grid", space=GRID, trials=None)
    assert job.spec["search"]["trials"] == 6
    train(store, proposals(store, job), at_most=2)
    train(store, proposals(store, job))
    found = settings(store, job)
    assert [(rank, rate) for rank, rate, *_ in found] == [(r, lr) for r in (2, 4, 8) for lr in (1e-4, 1e-3)]
    assert {state for *_, state, _ in found} == {"done"}


@pytest.mark.parametrize("algorithm", ["tpe", "random"])
def test_no_setting_is_tried_twice(store, tmp_path, algorithm):
    job = new_job(store, tmp_path, algorithm=algorithm, space=GRID, trials=6)
    train(store, proposals(store, job), at_most=3)
    train(store, proposals(store, job))
    assert len({(rank, rate) for rank, rate, *_ in settings(store, job)}) == 6


def test_whole_numbers_for_a_field_that_is_a_float_are_known_again_after_a_kill(store, tmp_path):
    job = new_job(store, tmp_path, algorithm="random", trials=4, space={"lora.alpha": {"int": [8, 11]}})
    for _ in range(4):
        train(store, proposals(store, job), at_most=1)
    assert sorted(row.spec["lora"]["alpha"] for row in queries.runs(store, job.id)) == [8, 9, 10, 11]


def test_choices_that_are_no_plain_values_are_known_to_optuna_as_text():
    choices = {
        "inputs.modalities": {"choice": [["audio", "text"], ["text"]]},
        "readout.kind": {"choice": ["disc", "gen"]},
    }
    space = Space(choices, template())
    assert space.points()[0] == {"inputs.modalities": '["text", "audio"]', "readout.kind": "disc"}
    values = {"inputs.modalities": ["text"], "readout.kind": "gen"}
    assert space.params(values) == {"inputs.modalities": '["text"]', "readout.kind": "gen"}
    assert space.params({**values, "readout.kind": "other"}) is None
    assert space.params({"readout.kind": "gen"}) is None


def test_a_proposed_choice_is_the_value_that_was_written():
    choices = {"readout": {"choice": [{"kind": "disc", "head_width": 8}, {"kind": "gen"}]}}
    space = Space(choices, template())
    study = Study({"algorithm": "grid", "trials": 2}, space, Aim("mae", False), seed=1)
    found = [study.propose(number)[0]["readout"] for number in range(2)]
    assert [(one["kind"], one.get("head_width")) for one in found] == [("disc", 8), ("gen", None)]


@pytest.mark.parametrize("algorithm", ["grid", "random"])
def test_choices_that_mean_the_same_are_one_setting(store, tmp_path, algorithm):
    space = {"inputs.modalities": {"choice": [["text", "audio"], ["audio", "text"], ["text"]]}}
    job = new_job(store, tmp_path, algorithm=algorithm, space=space, trials=3)
    assert len(train(store, proposals(store, job))) == 2
    assert report.search(store, job.id).planned == 2


def test_one_and_true_are_two_choices():
    space = Space({"train.checkpointing": {"choice": [True, False]}, "lora.rank": {"choice": [1, 2]}}, template())
    assert [p["train.checkpointing"] for p in space.points()] == [True, True, False, False]


# Faults


def test_a_store_that_goes_away_while_a_run_is_entered_does_not_double_it(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "BUSY_S", 0.2)
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as store:
        job = new_job(store, tmp_path, trials=3)
        source = proposals(store, job)
        other = sqlite3.connect(tmp_path / "store.db", isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreAway):
            source.next()
        other.execute("ROLLBACK")
        first = source.next()
        assert [row.id for row in queries.runs(store, job.id)] == [first["run_id"]]
        assert states(source) == ["RUNNING"]
        train(store, source)
        assert [row.variant for row in queries.runs(store, job.id)] == ["t000", "t001", "t002"]


def test_a_driver_that_is_late_does_not_train_what_another_entered(store, tmp_path):
    job = new_job(store, tmp_path, trials=3)
    late = proposals(store, job)
    now = proposals(store, job)
    train(store, now, at_most=1)
    with store.write() as connection:  # as if the other's settings were not those that this one proposes
        connection.exec_driver_sql("UPDATE runs SET spec_digest = 'other'")
    with pytest.raises(LeaseLost, match="another driver"):
        late.next()
