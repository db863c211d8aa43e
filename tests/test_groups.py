"""Groups of runs: what belongs together, known answers, what is marked; and their tables, from a real store."""

import csv
import io
import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from sqlalchemy import event

from raymsa.errors import NotFound, UsageError
from raymsa.evaluation.metrics import constant_scores, measure
from raymsa.queue import NewTask, put
from raymsa.report.formats import WRITERS, Sheet, csv_text, markdown, write
from raymsa.report.group_sheets import check_metrics, one_sheet, sheets
from raymsa.report.groups import Group, as_json, extremes, group_tables
from raymsa.report.literature import Literature
from raymsa.report.screen import render_sheet
from raymsa.report.spread import Spread
from raymsa.spec import validate
from raymsa.store import Store, queries, records
from tests.made_up_runs import confirmed_search
from tests.stores import BACKENDS, fresh_url
from tests.test_formats import HOSTILE

LABEL = [-3.0, -2.0, -1.0, -0.4, 0.0, 0.4, 1.0, 2.0]
MOSI = {"name": "mosi", "task": {"kind": "regression", "metrics": "mosi"}}
SIMS = {"name": "ch_sims", "task": {"kind": "regression", "low": -1, "high": 1, "metrics": "sims"}}
MOODS = {"name": "moods", "task": {"kind": "classification", "classes": ["sad", "calm", "happy"]}}
MOOD = [0.0, 0.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0]


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def submit(store: Store, name: str = "mosi_disc", dataset: dict[str, Any] = MOSI, **more: Any) -> str:
    spec = {"name": name, "dataset": dataset, "readout": {"kind": "disc"}, "seeds": [1, 2], "variants": {}} | more
    return put(store, name, spec, [NewTask("run", {})], submitted_by="me", folder="/", git_commit=None)


def run(
    store: Store,
    job_id: str,
    seed: int = 1,
    shift: float = 0.5,
    *,
    key: str = "a" * 16,
    data: str | None = "data1",
    valid: float = 0.6,
    variant: str = "disc",
    score: list[float] | None = None,
    **spec: Any,
) -> str:
    """A finished run; its scores are the labels and `shift`, or those given."""
    dataset = queries.job(store, job_id).spec["dataset"]
    score = [label + shift for label in LABEL] if score is None else score
    profile = "classes" if dataset == MOODS else dataset["task"]["metrics"]
    label = MOOD if profile == "classes" else LABEL
    run_id = f"{job_id}-{variant}-{key}-{data}-{seed}"
    about = {"id": run_id, "job_id": job_id, "task_id": None, "variant": variant, "seed": seed, "group_key": key}
    records.create_runs(store, [{**about, "spec": spec, "spec_digest": "d"}])
    records.start_run(store, run_id, data_digest=data)
    floor = constant_scores(profile, 1.0 if profile == "classes" else 0.2, label)
    test = measure(profile, score, label) | {f"constant_{name}": value for name, value in floor.items()}
    decides = "f1" if profile == "classes" else "mae"
    records.finish_run(
        store,
        run_id,
        {"valid_error": valid, "device_s": 1800.0 * seed, "peak_memory_bytes": seed * 2**30},
        {"test": test, "valid": {decides: valid, f"constant_{decides}": 1.5}},
        [
            {"split": "test", "clip_id": str(n), "label": t, "score": s, "parsed": True, "in_range": True}
            for n, (s, t) in enumerate(zip(score, label, strict=True))
        ],
    )
    return run_id


def only(store: Store, *jobs: str) -> Group:
    (table,) = group_tables(store, list(jobs) or None)
    (group,) = table.groups
    return group


def sheet(store: Store, *jobs: str, **options: Any) -> Sheet:
    (made,) = sheets(group_tables(store, list(jobs) or None), **options)
    return made


def lines(made: Sheet) -> dict[str, dict[str, str]]:
    """Rows as they stand in Markdown: label (without footnotes) -> heading -> cell."""
    heading, _, *rows = (line for line in markdown(made).splitlines() if line.startswith("|"))
    names = [cell.strip() for cell in heading.strip("|").split("|")]
    found = {}
    for row in rows:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        found[cells[0].split(" \\[")[0]] = dict(zip(names, cells, strict=True))
    return found


def on_screen(made: Sheet, width: int = 160) -> str:
    page = Console(file=io.StringIO(), width=width, highlight=False)
    render_sheet(made, page)
    return page.file.getvalue()  # type: ignore[attr-defined,no-any-return]


# Known answers


def test_formula_predictions_have_the_answers_worked_out_by_hand(store: Store) -> None:
    job = submit(store)
    run(store, job, 1, 0.5)
    run(store, job, 2, 0.3)
    (table,) = group_tables(store)
    (group,) = table.groups
    assert group.test["mae"].mean == pytest.approx(0.4)
    assert group.test["mae"].sd == pytest.approx(math.sqrt(0.02))
    assert group.test["corr"].mean == pytest.approx(1.0)
    first = group.seeds[0].test
    assert first["acc2_has0"] == pytest.approx(7 / 8)
    assert first["acc2_nonzero"] == pytest.approx(6 / 7)
    assert first["acc7"] == pytest.approx(4 / 8)
    floor = table.floors[0].metrics["test"]
    assert floor["mae"] == pytest.approx(1.275)
    assert floor["acc2_has0"] == pytest.approx(4 / 8)
    assert floor["acc2_nonzero"] == pytest.approx(3 / 7)
    shown = lines(sheet(store))
    assert shown["disc"]["mae"] == "0.400 ± 0.141"
    assert shown["disc"]["acc7 (%)"] == "68.8 ± 26.5"
    assert shown["constant (train median)"]["mae"] == "1.275"
    assert shown["constant (train median)"]["valid mae"] == "1.500"
    assert shown["constant (train median)"]["corr"] == "nan"


def test_a_row_has_its_seeds_its_best_and_worst_one_and_what_it_cost(store: Store) -> None:
    job = submit(store)
    for seed, shift in ((1, 0.5), (2, 0.3), (3, 0.7)):
        run_id = run(store, job, seed, shift)
        records.record_steps(
            store,
            run_id,
            [{"step": n, "epoch": 1, "values": {"clips_per_s": 10.0 * n + seed, "loss": 1.0}} for n in (1, 2)],
        )
    row = lines(sheet(store))["disc"]
    assert (row["seeds"], row["group"]) == ("3", "aaaaaaaa")
    assert (row["best mae"], row["best seed"], row["worst mae"], row["worst seed"]) == ("0.300", "2", "0.700", "3")
    assert row["clips/s"] == "17.0 ± 1.0"  # of each run the median
    assert row["device h/run"] == "1.000 ± 0.500"
    assert row["peak GiB"] == "3.00"


def test_of_a_metric_that_is_good_when_high_the_highest_seed_is_the_best(store: Store) -> None:
    job = submit(store, "moods", MOODS)
    right, wrong = MOOD, [0.0, 1.0, 1.0, 1.0, 0.0, 2.0, 2.0, 1.0]
    run(store, job, 1, score=wrong)
    run(store, job, 2, score=right)
    group = only(store)
    ends = extremes(group, "f1", high_is_good=True)
    assert ends is not None
    assert [one.seed for one in ends] == [2, 1]
    assert lines(sheet(store, metrics=["acc"]))["disc"]["best acc (%)"] == "100.0"


def test_groups_are_sorted_by_valid_not_by_test(store: Store) -> None:
    job = submit(store)
    run(store, job, shift=0.1, key="a" * 16, valid=0.9, variant="lucky")
    run(store, job, shift=0.4, key="b" * 16, valid=0.5, variant="good")
    run(store, job, shift=0.2, key="c" * 16, valid=math.nan, variant="odd")
    (table,) = group_tables(store)
    assert [group.variant for group in table.groups] == ["good", "lucky", "odd"]


# What is one group


def test_runs_of_several_jobs_with_the_same_settings_and_clips_are_one_group(store: Store) -> None:
    run(store, submit(store, "one"), 1)
    run(store, submit(store, "two"), 2)
    group = only(store)
    assert [seed.seed for seed in group.seeds] == [1, 2]
    assert group.names == ("two", "one")
    assert "runs of the jobs two, one" in on_screen(sheet(store))


def test_other_clips_make_another_group_and_both_rows_say_so(store: Store) -> None:
    job = submit(store, "one")
    run(store, job, 1, data="data1")
    run(store, submit(store, "two"), 2, 0.3, data="data2")
    (table,) = group_tables(store)
    assert [len(group.seeds) for group in table.groups] == [1, 1]
    written = markdown(sheet(store))
    assert written.count("the same settings on different data") == 1
    assert written.count("| data1 |") == written.count("| data2 |") == 1
    assert written.count(r" \[1\] |") == 2
    assert "different data" not in markdown(sheet(store, job))


def test_of_a_seed_that_was_run_twice_the_newest_counts_once(store: Store) -> None:
    run(store, submit(store, "one"), 1, 0.5)
    run(store, submit(store, "two"), 1, 0.3)
    group = only(store)
    assert (len(group.seeds), group.repeated) == (1, (1,))
    assert group.test["mae"].mean == pytest.approx(0.3)
    assert "newest counts: seed 1" in on_screen(sheet(store))


def test_a_job_shows_its_own_runs_and_a_group_those_of_all_jobs(store: Store) -> None:
    one = submit(store, "one")
    run(store, one, 1)
    run(store, submit(store, "two"), 2)
    assert len(only(store, one).seeds) == 1
    (table,) = group_tables(store, [], ["a" * 16])
    assert len(table.groups[0].seeds) == 2


def test_what_is_not_finished_is_in_no_group(store: Store) -> None:
    job = submit(store)
    about = {"id": "r", "job_id": job, "task_id": None, "variant": "disc", "seed": 1, "group_key": "k"}
    records.create_runs(store, [{**about, "spec": {}, "spec_digest": "d"}])
    assert group_tables(store) == []


def test_other_datasets_targets_and_rules_are_other_tables(store: Store) -> None:
    voice = {**SIMS, "task": {**SIMS["task"], "target": "label_A"}}
    for name, dataset in (("a", MOSI), ("b", SIMS), ("c", MOODS), ("d", voice)):
        run(store, submit(store, name, dataset), score=MOOD, key=name * 16)
    found = [(table.dataset, table.profile, table.target) for table in group_tables(store)]
    assert found == [
        ("ch_sims", "sims", "label_A"),
        ("ch_sims", "sims", None),
        ("moods", "classes", None),
        ("mosi", "mosi", None),
    ]
    assert sheets(group_tables(store))[0].title.startswith("ch_sims, label_A: ")


def test_a_group_is_named_by_the_beginning_of_its_key(store: Store) -> None:
    job = submit(store)
    run(store, job, key="abc1" + "0" * 12)
    run(store, job, key="abc2" + "0" * 12)
    assert queries.group_key(store, "abc1") == "abc1" + "0" * 12
    with pytest.raises(UsageError, match="abc1000000000000, abc2000000000000; give more"):
        queries.group_key(store, "abc")
    for word in ("abd", ""):
        with pytest.raises(NotFound):
            queries.group_key(store, word)


def test_keys_that_begin_alike_are_shown_as_far_as_they_differ(store: Store) -> None:
    job = submit(store)
    for last in "xy":
        run(store, job, key="0" * 10 + last * 6, variant=last)
    assert {row["group"] for row in lines(sheet(store)).values()} == {"0000000000x", "0000000000y", "-"}


SEARCH = {"trials": 2, "space": {"lora.rank": {"choice": [4, 8]}}, "metric": "valid_corr"}


def test_the_trials_of_a_search_are_marked_and_step_back_behind_what_was_confirmed(store: Store) -> None:
    job = submit(store, "s", search=SEARCH, seeds=[1])
    run(store, job, 1, key="a" * 16, variant="t001")
    run(store, job, 1, 0.2, key="b" * 16, variant="t002")
    (table,) = group_tables(store)
    assert [group.trial for group in table.groups] == [True, True]
    assert "a trial of a search" in on_screen(sheet(store))
    run(store, job, 2, 0.3, key="b" * 16, variant="t002")
    group = only(store)
    assert ([seed.seed for seed in group.seeds], group.trial) == ([2], False)


def test_a_trial_is_not_averaged_with_the_seeds_of_a_plain_job(store: Store) -> None:
    run(store, submit(store, "s", search=SEARCH, seeds=[1]), 1)
    run(store, submit(store, "plain"), 2)
    group = only(store)
    assert ([seed.seed for seed in group.seeds], group.trial) == ([2], False)


def test_a_plain_job_with_the_seed_that_chose_its_settings_says_so(store: Store) -> None:
    run(store, submit(store, "s", search=SEARCH, seeds=[1]), 1)
    plain = submit(store, "plain")
    for seed in (1, 2):
        run(store, plain, seed)
    for asked in ((), (plain,)):
        group = only(store, *asked)
        assert ([seed.seed for seed in group.seeds], group.tried) == ([1, 2], (1,))
    assert "a search tried these settings with seed 1, too" in " ".join(on_screen(sheet(store)).split())


# Collapsed


def test_a_group_no_better_than_the_constant_is_collapsed_in_words(store: Store) -> None:
    job = submit(store)
    run(store, job, 1, score=[-label for label in LABEL])
    run(store, job, 2, score=[-label for label in LABEL])
    assert only(store).collapse.mean is not None
    written = " ".join(on_screen(sheet(store)).split())
    assert "disc (collapsed) [1,2,3]" in written
    reason = "has a test mae of 2.450, no better than the constant predictor's 1.275"
    assert f"[1] collapsed: seed 1 {reason} [2] collapsed: seed 2 {reason} [3] collapsed: the mean {reason}" in written


def test_one_good_seed_does_not_hide_the_one_that_says_the_same_of_all_clips(store: Store) -> None:
    job = submit(store)
    run(store, job, 1, 0.1)
    run(store, job, 2, score=[0.25] * 8)
    found = only(store).collapse
    assert found.mean is None
    assert [(one.seed, one.one_value) for one in found.seeds] == [(2, 0.25)]
    shown = on_screen(sheet(store))
    assert "disc (collapsed: 1 of 2 seeds) [1]" in shown
    assert "collapsed: seed 2 predicts one value (0.25) for all test clips" in shown


def test_one_seed_that_is_worse_than_the_constant_is_said_although_the_mean_is_better(store: Store) -> None:
    job = submit(store)
    for seed in (1, 2, 3):
        run(store, job, seed, 0.1)
    run(store, job, 4, score=[-label for label in LABEL])
    found = only(store).collapse
    assert (found.words, found.mean) == ("collapsed: 1 of 4 seeds", None)
    (reason,) = found.reasons()
    assert reason == "collapsed: seed 4 has a test mae of 2.450, no better than the constant predictor's 1.275"


def test_a_search_by_correlation_is_judged_by_what_chooses_epochs(store: Store) -> None:
    """A constant prediction has no correlation: its floor would be NaN."""
    confirmed_search(store)
    (table,) = group_tables(store)
    assert table.decides == "corr"
    assert [group.collapse.words for group in table.groups] == [""]


def test_the_constant_itself_is_no_better_than_the_constant(store: Store) -> None:
    run(store, submit(store), 1, score=[0.2] * 8)
    assert only(store).collapse.words == "collapsed"


def test_a_classifier_that_says_one_class_is_collapsed_and_one_by_chance_is_not(store: Store) -> None:
    job = submit(store, "moods", MOODS)
    run(store, job, 1, score=[2.0] * 8, key="a" * 16, variant="one")
    run(store, job, 1, score=[0.0, 1.0, 0.0, 2.0, 0.0, 2.0, 2.0, 2.0], key="b" * 16, variant="two")
    shown = on_screen(sheet(store))
    assert "seed 1 predicts one value (happy) for all test clips" in shown
    assert "two [" not in shown


def test_nan_scores_are_collapsed_too(store: Store) -> None:
    run(store, submit(store), 1, score=[math.nan] * 8)
    assert only(store).collapse.words == "collapsed"
    assert "test mae of nan, no better" in on_screen(sheet(store))


def test_a_good_group_is_not_marked(store: Store) -> None:
    run(store, submit(store), 1)
    assert "collapsed" not in on_screen(sheet(store))


# Baselines


TEXT = {"inputs": {"modalities": ["text"]}}


def test_the_text_only_group_on_the_same_clips_is_shown_unasked(store: Store) -> None:
    mine = submit(store, "mine")
    run(store, mine)
    other = submit(store, "words")
    run(store, other, key="c" * 16, valid=0.4, **TEXT)
    run(store, other, key="d" * 16, valid=0.3, **TEXT)
    run(store, other, key="e" * 16, data="data2", valid=0.1, **TEXT)
    (table,) = group_tables(store, [mine])
    assert [(group.key[0], group.rivals) for group in table.groups] == [("d", 2), ("a", 0)]
    shown = on_screen(sheet(store, mine))
    assert "words disc (text only) [1]" in shown
    assert "of 2 such groups the best on valid" in shown


def test_a_text_only_group_on_other_shards_stands_beside_where_the_test_clips_are_the_same(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a job that needs no sound and picture are prepared without them: they have another digest."""
    mine = submit(store, "mine")
    run(store, mine)
    run(store, submit(store, "words"), key="c" * 16, data="data2", **TEXT)
    monkeypatch.setattr("tests.test_groups.LABEL", [label / 2 for label in LABEL])
    run(store, submit(store, "other"), key="d" * 16, data="data3", valid=0.1, **TEXT)
    (table,) = group_tables(store, [mine])
    assert [(group.key[0], group.rivals, group.other_shards) for group in table.groups] == [
        ("a", 0, False),
        ("c", 1, True),
    ]
    shown = " ".join(on_screen(sheet(store, mine)).split())
    assert "other runs from other shards (data data2), of which test has the same clips and labels" in shown


def test_a_text_only_group_on_the_same_shards_is_preferred(store: Store) -> None:
    mine, words = submit(store, "mine"), submit(store, "words")
    run(store, mine)
    run(store, words, key="c" * 16, data="data2", valid=0.1, **TEXT)
    run(store, words, key="d" * 16, valid=0.5, **TEXT)
    (table,) = group_tables(store, [mine])
    assert [group.key[0] for group in table.groups if group.rivals] == ["d"]


def test_each_set_of_clips_has_a_text_only_baseline_of_its_own(store: Store) -> None:
    asked = [submit(store, "one"), submit(store, "two")]
    other = submit(store, "words")
    for job, data, key in zip(asked, ("data1", "data2"), "ab", strict=True):
        run(store, job, key=key * 16, data=data)
        run(store, other, key=key.upper() * 16, data=data, valid=0.3 if key == "a" else 0.4, **TEXT)
    (table,) = group_tables(store, asked)
    found = {group.data_digest: (group.key[0], group.rivals) for group in table.groups if group.text_only}
    assert found == {"data1": ("A", 1), "data2": ("B", 1)}


def test_a_text_only_group_that_was_asked_for_needs_no_other(store: Store) -> None:
    mine = submit(store, "mine")
    run(store, mine, **TEXT)
    run(store, submit(store, "words"), key="c" * 16, **TEXT)
    assert only(store, mine).rivals == 0


def test_the_constant_is_in_the_table_even_where_no_run_recorded_it(store: Store) -> None:
    job = submit(store)
    about = {"id": "r", "job_id": job, "task_id": None, "variant": "disc", "seed": 1, "group_key": "k"}
    records.create_runs(store, [{**about, "spec": {}, "spec_digest": "d"}])
    records.finish_run(store, "r", {}, {"test": {"mae": 0.5}, "valid": {"mae": 0.5}}, [])
    assert "constant (train median) [1]" in on_screen(sheet(store))
    assert "did not record" in on_screen(sheet(store))


def test_other_clips_have_a_constant_of_their_own(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    run(store, submit(store, "one"), data="data1")
    monkeypatch.setattr("tests.test_groups.LABEL", [label / 2 for label in LABEL])
    run(store, submit(store, "two"), data="data2")
    shown = on_screen(sheet(store))
    assert "constant (train median), data data1" in " ".join(shown.split())
    assert "constant (train median), data data2" in " ".join(shown.split())


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_same_table_comes_from_every_kind_of_store(backend: str, tmp_path: Path) -> None:
    with fresh_url(backend, tmp_path) as url, Store.open(url, create=True) as store:
        mine = submit(store, "mine")
        run(store, mine, 1, 0.1)
        told = run(store, mine, 2, score=[0.25] * 8)
        records.record_steps(store, told, [{"step": 1, "epoch": 1, "values": {"clips_per_s": 12.5}}])
        run(store, submit(store, "words"), key="B" * 16, valid=0.1, **TEXT)
        (table,) = group_tables(store, [mine])
        assert [group.key[0] for group in table.groups] == ["B", "a"]
        assert [one.one_value for one in table.groups[1].collapse.seeds] == [0.25]
        assert table.groups[1].clips_per_s == Spread(12.5, None, 1)
        assert queries.group_key(store, "BB") == "B" * 16
        assert queries.clip_counts(store, [told, "none"], "test") == {told: 8}


# Tables


def test_csv_of_several_datasets_is_one_table_that_names_them(store: Store) -> None:
    for name, dataset in (("a", MOSI), ("c", MOODS)):
        run(store, submit(store, name, dataset), score=MOOD if dataset == MOODS else None, key=name * 16)
    text = csv_text(one_sheet(group_tables(store)))
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [(row["dataset"], row["profile"], row["target"], row["label"]) for row in rows] == [
        ("moods", "classes", "", "disc"),
        ("moods", "classes", "", "constant (most frequent class)"),
        ("mosi", "mosi", "", "disc"),
        ("mosi", "mosi", "", "constant (train median)"),
    ]
    assert (rows[0]["test_f1"], rows[0]["test_mae"]) == ("1.0", "")
    assert rows[0].keys() == rows[2].keys()


def test_metric_chooses_the_columns_and_what_best_and_worst_mean(store: Store) -> None:
    run(store, submit(store))
    made = sheet(store, metrics=["acc7", "peak_memory_bytes"])
    assert [column.name for column in made.columns] == [
        *("label", "group", "seeds", "valid_mae", "test_acc7"),
        *("test_acc7_best", "best_seed", "test_acc7_worst", "worst_seed", "peak_memory_bytes"),
    ]


def test_an_unknown_metric_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match=r"given 'xyz' .known: .*acc2_has0.*clips_per_s.*unparsable"):
        check_metrics(["mae", "xyz"])


def test_a_metric_that_no_table_shown_has_is_refused_with_the_near_ones() -> None:
    check_metrics(["acc2", "f1"])
    check_metrics(["acc2", "acc7", "device_s", "unparsable"], ["sims", "mosi"])
    near = {"acc2": "acc2_has0 or acc2_nonzero", "f1": "f1_has0 or f1_nonzero", "acc2_hs0": "acc2_has0"}
    for name, words in near.items():
        with pytest.raises(UsageError, match=f"given '{name}'; did you mean {words}.* .known: mae, .*clips_per_s"):
            check_metrics([name], ["mosi"])


def test_a_metric_of_another_profile_leaves_its_table_as_short_as_it_is(store: Store) -> None:
    run(store, submit(store, "a", MOSI))
    run(store, submit(store, "b", SIMS), key="b" * 16)
    sims, mosi = sheets(group_tables(store), ["acc7"])
    assert "test_acc7" in [column.name for column in mosi.columns]
    assert "test_acc7" not in [column.name for column in sims.columns]


def test_csv_holds_what_json_holds_unrounded(store: Store) -> None:
    run(store, submit(store), 1, 1 / 3)
    run(store, submit(store), 2, 1 / 7)
    heading, disc, constant = csv.reader(io.StringIO(write([sheet(store)], "csv")))
    row = dict(zip(heading, disc, strict=True))
    (table,) = json.loads(json.dumps(as_json(group_tables(store)), allow_nan=False))
    (group,) = table["groups"]
    assert float(row["test_mae"]) == group["test"]["mae"]["mean"]
    assert float(row["test_mae_sd"]) == group["test"]["mae"]["sd"]
    assert float(row["device_s"]) == 2700.0
    assert dict(zip(heading, constant, strict=True))["test_corr"] == "nan"
    assert table["floors"][0]["metrics"]["test"]["corr"] is None


@pytest.mark.parametrize("width", [50, 80, 120, 200])
def test_no_number_is_broken_and_no_line_is_wider_than_the_console(store: Store, width: int) -> None:
    job = submit(store)
    run(store, job, 1, 0.5)
    run(store, job, 2, 0.3)
    shown = on_screen(sheet(store), width)
    assert max(map(len, shown.splitlines())) <= width
    for text in ("0.400 ± 0.141", "0.750 ± 0.354", "aaaaaaaa", "0.600 ± 0.000"):
        assert text in shown


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_names_are_text_in_every_format(store: Store, text: str) -> None:
    name = text.encode(errors="replace").decode()
    job = submit(store, name)
    run(store, job, variant=f"{name}[red]:smile:")
    run(store, submit(store, "other"), key="b" * 16)
    made = sheet(store)
    assert {how: "other" in write([made], how) for how in WRITERS} == dict.fromkeys(WRITERS, True)
    shown = on_screen(made, 100)
    assert not set("\x1b\x07\x9b\u202e\u2066\u200f\r\u2028") & set(shown)
    assert max(map(len, shown.splitlines())) <= 100 or "emoji" in text or not text.isascii()
    if len(text) < 50:
        assert "[red]:smile:" in "".join(shown.split())


def test_the_number_of_questions_to_the_store_does_not_grow_with_the_runs(store: Store) -> None:
    asked: list[str] = []
    event.listen(store.engine, "before_cursor_execute", lambda *call: asked.append(call[2]))

    def questions() -> int:
        asked.clear()
        sheets(group_tables(store))
        return len([statement for statement in asked if statement.startswith("SELECT")])

    run(store, submit(store, "first"), score=[0.2] * 8)
    few = questions()
    for number in range(12):
        run(store, submit(store, f"job{number}"), number, key=f"{number:016x}", score=[0.2] * 8)
    assert questions() == few


# Beside the literature


def published(**more: Any) -> Literature:
    row = {"method": "TFN", "source": "s", "mae": 0.947, "acc2": {"unknown": 79.1}, "f1": {"nonzero": 79.0}}
    data = {"dataset": "mosi", "metrics": "mosi", "test_clips": 686, "sources": {"s": "a paper"}, "rows": [row]}
    found: Literature = validate(Literature, data | more, "test")
    return found


def test_published_rows_stand_below_ours_and_a_foreign_acc2_has_its_own_column_and_footnote(store: Store) -> None:
    run(store, submit(store))
    made = sheet(store, literature=published())
    shown = lines(made)
    assert list(shown) == ["disc", "constant (train median)", "TFN"]
    assert (shown["TFN"]["mae"], shown["TFN"]["numbers are"], shown["TFN"]["valid mae"]) == ("0.947", "unknown", "-")
    assert shown["TFN"]["acc2 has0 (%)"] == shown["TFN"]["acc2 nonzero (%)"] == "-"
    assert shown["TFN"]["f1 nonzero (%)"] == "79.0"
    assert shown["TFN"]["acc2 by another rule (%)"].startswith("79.1 \\[")
    written = markdown(made)
    assert "Acc-2: the source does not say by which rule" in written
    assert "published, not measured here: a paper" in written


def test_a_test_set_of_another_size_than_the_published_one_is_said(store: Store) -> None:
    run_id = run(store, submit(store))
    counts = queries.clip_counts(store, [run_id], "test")
    assert counts == {run_id: 8}
    assert "scored on 8 test clips; the published split has 686" in on_screen(
        sheet(store, literature=published(), clips=counts)
    )
    assert "scored on" not in on_screen(sheet(store, literature=published(test_clips=8), clips=counts))


def test_published_results_on_another_dataset_are_a_table_of_their_own(store: Store) -> None:
    run(store, submit(store))
    ours, theirs = sheets(group_tables(store), literature=published(dataset="mosei"))
    assert "TFN" not in markdown(ours)
    assert theirs.title == "mosei: published results on test, mosi metrics"
    assert len(theirs.rows) == 1
