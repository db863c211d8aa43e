"""The results table of a job, from a real store."""

import io
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from raymsa.cli import main
from raymsa.errors import NotFound
from raymsa.evaluation.metrics import PROFILES, constant_scores, measure
from raymsa.queue import NewTask, put
from raymsa.report.results import Results, as_json, results
from raymsa.report.tables import render_rest
from raymsa.spec import check
from raymsa.store import Store, records

SCORE = {"kind": "regression"}
CLASSES = {"kind": "classification", "classes": ["sad", "happy"]}
TWO = {"trials": 2, "space": {"lora.rank": {"choice": [4, 8]}}}
LABEL = [-2.0, -0.4, 0.0, 0.6, 1.8, 2.4]


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def submit(
    store: Store, seeds: list[int], variants: dict[str, Any] | None = None, search: Any = None, task: Any = SCORE
) -> str:
    spec = {"name": "mosi", "dataset": {"task": task}, "readout": {"kind": "disc"}, "seeds": seeds}
    spec |= {"variants": variants or {}, "search": None}
    if search:
        spec = check(whole(search=search, seeds=seeds, task=task), "test").model_dump(mode="json")
    return put(store, "mosi", spec, [NewTask("run", {})], submitted_by="me", folder="/", git_commit=None)


def whole(task: Any = SCORE, **sections: Any) -> dict[str, Any]:
    data = {"kind": "synthetic", "name": "s", "task": task}
    return {"name": "mosi", "model": {"path": "tiny"}, "dataset": data, "readout": {"kind": "disc"}, **sections}


def enter(
    store: Store, job_id: str, variant: str, seed: int, group: str = "g", spec: dict[str, Any] | None = None
) -> str:
    run_id = f"{variant}-{group}-{seed}"
    row = {"id": run_id, "job_id": job_id, "task_id": None, "variant": variant, "seed": seed, "group_key": group}
    records.create_runs(store, [{**row, "spec": spec or {}, "spec_digest": "d"}])
    return run_id


def finish(store: Store, run_id: str, shift: float, valid_mae: float, **more: float) -> dict[str, float]:
    score = [label + shift for label in LABEL]
    test = measure("mosi", score, LABEL)
    floor = {f"constant_{name}": value for name, value in constant_scores("mosi", 0.2, LABEL).items()}
    clips = [
        {"split": "test", "clip_id": str(i), "label": t, "score": s, "parsed": True, "in_range": True}
        for i, (s, t) in enumerate(zip(score, LABEL, strict=True))
    ]
    facts = {"peak_memory_bytes": 2**30, "trainable_parameters": 1_000, "valid_error": valid_mae, "device_s": 120.0}
    finals = {"test": {**test, **floor, **more}, "valid": {**test, "mae": valid_mae}}
    records.finish_run(store, run_id, facts, finals, clips)
    return test


def printed(found: Results, width: int = 200) -> str:
    console = Console(file=io.StringIO(), width=width)
    render_rest(found, console)
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def test_a_row_has_mean_and_sample_sd_over_its_seeds(store: Store) -> None:
    job_id = submit(store, [1, 2])
    for seed, shift in ((1, 0.1), (2, 0.3)):
        finish(store, enter(store, job_id, "disc", seed), shift, 0.5)
    (row,) = results(store, job_id).rows
    assert (row.finished, row.planned) == (2, 2)
    assert row.test["mae"].mean == pytest.approx(0.2)
    assert row.test["mae"].sd == pytest.approx(math.sqrt(0.02))
    assert row.device_s == 120.0


def test_one_seed_has_no_sd(store: Store) -> None:
    job_id = submit(store, [1])
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5)
    found = results(store, job_id)
    assert found.rows[0].test["mae"].sd is None
    assert "0.100" in printed(found)
    assert "±" not in printed(found).partition("\n")[2]


def test_the_best_run_is_chosen_on_valid_not_on_test(store: Store) -> None:
    job_id = submit(store, [1, 2])
    finish(store, enter(store, job_id, "disc", 1), 0.1, valid_mae=0.9)
    finish(store, enter(store, job_id, "disc", 2), 0.7, valid_mae=0.4)
    found = results(store, job_id)
    best = found.rows[0].best
    assert best is not None
    assert best.seed == 2
    assert best.test["mae"] == pytest.approx(0.7)
    assert "chosen on valid" in printed(found)


def test_runs_without_results_are_listed_with_their_reason(store: Store) -> None:
    job_id = submit(store, [1, 2, 3])
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5)
    records.fail_run(store, enter(store, job_id, "disc", 2), "loss is NaN at step 3 [clips a, b]")
    enter(store, job_id, "disc", 3)
    found = results(store, job_id)
    assert found.rows[0].finished == 1
    assert [(run.seed, run.state) for run in found.unfinished] == [(2, "failed"), (3, "queued")]
    assert "seed 2) is failed: loss is NaN at step 3 [clips a, b]" in printed(found)
    assert "1/3" in printed(found)


def test_a_variant_that_has_not_begun_still_has_its_row(store: Store) -> None:
    job_id = submit(store, [1, 2], variants={"disc": {}, "gen": {}})
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5)
    assert [(row.variant, row.finished, row.planned) for row in results(store, job_id).rows] == [
        ("disc", 1, 2),
        ("gen", 0, 2),
    ]


def test_a_best_run_that_is_no_better_than_the_constant_is_marked(store: Store) -> None:
    job_id = submit(store, [1], variants={"good": {}, "bad": {}})
    for variant, shift in (("good", 0.1), ("bad", 5.0)):
        finish(store, enter(store, job_id, variant, 1), shift, 0.5)
    assert [row.collapse.words for row in results(store, job_id).rows] == ["", "collapsed"]
    assert printed(results(store, job_id)).count("(collapsed)") == 1


def test_unparsable_answers_are_in_the_table_of_the_variant_that_answers(store: Store) -> None:
    job_id = submit(store, [1], variants={"disc": {}, "gen": {}})
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5)
    finish(store, enter(store, job_id, "gen", 1), 0.2, 0.6, unparsable=0.25, out_of_range=0.0)
    disc, gen = results(store, job_id).rows
    assert disc.health == {}
    assert gen.health["unparsable"].mean == 0.25


def test_what_the_table_of_groups_has_is_not_printed_twice(store: Store) -> None:
    job_id = submit(store, [1])
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5, unparsable=0.25, out_of_range=0.0)
    shown = CliRunner().invoke(main, ["results", job_id, "--store", store.secret_url()]).stdout.split()
    assert [shown.count(word) for word in ("unparsable", "range", "h/run", "GiB")] == [1, 1, 1, 1]
    assert [shown.count(word) for word in ("1/1", "parameters", "1,000")] == [1, 1, 1]


def test_a_row_has_the_constant_predictor(store: Store) -> None:
    job_id = submit(store, [1], variants={"disc": {}, "gen": {}})
    for variant in ("disc", "gen"):
        finish(store, enter(store, job_id, variant, 1), 0.1, 0.5)
    found = results(store, job_id)
    assert found.rows[0].constant["mae"] == pytest.approx(constant_scores("mosi", 0.2, LABEL)["mae"])


def test_nan_is_shown_and_never_skipped_in_a_mean(store: Store) -> None:
    job_id = submit(store, [1, 2])
    finish(store, enter(store, job_id, "disc", 1), 0.1, 0.5)
    finish(store, enter(store, job_id, "disc", 2), 0.1, 0.5, corr=math.nan)
    found = results(store, job_id)
    assert math.isnan(found.rows[0].test["corr"].mean)
    assert json.loads(json.dumps(as_json(found), allow_nan=False))["rows"][0]["test"]["corr"]["mean"] is None


def test_a_metric_younger_than_the_run_comes_from_its_predictions(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = submit(store, [1])
    finish(store, enter(store, job_id, "disc", 1), 0.5, 0.5)
    monkeypatch.setitem(PROFILES["mosi"], "worst", lambda score_B, label_B: float(abs(score_B - label_B).max()))
    found = results(store, job_id)
    assert "worst" in found.metrics
    assert found.rows[0].test["worst"].mean == pytest.approx(0.5)


def finish_class(store: Store, run_id: str, valid_f1: float, clips: int = 3) -> None:
    answers = [
        {"split": "test", "clip_id": str(i), "label": 1.0, "score": 0.0, "parsed": True, "in_range": True}
        for i in range(clips)
    ]
    records.finish_run(store, run_id, {"valid_error": 1 - valid_f1}, {"valid": {"f1": valid_f1}}, answers)


def test_confusions_are_of_all_runs_of_a_variant_that_have_test_clips(store: Store) -> None:
    job_id = submit(store, [1, 2], variants={"one": {}, "two": {}, "none": {}}, task=CLASSES)
    for variant, seed, clips in [("one", 1, 3), ("two", 1, 3), ("two", 2, 3), ("none", 1, 0)]:
        finish_class(store, enter(store, job_id, variant, seed), 0.5, clips)
    found = results(store, job_id)
    counts = {row.variant: row.confusion for row in found.rows}
    assert counts == {"one": ((0, 0, 0), (3, 0, 0)), "two": ((0, 0, 0), (6, 0, 0)), "none": None}
    words = " ".join(printed(found).split())  # a title is as wide as its table
    assert re.search(r"one: [^:]* \(columns\), 1 run (?!together)", words)
    assert re.search(r"two: [^:]* \(columns\), 2 runs together", words)


def test_of_a_search_the_best_setting_alone_has_its_confusion(store: Store) -> None:
    job_id = submit(store, [1], search=TWO, task=CLASSES)
    finish_class(store, enter(store, job_id, "disc", 1, group="aaaaaaaa"), 0.4)
    finish_class(store, enter(store, job_id, "disc", 1, group="bbbbbbbb"), 0.8)
    rows = results(store, job_id).rows
    assert [(row.variant, row.confusion is None) for row in rows] == [("disc bbbbbb", False), ("disc aaaaaa", True)]


def test_settings_of_a_search_are_not_averaged_with_each_other(store: Store) -> None:
    job_id = submit(store, [1], search=TWO)
    finish(store, enter(store, job_id, "disc", 1, group="aaaaaaaa"), 0.1, 0.8)
    finish(store, enter(store, job_id, "disc", 1, group="bbbbbbbb"), 0.7, 0.4)
    rows = results(store, job_id).rows
    assert [row.variant for row in rows] == ["disc bbbbbb", "disc aaaaaa"]
    assert [row.test["mae"].runs for row in rows] == [1, 1]


@pytest.mark.parametrize("width", [80, 120])
def test_no_number_is_broken_by_a_narrow_console(store: Store, width: int) -> None:
    job_id = submit(store, [1, 2])
    for seed, shift in ((1, 0.1), (2, 0.3)):
        finish(store, enter(store, job_id, "disc", seed), shift, 0.5)
    text = printed(results(store, job_id), width)
    assert max(map(len, text.splitlines())) <= width
    assert "0.500" in text
    assert all(name.split("_")[0] in text for name in PROFILES["mosi"])


def test_a_job_with_nothing_done_prints_too(store: Store) -> None:
    job_id = submit(store, [1, 2])
    assert "0/2" in printed(results(store, job_id), width=80)


def test_json_has_the_unrounded_numbers(store: Store) -> None:
    job_id = submit(store, [1])
    test = finish(store, enter(store, job_id, "disc", 1), 0.123_456_789, 0.5)
    data = as_json(results(store, job_id[:4]))
    assert data["rows"][0]["test"]["mae"] == {"mean": test["mae"], "sd": None, "runs": 1}
    assert data["metrics"][:2] == ["mae", "corr"]


def test_an_unknown_job_is_not_found(store: Store) -> None:
    with pytest.raises(NotFound):
        results(store, "nothing")


def test_constrained_answers_are_marked_and_have_a_row_of_their_own(store):
    job = submit(store, [1], {"free": {}, "bound": {"readout.constrained": True}})
    for variant in ("free", "bound"):
        readout = {"kind": "gen", "constrained": variant == "bound"}
        finish(store, enter(store, job, variant, 1, variant, {"readout": readout}), 0.1, 0.5, unparsable=0.0)
    found = results(store, job)
    assert [(row.variant, row.constrained) for row in found.rows] == [("free", False), ("bound", True)]
    shown = printed(found)
    assert shown.count("(constrained answers)") == 1
    assert [row["constrained"] for row in as_json(found)["rows"]] == [False, True]
