"""Which runs count as one group: searches and what confirms them, seeds run twice, other clips."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from raymsa.report.members import Members, beside, confirming, members, of_group
from raymsa.store import Store, queries
from tests.made_up_runs import confirmed_search
from tests.test_groups import run, submit

KEY = "a" * 16
SEARCH = {"search": {"space": {}}, "seeds": [1]}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def ids(one: Members) -> list[str]:
    return [row.id for row in one.runs]


def all_of(store: Store) -> list[Members]:
    return members(queries.finished(store), {job.id: job for job in queries.jobs(store)})


def test_the_trial_that_chose_a_setting_is_not_among_the_runs_that_confirm_it(store: Store) -> None:
    job_id, trial, *fresh = confirmed_search(store)
    (group,) = of_group(store, queries.run(store, trial).group_key)
    assert (ids(group), group.trial) == (fresh, False)
    assert [row.id for row in confirming(queries.runs(store), {job_id: queries.job(store, job_id)})] == fresh


def test_a_trial_is_not_among_the_runs_of_another_job_either(store: Store) -> None:
    run(store, submit(store, "search", **SEARCH), 1, 0.1)
    plain = run(store, submit(store, "plain"), 2, 0.5)
    (group,) = all_of(store)
    assert (ids(group), group.trial) == ([plain], False)


def test_without_fresh_seeds_there_is_the_trial_and_it_is_called_one(store: Store) -> None:
    job_id = submit(store, "search", **SEARCH)
    trial = run(store, job_id, 1)
    (group,) = of_group(store, KEY)
    assert (ids(group), group.trial) == ([trial], True)
    assert confirming(queries.runs(store), {job_id: queries.job(store, job_id)}) == queries.runs(store)


def test_of_a_search_with_a_confirmed_setting_the_other_trials_do_not_count(store: Store) -> None:
    job_id = submit(store, "search", **SEARCH)
    run(store, job_id, 1, key="b" * 16)
    run(store, job_id, 1)
    fresh = run(store, job_id, 2)
    found = confirming(queries.runs(store), {job_id: queries.job(store, job_id)})
    assert [row.id for row in found] == [fresh]


def test_of_a_seed_that_was_run_twice_the_newest_counts(store: Store) -> None:
    run(store, submit(store, "one"), 1)
    newer = run(store, submit(store, "two"), 1)
    other = run(store, submit(store, "three"), 2)
    (group,) = of_group(store, KEY)
    assert (ids(group), group.repeated, group.newest.id) == ([newer, other], (1,), other)


def test_other_clips_make_another_group_and_unknown_ones_too(store: Store) -> None:
    job_id = submit(store)
    made = [run(store, job_id, 1, data=data) for data in ("data1", "data2", None)]
    assert [(one.data_digest, ids(one)) for one in of_group(store, KEY)] == [
        ("data1", made[:1]),
        ("data2", made[1:2]),
        (None, made[2:]),
    ]


def test_a_run_stands_beside_those_of_its_clips(store: Store) -> None:
    _, trial, *fresh = confirmed_search(store)
    assert ids(beside(store, queries.run(store, trial))) == fresh
    assert ids(beside(store, queries.run(store, fresh[1]))) == fresh
    job_id = submit(store)
    alone = run(store, job_id, 1, data=None)
    run(store, job_id, 2, data="data1")
    assert ids(beside(store, queries.run(store, alone))) == [alone]


def test_a_plain_run_with_the_seed_that_chose_its_setting_is_known_as_tried(store: Store) -> None:
    job_id = submit(store, "search", **SEARCH)
    trial = run(store, job_id, 1, 0.1)
    run(store, job_id, 1, key="b" * 16)  # other settings
    plain = submit(store, "plain")
    run(store, plain, 2)
    assert [(one.tried, one.fresh) for one in of_group(store, KEY)] == [((), (2,))]
    run(store, plain, 1)
    assert [(one.tried, one.fresh) for one in of_group(store, KEY)] == [((1,), (1, 2))]
    rows, jobs = [queries.run(store, trial)], {job.id: job for job in queries.jobs(store)}
    assert [(one.trial, one.tried, one.fresh) for one in members(rows, jobs)] == [(True, (), ())]
    (alone,) = members(rows, jobs, queries.finished(store))
    assert (ids(alone), alone.trial, alone.tried, alone.fresh) == ([trial], True, (), (1, 2))
