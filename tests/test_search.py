"""What a search learns from, confirms, shows and exports."""

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from rich.console import Console

from raymsa.cli import main
from raymsa.errors import UsageError
from raymsa.proposals import confirming
from raymsa.report import search as report
from raymsa.report.results import as_json, results
from raymsa.report.tables import render_rest
from raymsa.store import Store, queries, records, tables
from tests.searches import SPACE, new_job, proposals, settings, train, valid_mae


@pytest.fixture
def store(tmp_path):
    with Store.open(f"sqlite:///{tmp_path / 'store.db'}") as opened:
        yield opened


def found(store: Store, job: queries.Job) -> report.Search:
    return report.search(store, job.id)


# Other metrics, other jobs


def test_another_metric_decides_if_it_is_named(store, tmp_path):
    job = new_job(store, tmp_path, metric="valid_corr", trials=4, scheduler="asha", algorithm="random")
    train(store, proposals(store, job))
    seen = found(store, job)
    assert seen.high_is_good and seen.best[0].objective == max(one.objective for one in seen.best)
    assert seen.best[0].objective == max(-valid_mae(row.spec, 4) for row in queries.runs(store, job.id))
    assert results(store, job.id).decides == "corr"


def test_a_search_learns_from_earlier_runs_that_differ_by_the_space_alone(store, tmp_path):
    first = new_job(store, tmp_path, trials=4, algorithm="random")
    train(store, proposals(store, first))
    narrow = {"lora.rank": {"choice": [2, 4, 8]}, "train.lora_lr": {"loguniform": [1e-4, 1e-2]}}
    inside = sum(1e-4 <= rate <= 1e-2 for _, rate, *_ in settings(store, first))
    later = new_job(store, tmp_path, "later", warm_start=True, space=narrow)
    source = proposals(store, later)
    assert f"{inside} earlier runs on the same clips are learned from; {4 - inside} more have" in source.about[-1]
    assert source._study.states() == ["COMPLETE"] * inside and 0 < inside < 4
    assert "0 earlier runs" in proposals(store, later, "other clips").about[-1]
    train(store, source, at_most=3)
    assert len(found(store, later).trials) == 3


def test_an_earlier_run_between_two_whole_numbers_is_outside_an_int_range(store, tmp_path):
    first = new_job(store, tmp_path, trials=2, algorithm="random", space={"lora.alpha": {"uniform": [8, 64]}})
    train(store, proposals(store, first))
    later = new_job(store, tmp_path, "later", warm_start=True, space={"lora.alpha": {"int": [8, 64]}})
    assert "0 earlier runs on the same clips are learned from; 2 more have" in proposals(store, later).about[-1]


def test_cma_es_begins_where_earlier_runs_were_good(store, tmp_path):
    first = new_job(store, tmp_path, trials=20, algorithm="random")
    train(store, proposals(store, first), at_most=9)
    late = new_job(store, tmp_path, "late", algorithm="cma-es", warm_start=True)
    assert "9 earlier runs on the same clips, but cma-es needs 10" in proposals(store, late).about[-1]
    train(store, proposals(store, first))
    warm = new_job(store, tmp_path, "warm", trials=8, algorithm="cma-es", warm_start=True)
    train(store, proposals(store, warm))
    rates = [rate for _, rate, *_ in settings(store, warm)][1:]
    assert all(1e-4 < rate < 1e-2 for rate in rates[:3])  # the best is at 1e-3


# Confirmation


def searched(store: Store, folder: Path, **search: Any) -> queries.Job:
    job = new_job(store, folder, **{"trials": 6, "algorithm": "random", **search})
    train(store, proposals(store, job))
    return job


def confirm(store: Store, job: queries.Job, lucky: float = 0.0) -> None:
    """Make the runs that confirm; `lucky` is what the search's seed was better by."""
    task = next(task for task in queries.tasks(store, job.id) if task.kind == "confirm")
    for run in confirming(store, job):
        name, spec = f"{job.id}-{run.variant}-{run.seed}", run.spec.model_dump(mode="json")
        row = {"id": name, "job_id": job.id, "task_id": task.id, "variant": run.variant, "seed": run.seed}
        records.create_runs(store, [{**row, "group_key": run.group, "spec": spec, "spec_digest": "d"}])
        value = valid_mae(spec, 4) + lucky + run.seed / 1e4
        finals = {"mae": value, "corr": 0.5}
        records.finish_run(store, name, {"valid_error": value}, {"valid": finals, "test": finals})


def test_the_best_settings_and_the_files_own_are_run_again_with_fresh_seeds(store, tmp_path):
    job = searched(store, tmp_path, scheduler="asha", confirm={"top": 2, "seeds": [7, 8]})
    best = [one.name for one in found(store, job).best[:2]]
    made = confirming(store, job)
    assert [(run.variant, run.seed) for run in made] == [(n, s) for n in [*best, "default"] for s in (7, 8)]
    assert made[-1].spec.train.lora_lr == 1e-4
    assert {one.state for one in found(store, job).best} == {"done"}


def test_a_confirmed_search_reports_fresh_seeds_alone_and_its_trials_as_such(store, tmp_path):
    job = searched(store, tmp_path, confirm={"top": 2, "seeds": [7, 8]})
    confirm(store, job, lucky=0.1)
    seen = results(store, job.id)
    assert [(row.finished, row.planned) for row in seen.rows] == [(2, 2)] * 3
    assert [row.variant for row in seen.rows][-1] == "default"
    lucky = found(store, job).best[0].objective
    assert seen.rows[0].valid.mean == pytest.approx(lucky + 0.1 + 0.00075)
    assert seen.rows[0].valid.sd == pytest.approx(0.0001 / 2**0.5)
    words = printed(seen)
    assert "each with seed 1" in words and "t005" in words
    plain = json.loads(json.dumps(as_json(seen), allow_nan=False))
    assert len(plain["search"]["trials"]) == 6 and len(plain["search"]["confirmed"]) == 3


def test_what_is_no_better_than_a_constant_on_valid_is_called_collapsed(store, tmp_path):
    job = searched(store, tmp_path, confirm={"top": 2, "seeds": [7, 8]})
    confirm(store, job)
    assert found(store, job).collapsed == {}
    with store.write() as connection:
        rows = [
            {"run_id": run.id, "split": "valid", "name": "constant_mae", "value": 0.2}
            for run in queries.runs(store, job.id)
            if run.variant == "default" or run.seed == 1
        ]
        connection.execute(tables.finals.insert(), rows)
    said = command(store, job)
    assert "default (collapsed) " in said and "done, collapsed" in said


def test_a_best_setting_that_is_the_files_own_is_not_run_twice(store, tmp_path):
    space = {"train.lora_lr": {"choice": [1e-4, 1e-1]}}
    job = new_job(store, tmp_path, trials=2, algorithm="grid", space=space, confirm={"top": 1, "seeds": [7]})
    train(store, proposals(store, job))
    assert [run.variant for run in confirming(store, job)] == ["t000"]
    confirm(store, job)
    (one,) = found(store, job).confirmed
    assert one.is_default
    assert "not beaten" in command(store, job)


def test_before_it_is_confirmed_a_search_says_so(store, tmp_path):
    job = searched(store, tmp_path, confirm={})
    assert "not confirmed" in command(store, job)
    assert "`search.confirm` would" in command(store, searched(store, tmp_path))


def test_a_trial_that_was_ended_early_is_no_missing_result(store, tmp_path):
    job = searched(store, tmp_path, scheduler="asha")
    seen = results(store, job.id)
    early = [row for row in queries.runs(store, job.id) if row.state == "pruned"]
    assert early and seen.unfinished == ()
    assert len(seen.rows) == 6 - len(early)
    assert f"ended early by asha: {early[0].variant} after epoch {early[0].epoch}" in printed(seen)


def printed(seen: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    render_rest(seen, console)
    return console.file.getvalue()  # type: ignore[attr-defined]


# The command


def command(store: Store, job: queries.Job, *words: str, code: int = 0) -> str:
    ended = CliRunner().invoke(main, ["search", job.id, "--store", store.secret_url(), *words], env={"COLUMNS": "200"})
    assert ended.exit_code == code, ended.output
    return ended.output


def test_the_command_says_what_is_best_what_mattered_and_what_ended_early(store, tmp_path):
    job = searched(store, tmp_path, trials=12, scheduler="median", confirm={"top": 1, "seeds": [7]})
    confirm(store, job)
    said = command(store, job)
    assert re.search(r"12 of 12 trials: .*\d ended early", said)
    assert re.search(r"best on fresh seeds: t00\d, valid mae 0\.\d+ against the file's own 0\.\d+", said)
    assert re.search(r"importance .*PED-ANOVA.*: .*train\.lora_lr \d\.\d\d", said)
    plain = json.loads(command(store, job, "--json"))
    assert plain["states"]["done"] == len(plain["best"]) and plain["importance"].keys() == SPACE.keys()


def test_a_search_without_a_number_names_no_best_and_one_with_one_number_nothing_that_mattered(store, tmp_path):
    job = new_job(store, tmp_path, trials=5)
    assert "no trial has gone to its end with a number yet" in command(store, job)
    train(store, proposals(store, job), value=lambda spec, epoch: 1.0)
    shown = command(store, job)
    assert "the best of 5 trials" in shown and "importance: too few trials went to their end, or all" in shown


def test_the_study_is_exported_with_every_trial_and_opens_with_optuna(store, tmp_path):
    import optuna

    job = searched(store, tmp_path, scheduler="asha")
    file = tmp_path / "study.db"
    assert f"wrote study small-{job.id}" in command(store, job, "--export", str(file))
    study = optuna.load_study(study_name=f"small-{job.id}", storage=f"sqlite:///{file}")
    assert len(study.trials) == 6 and study.best_value == found(store, job).best[0].objective
    early = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert early and all(trial.intermediate_values for trial in study.trials)
    assert study.best_trial.user_attrs["run"] == found(store, job).best[0].run_id
    assert "is there already" in command(store, job, "--export", str(file), code=2)
    assert "without ?" in command(store, job, "--export", str(tmp_path / "a?b.db"), code=2)


def test_plots_are_four_pages_that_need_no_network(store, tmp_path):
    pytest.importorskip("plotly")
    job = searched(store, tmp_path)
    command(store, job, "--plot", str(tmp_path / "plots"))
    pages = sorted((tmp_path / "plots").glob("*.html"))
    assert [page.stem for page in pages] == ["history", "importance", "parallel", "slices"]
    assert all("plotly.min.js" in page.read_text() and "https://cdn" not in page.read_text() for page in pages)
    assert (tmp_path / "plots/plotly.min.js").exists()
    (tmp_path / "file").touch()
    assert "file/plots: cannot be written (Not a" in command(store, job, "--plot", str(tmp_path / "file/plots"), code=2)


def test_without_plotly_one_line_says_what_to_install(store, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "plotly", None)
    job = searched(store, tmp_path)
    assert "pip install 'raymsa[plots]'" in command(store, job, "--plot", str(tmp_path / "plots"), code=2)
    assert not (tmp_path / "plots").exists()


def test_a_job_without_a_search_says_where_to_look(store, tmp_path):
    job = new_job(store, tmp_path)
    with store.write() as connection:
        connection.exec_driver_sql("UPDATE jobs SET spec = json_set(spec, '$.search', NULL)")
    with pytest.raises(UsageError, match="has no search; raymsa results"):
        report.search(store, job.id)
