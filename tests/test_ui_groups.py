"""The tables of groups, and the comparison of some: what they say, from real stores, without a browser."""

import re

import pytest

from raymsa.report.compare import comparison
from raymsa.report.compare_sheets import sentence
from raymsa.report.groups import group_tables
from raymsa.store import queries, records
from raymsa.ui import compare, kept
from tests import made_up_runs as made
from tests.ui_site import HOSTILE, Visitor, own_home, own_store  # noqa: F401 (fixtures)


@pytest.fixture(autouse=True)
def quick_and_patient(monkeypatch) -> None:
    monkeypatch.setattr(made, "STEPS", made.EPOCHS)
    monkeypatch.setattr(kept, "PATIENCE_S", 60)


@pytest.fixture()
def guest(store, home):
    return Visitor(f"sqlite:///{home}/store.db", home / "reports")


def words(html: str) -> str:
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


def finished(store, labels=None, data: str = "d1", **spec) -> list[queries.RunRow]:
    """The runs of a job that is done."""
    whole = made.job_spec(**spec)
    job_id = made.submit(store, whole)
    skipped = tuple(f"{variant}-{seed}" for variant in whole["variants"] for seed in whole["seeds"])
    made.finish(store, job_id, whole, {}, skipped)
    for run in queries.runs(store, job_id):
        made.finish_run(store, {"id": run.id, "variant": run.variant, "seed": run.seed, "spec": run.spec}, labels, data)
    return queries.runs(store, job_id)


def rows_of(html: str) -> list[str]:
    return [words(row) for row in re.findall(r"<tr.*?</tr>", html, re.DOTALL)]


# All groups


def test_the_groups_of_all_jobs_stand_in_a_table_for_each_dataset(store, guest) -> None:
    assert "No run is done yet." in guest.get("/groups").text
    runs = finished(store, made.small(), name="first")
    other = {"kind": "synthetic", "name": "other"}
    runs += finished(store, made.small(), name="second", dataset=other)
    guest.site.hub._feeds.clear()
    page = guest.get("/groups").text
    assert page.count("<table") == 2
    for table in group_tables(store):
        for group in table.groups:
            row = next(
                row for row in rows_of(page) if f"{group.names[0]} {group.variant}" in row or group.key[:8] in row
            )
            mae = group.test["mae"]
            assert f"{mae.mean:.3f} ± {mae.sd:.3f}" in row
            assert f'name="group" value="{group.key}"' in page
            assert f'href="/compare?group={group.key}"' in page
    assert len([row for row in rows_of(page) if row.startswith("constant")]) == 2
    assert page.count('aria-current="page"') == 1


def test_a_group_that_is_no_better_than_a_constant_is_called_collapsed(store, guest, monkeypatch) -> None:
    monkeypatch.setattr(made, "scores", lambda kind, seed, label_B: label_B * 0 + 0.2 if kind == "gen" else label_B)
    (*_, run) = finished(store, made.small())
    for path in ("/groups", f"/jobs/{run.job_id}"):
        gen, disc = (next(row for row in rows_of(guest.get(path).text) if row.startswith(v)) for v in ("gen", "disc"))
        assert "collapsed" in gen and "predicts one value" in gen
        assert "collapsed" not in disc
    shown = words(guest.get(f"/runs/{run.id}").text)
    assert "Collapsed: seed 2 predicts one value (0.2) for all test clips" in shown
    assert "ollapsed" not in guest.get(f"/runs/{run.job_id}-disc-1").text
    listed = [row for row in rows_of(guest.get(f"/jobs/{run.job_id}").text) if row.startswith(run.job_id)]
    assert [f"{variant} (collapsed)" in row for row in listed for variant in ("disc", "gen")] == [False, False] * 2 + [
        False,
        True,
    ] * 2
    shown = rows_of(guest.get(f"/compare?run={run.id}&run={run.job_id}-disc-1").text)
    assert [f"{run.variant} (collapsed)" in row for row in shown if row.startswith(run.job_id)] == [True, False]


def test_a_new_result_is_on_the_page_of_groups(store, guest) -> None:
    finished(store, made.small(), name="first")
    assert "second" not in guest.get("/groups").text
    finished(store, made.small(), name="second", train={"epochs": made.EPOCHS, "head_lr": 1e-4})
    guest.site.hub._feeds.clear()
    assert "second" in guest.get("/groups").text


def test_hostile_names_are_text_in_tables_of_groups(store, guest) -> None:
    whole = made.job_spec()
    job_id = made.submit(store, whole, name=" ".join(HOSTILE.values()))
    made.finish(store, job_id, whole, made.small())
    for path in ("/groups", f"/jobs/{job_id}", f"/compare?run={job_id}-disc-1&run={job_id}-gen-1"):
        page = guest.get(path).text
        assert "<script>window" not in page
        assert not re.search("<(b|img) ", page)
        assert "\x1b" not in page and "\u202e" not in page


def test_a_run_shows_what_was_wrong_with_its_answers_and_what_a_constant_has(store, guest) -> None:
    (*_, run) = finished(store, made.small())
    page = guest.get(f"/runs/{run.id}").text
    shown = rows_of(page[page.index("At the end") :])
    test = queries.finals(store, run.id)["test"]
    assert shown[0] == "metric valid test constant on valid constant on test"
    mae = next(row for row in shown if row.startswith("mae"))
    assert mae.split()[-1] == f"{test['constant_mae']:.3f}" and mae.split()[2] == f"{test['mae']:.3f}"
    assert [row for row in shown if row.startswith(("unparsable", "out of range"))] == [
        "unparsable (%) 1.25 1.25 - -",
        "out of range (%) 0.00 0.00 - -",
    ]


# Comparison


def test_groups_are_compared_with_interval_p_and_a_sentence(store, guest) -> None:
    runs = finished(store, made.small(60))
    keys = list(dict.fromkeys(run.group_key for run in runs))
    page = guest.get("/compare?" + "&".join(f"group={key}" for key in keys)).text
    found = comparison(store, keys, ())
    (each,) = found.differences
    assert sentence(found, each) in words(page)
    assert f"{each.found.low:.3f}" in page and f"{each.found.high:.3f}" in page and f"{each.found.p:.4f}" in page
    assert "drawn with replacement" in page
    assert f"raymsa compare {keys[0]} {keys[1]}" in page
    assert words(page).count("4 runs.") == 1


def test_chosen_runs_stand_for_their_groups_and_within_one_group_for_themselves(store, guest) -> None:
    runs = finished(store, made.small())
    two = guest.get(f"/compare?run={runs[0].id}&run={runs[-1].id}").text
    assert "disc against made_up/gen" in words(two).replace("made_up/disc", "disc")
    same = guest.get(f"/compare?run={runs[0].id}&run={runs[1].id}").text
    assert "disc seed 1 against" in words(same)
    assert ["Of the whole groups" in words(page) for page in (two, same)] == [True, False]
    alone = words(guest.get(f"/compare?group={runs[0].group_key}").text)
    assert "This is one group; choose two or more to test their difference." in alone


def test_whole_groups_are_tested_again_when_a_run_of_theirs_that_was_not_chosen_is_done(store, guest) -> None:
    whole = made.job_spec(seeds=(1, 2, 3))
    job_id = made.submit(store, whole)
    ids = made.finish(store, job_id, whole, made.small(), ("disc-3", "gen-3"))
    chosen = (f"{job_id}-disc-1", f"{job_id}-gen-1")

    def differences() -> str:
        return words(compare.compare(store, chosen, (), guest.site.known).parts["differences"])

    before = differences()
    for run in [queries.run(store, name) for name in ids if name.endswith("-3")]:
        made.finish_run(store, {"id": run.id, "variant": run.variant, "seed": 3, "spec": run.spec}, made.small())
    assert differences() != before


def test_runs_on_other_clips_are_not_compared_and_the_reason_is_said(store, guest) -> None:
    one = finished(store, made.small(), name="one")
    other = finished(store, made.small(), "d2", name="other", train={"epochs": made.EPOCHS, "head_lr": 1e-4})
    page = guest.get(f"/compare?group={one[0].group_key}&group={other[0].group_key}").text
    shown = words(page)
    assert "cannot be compared: their clips were prepared differently (data digests d1, d2)" in shown
    assert "These runs are on different clips (data d1, d2): their numbers do not stand beside each other." in shown
    assert ">data<" in page
    assert rows_of(page)[1].split()[4:5] == ["d1"]
    same = guest.get(f"/compare?group={one[0].group_key}&group={one[-1].group_key}").text
    assert ">data<" not in same and "different clips" not in words(same)


def test_the_reason_is_readable_behind_a_very_long_name(store, guest) -> None:
    one = finished(store, made.small(), name="one")
    whole = made.job_spec(train={"epochs": made.EPOCHS, "head_lr": 1e-4})
    job_id = made.submit(store, whole, name="x" * 10_000)
    made.finish(store, job_id, whole, made.small(30))
    page = words(guest.get(f"/compare?group={one[0].group_key}&group={queries.runs(store, job_id)[0].group_key}").text)
    assert "cannot be compared: their clips differ" in page
    assert page.count("x" * 1000) == 0


def test_groups_that_are_not_done_say_so_and_show_their_curves(store, guest) -> None:
    whole = made.job_spec()
    job_id = made.submit(store, whole)
    made.finish(store, job_id, whole, made.small(), ("gen-1", "gen-2"))
    runs = queries.runs(store, job_id)
    records.start_run(store, runs[-1].id, steps_total=10)
    page = guest.get("/compare?" + "&".join(f"group={key}" for key in {run.group_key for run in runs})).text
    assert "no run of it is done" in words(page)
    assert page.count('<svg class="chart"') == 2


def test_many_groups_are_shown_and_not_tested(store, guest, monkeypatch) -> None:
    monkeypatch.setattr(compare, "SIDES", 2)
    runs = finished(store, made.small(), variants={f"v{n}": {"train.head_lr": n / 1000} for n in (1, 2, 3)})
    shown = words(guest.get("/compare?" + "&".join(f"run={run.id}" for run in runs)).text)
    assert "These are 3; choose at most 2 to test the difference of each two." in shown


def test_runs_and_groups_are_drawn_over_each_other(store, guest) -> None:
    runs = finished(store, made.small())
    page = guest.get(f"/compare?group={runs[0].group_key}&run={runs[2].id}").text
    assert page.count('class="curve k0"') == 2 + 1  # two charts, and the legend
    assert page.count('class="curve k1"') == 2 * 2 + 2  # one look for a group
    assert "3 runs." in words(page)
    assert guest.get("/compare").status_code == 404
    assert "choose runs or groups" in guest.get("/compare").text


def test_of_a_seed_that_was_run_twice_the_newest_counts_and_the_page_says_so(store, guest) -> None:
    older, newer = finished(store, made.small(), name="one"), finished(store, made.small(), name="again")
    assert older[0].group_key == newer[0].group_key
    page = guest.get(f"/compare?group={older[0].group_key}&group={older[-1].group_key}").text
    assert "4 runs; 4 more of these groups do not count" in words(page)
    assert [row.split()[0] for row in rows_of(page) if row.split()[0].endswith(("-1", "-2"))] == [
        run.id for run in newer
    ]
    assert "seeds 1, 2 were run more than once; the newest run counts" in words(page)
