"""What is no better than a constant: published numbers, seeds and their mean, floors that are not known."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from raymsa.evaluation.metrics import constant_scores, measure
from raymsa.report import collapse as module
from raymsa.report.collapse import Collapse, collapse
from raymsa.store import Store, queries, records, tables
from tests import made_up_runs

MOSI = {"constant_mae": 1.4559, "constant_corr": math.nan}  # of the train median, on the test split


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def test_a_published_baseline_that_is_worse_than_the_train_median_is_collapsed() -> None:
    found = collapse({1: {"mae": 1.521, "corr": 0.197, **MOSI}}, "mosi")
    assert found.words == "collapsed"
    assert list(found.reasons()) == [
        "collapsed: seed 1 has a test mae of 1.521, no better than the constant predictor's 1.456"
    ]
    assert collapse({1: {"mae": 1.443, "corr": 0.491, **MOSI}}, "mosi").words == ""


@pytest.mark.parametrize(
    ("maes", "words"),
    [
        ([0.6, 0.6, 0.6, 1.5], "collapsed: 1 of 4 seeds"),
        ([0.6, 3.0, 3.0, 3.0], "collapsed: 3 of 4 seeds, and the mean"),
        ([1.4559, 1.6], "collapsed"),
        ([0.6, math.nan], "collapsed: 1 of 2 seeds, and the mean"),
        ([0.6, 0.7], ""),
    ],
)
def test_every_seed_is_judged_and_the_mean_too(maes: list[float], words: str) -> None:
    assert collapse({seed: {"mae": mae, **MOSI} for seed, mae in enumerate(maes)}, "mosi").words == words


@pytest.mark.parametrize("floor", [{}, {"constant_mae": math.nan}])
def test_a_floor_that_is_not_known_makes_nobody_collapsed(floor: dict[str, float]) -> None:
    assert collapse({1: {"mae": 9.0, "corr": 0.1, **floor}}, "mosi") == Collapse("mae", "test", 1)


def test_of_classes_the_weighted_f1_is_judged_and_a_high_one_is_good() -> None:
    by = {1: {"f1": 0.4, "constant_f1": 0.2, "uar": 0.4}, 2: {"f1": 0.1, "constant_f1": 0.2, "uar": 0.3}}
    assert collapse(by, "classes").words == "collapsed: 1 of 2 seeds"
    (reason,) = collapse(by, "classes").reasons()
    assert reason.endswith("seed 2 has a test f1 of 10.0 %, no better than the constant predictor's 20.0 %")


def test_a_run_that_says_the_same_of_every_clip_is_found_in_its_predictions(store: Store) -> None:
    spec = made_up_runs.job_spec(seeds=(1, 2), variants={})
    job_id = made_up_runs.submit(store, spec)
    bad, good = made_up_runs.finish(store, job_id, spec, made_up_runs.small())
    label = list(made_up_runs.small()["test"].values())
    test = measure("mosi", np.full(len(label), 0.0), label)
    clips = [
        {"split": "test", "clip_id": str(n), "label": one, "score": 0.0, "parsed": True, "in_range": True}
        for n, one in enumerate(label)
    ]
    with store.write() as connection:
        connection.execute(tables.predictions.delete().where(tables.predictions.c.run_id == bad))
    floor = {f"constant_{name}": value for name, value in constant_scores("mosi", 1.0, label).items()}
    records.finish_run(store, bad, {}, {"test": {**test, **floor}}, clips)
    assert test["mae"] < floor["constant_mae"]  # another constant may be luckier than the train median
    for run_id, said in ((bad, "collapsed"), (good, "")):
        run = queries.run(store, run_id)
        assert module.of_run(store, run, queries.finals(store, run_id)["test"], "mosi").words == said
