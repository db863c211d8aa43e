"""Published results: every shipped file, what is refused; and `raymsa results` on the command line."""

import csv
import io
import json
import os
from pathlib import Path
from typing import Any

import pytest

from raymsa.errors import SpecError, UsageError
from raymsa.jobfile import load_dataset
from raymsa.report.literature import FOLDER, Literature, PublishedRow, chosen_words, in_our_units, known, load
from raymsa.store import Store, queries, records
from tests.test_cli import call, finish, open_store, submit
from tests.test_groups import run
from tests.test_groups import submit as put_job

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / FOLDER).iterdir())
# As printed: MAE, Corr, Acc-7, Acc-2, F1; where Acc-2 and F1 are a pair of Acc-2, it is Has0 and Non0.
PUBLISHED = {
    ("mosi", "TFN"): (0.947, 0.673, 34.5, 79.1, 79.1),
    ("mosi", "LMF"): (0.950, 0.651, 33.8, 79.2, 79.2),
    ("mosi", "MAG-BERT"): (0.731, 0.789, 43.6, 84.3, 84.3),
    ("mosi", "MMIM"): (0.700, 0.800, 46.7, 85.1, 85.0),
    ("mosi", "MSAmba"): (0.681, 0.806, 47.0, 86.0, 86.0),
    ("mosi", "MAG-XLNet"): (0.675, 0.821, None, 85.7, 87.9),
    ("mosi", "CP+SL"): (None, None, None, 89.31, None),
    ("mosi", "Qwen2.5-Omni readout, headline"): (0.551, 0.888, 52.9, 89.5, 89.5),
    ("mosi", "Qwen2.5-Omni readout, all seeds"): (0.570, 0.877, 52.3, 89.1, 89.1),
    ("mosi", "Qwen2.5-Omni generative, zero-shot"): (1.443, 0.491, None, 73.3, None),
    ("mosi", "Qwen2.5-Omni generative, trained"): (1.521, 0.197, None, 58.2, None),
    ("mosei", "MFN"): (0.568, 0.717, 51.1, 84.0, 83.9),
    ("mosei", "ConFEDE"): (0.522, 0.780, 54.9, 85.8, 85.8),
    ("mosei", "DecAlign"): (0.543, 0.768, 55.0, 86.5, 86.1),
    ("mosei", "DMPF"): (0.492, 0.810, None, 87.89, 87.85),
    ("mosei", "Qwen2.5-Omni readout, headline"): (0.506, 0.790, 55.0, 87.1, 87.0),
    ("mosei", "Qwen2.5-Omni generative, zero-shot"): (1.431, 0.473, None, None, None),
    ("sims", "DMPF"): (0.346, 0.735, None, 83.59, 83.87),
    ("simsv2", "MulT"): (0.291, 0.738, None, None, None),
    ("simsv2", "AV-MC"): (0.297, 0.732, None, 82.50, None),
    ("simsv2", "AV-MC (semi-supervised)"): (0.286, 0.760, None, 83.46, None),
}
BOTH_RULES = {
    ("mosi", "MISA (MMSA)"): (0.777, 0.778, 41.37, 81.84, 83.54),
    ("mosi", "CENET (MMSA)"): (0.725, 0.795, 44.90, 83.53, 85.21),
    ("mosi", "MMML + context"): (0.557, 0.882, 52.72, 88.48, 90.35),
    ("mosi", "CAGMamba"): (0.56, 0.88, 52.48, 88.19, 90.09),
    ("mosei", "Self-MM (MMSA)"): (0.531, 0.765, 53.87, 83.76, 85.15),
    ("mosei", "TETFN (MMSA)"): (0.537, 0.770, 53.90, 84.12, 86.21),
    ("mosei", "MMML + context"): (0.507, 0.814, 54.77, 86.36, 88.22),
    ("mosei", "CAGMamba"): (0.51, 0.82, 54.56, 87.08, 88.72),
}


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RAYMSA_STORE", raising=False)
    return tmp_path / "home"


def row_of(name: str, method: str) -> Any:
    (found,) = [row for row in load(str(ROOT / FOLDER / f"{name}.yaml")).rows if row.method == method]
    return found


def means(figures: Any) -> dict[str, float]:
    return {name: figure.mean for name, figure in figures.items()}


# The shipped files


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_shipped_file_is_right_and_speaks_of_a_dataset_of_ours(path: Path) -> None:
    found = load(str(path))
    datasets = [
        load_dataset(file) for file in sorted((ROOT / "configs/datasets").iterdir()) if file.stem != "swift_example"
    ]
    (dataset,) = [one for one in datasets if one.name == found.dataset]
    assert dataset.task.profile == found.metrics
    assert dataset.published["test"] == found.test_clips
    assert len({row.method for row in found.rows}) == len(found.rows)
    assert {row.source for row in found.rows} == found.sources.keys()


@pytest.mark.parametrize(("where", "printed"), PUBLISHED.items(), ids=map(" ".join, PUBLISHED))
def test_the_numbers_are_the_published_ones_and_a_single_acc2_is_of_an_unknown_rule(
    where: tuple[str, str], printed: tuple[float | None, ...]
) -> None:
    row = row_of(*where)
    found = [None if figure is None else figure.mean for figure in (row.mae, row.corr, row.acc7)]
    assert (*found, means(row.acc2).get("unknown"), means(row.f1).get("unknown")) == printed
    assert {*row.acc2, *row.f1} <= {"unknown"}


@pytest.mark.parametrize(("where", "printed"), BOTH_RULES.items(), ids=map(" ".join, BOTH_RULES))
def test_where_both_rules_are_printed_each_has_its_own_name(where: tuple[str, str], printed: tuple[float, ...]) -> None:
    row = row_of(*where)
    assert (row.mae.mean, row.corr.mean, row.acc7.mean, row.acc2["has0"].mean, row.acc2["nonzero"].mean) == printed
    assert not row.f1


def test_how_a_number_was_chosen_is_said_as_published() -> None:
    headline, seeds = (row_of("mosi", f"Qwen2.5-Omni readout, {which}") for which in ("headline", "all seeds"))
    assert (chosen_words(headline), chosen_words(seeds)) == ("best seed of 4", "mean ± sd of 4 seeds")
    assert [figure.sd for figure in (seeds.mae, seeds.corr, seeds.acc7)] == [0.014, 0.009, 0.9]
    assert chosen_words(row_of("mosi", "MMML + context")) == "mean of 3 seeds"
    assert (row_of("mosi", "MMML + context, best seed").mae.mean) == 0.536
    assert chosen_words(row_of("mosi", "TFN")) == "unknown"
    assert chosen_words(row_of("mosi", "MISA (MMSA)")) == "unknown (5 seeds)"


def test_percents_become_shares_as_ours_are() -> None:
    found = in_our_units(row_of("mosi", "Qwen2.5-Omni readout, all seeds"), "mosi")
    assert (found.test["acc7"].mean, found.test["acc7"].sd) == (pytest.approx(0.523), pytest.approx(0.009))
    assert found.test["mae"].sd == 0.014
    assert found.foreign["acc2"][0].sd == pytest.approx(0.007)
    sims = in_our_units(row_of("sims", "CAGMamba"), "sims")
    assert (sims.test["acc2"].mean, sims.foreign) == (pytest.approx(0.8313), {})


def test_acc2_and_f1_by_different_rules_have_a_footnote_each() -> None:
    row = PublishedRow(method="x", source="paper", acc2={"unknown": 80}, f1={"sims": 81, "has0": 79})
    found = in_our_units(row, "mosi")
    assert {name: note for name, (_, note) in found.foreign.items()} == {
        "acc2": "Acc-2: the source does not say by which rule",
        "f1": "F1: by the rule of CH-SIMS, where 0 is negative, which is not this dataset's",
    }
    assert found.test["f1_has0"].mean == 0.79


def test_a_file_is_found_by_name_from_anywhere_and_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("mosi").dataset == "mosi"
    (tmp_path / "my.yaml").write_text((ROOT / FOLDER / "sims.yaml").read_text())
    assert load("my.yaml").dataset == "ch_sims"
    (tmp_path / FOLDER).mkdir(parents=True)
    (tmp_path / FOLDER / "mosi.yaml").write_text((ROOT / FOLDER / "sims.yaml").read_text())
    assert load("mosi").dataset == "ch_sims"  # here comes before the clone
    with pytest.raises(UsageError, match=r"given 'mosy'; give the path .*known: mosei, mosi, sims, simsv2"):
        load("mosy")
    with pytest.raises(SpecError, match=r"no\.yaml' cannot be read"):
        load("no.yaml")
    assert known() == ["mosei", "mosi", "sims", "simsv2"]


# What is refused

RIGHT = "{method: m, source: s, mae: 0.5}"


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ("{method: m, source: s, mae: x}", "rows.0.mae: given 'x'; give a number, or {mean: ..., sd: ...}"),
        ("{method: m, source: s, mae: yes}", "rows.0.mae: given True; give a number, or {mean: ..., sd: ...}"),
        ("{method: m, source: s, mae: .nan}", "rows.0.mae.mean: given nan; give a finite number"),
        ("{method: m, source: s, mae: -1}", "rows.0.mae: given -1; give a mean absolute error, from 0"),
        ("{method: m, source: s, corr: 88.8}", "rows.0.corr: given 88.8; give a correlation, from -1 to 1"),
        ("{method: m, source: s, acc7: 0.529}", "rows.0.acc7.mean: given 0.529; give percent, from 1 to 100"),
        ("{method: m, source: s, acc2: {unknown: 189}}", "given 189; give percent, from 1 to 100"),
        ("{method: m, source: s, acc2: {zero: 89}}", "given 'zero'"),
        ("{method: m, source: s, acc2: 89}", "rows.0.acc2: given 89; give a mapping"),
        ("{method: m, source: t, mae: 0.5}", "m: source: unknown 't' (known: s)"),
        ("{method: m, source: s}", "rows.0: m: has no number; give mae, corr, acc7, ..."),
        ("{method: m, source: s, mea: 0.5}", "rows.0.mea: unknown key; did you mean 'mae'?"),
        ("{method: m, source: s, mae: 0.5, chosen: best}", "rows.0.chosen: given 'best'"),
        ("{method: m, source: s, mae: {mean: 0.5, sd: 0.1}}", "has an sd, but chosen is 'unknown'; it is 'mean ± sd'"),
        ("{method: m, source: s, acc3: 50}", "m: acc3 is no metric of 'mosi'"),
        ("{method: m, source: s, acc2: {other: 50}}", "acc2 or f1 by another rule; say in `note` which"),
        ("{method: m, source: s, acc2: {sims: 50, unknown: 60}}", "acc2: more than one rule that is not ours"),
    ],
)
def test_a_wrong_row_is_refused_with_where_and_what_would_be_right(tmp_path: Path, row: str, line: str) -> None:
    path = tmp_path / "my.yaml"
    path.write_text(f"dataset: mosi\nmetrics: mosi\nsources: {{s: a paper}}\nrows:\n  - {row}\n")
    with pytest.raises(SpecError) as error:
        load(str(path))
    assert line in str(error.value)
    assert str(error.value).startswith(f"{path}: ")
    assert len(str(error.value).splitlines()) == 1
    path.write_text(path.read_text().replace(row, RIGHT))
    assert isinstance(load(str(path)), Literature)


# On the command line


def filled(home: Path, tmp_path: Path) -> str:
    """A finished job; its id."""
    job_id = submit(home, tmp_path)
    finish(home, job_id)
    return job_id


def test_results_without_a_word_are_those_of_all_jobs(home: Path, tmp_path: Path) -> None:
    filled(home, tmp_path)
    second = submit(home, tmp_path, name="other", seeds=[2])
    finish(home, second)
    result = call("results")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "runs of the jobs other, small" in result.stdout
    assert "constant (train median)" in result.stdout
    assert "chosen on valid" not in result.stdout


def test_the_json_of_a_job_is_what_it_was_and_its_groups(home: Path, tmp_path: Path) -> None:
    job_id = filled(home, tmp_path)
    said = json.loads(call("results", job_id, "--json").stdout)
    assert json.loads(call("results", job_id, "--format", "json").stdout) == said
    assert (said["job_id"], said["profile"], said["decides"], said["search"]) == (job_id, "mosi", "mae", None)
    assert said["rows"][0]["test"]["mae"] == {"mean": 0.5, "sd": None, "runs": 1}
    assert said["unfinished"] == []
    (group,) = said["tables"][0]["groups"]
    assert (group["seeds"][0]["test"]["mae"], group["test"]["corr"]["mean"]) == (0.5, None)
    assert json.loads(call("results", "--json").stdout) == {"tables": said["tables"]}


def test_a_group_is_asked_for_by_the_beginning_of_its_key(home: Path, tmp_path: Path) -> None:
    job_id = filled(home, tmp_path)
    with open_store(home) as store:
        (one,) = queries.runs(store, job_id)
    shown = call("results", one.group_key[:10], "--format", "csv")
    assert shown.exit_code == 0
    heading, disc, constant = csv.reader(io.StringIO(shown.stdout))
    assert dict(zip(heading, disc, strict=True))["group"] == one.group_key[:8]
    assert dict(zip(heading, constant, strict=True))["label"] == "constant (train median)"
    missing = call("results", "zzz")
    assert (missing.exit_code, missing.stderr) == (102, "error: no job or group 'zzz' in the store\n")


def test_a_hostile_name_and_error_are_text_on_a_terminal(home: Path) -> None:
    bad = "[bold]x\x1b[2J\u202e:smile:"
    with Store.open(f"sqlite:///{home}/store.db", create=True) as store:
        job_id = put_job(store, bad)
        run(store, job_id, variant=bad)
        about = {"id": f"r{bad}", "job_id": job_id, "task_id": None, "variant": bad, "seed": 9, "group_key": "k"}
        records.create_runs(store, [{**about, "spec": {}, "spec_digest": "d"}])
        records.fail_run(store, f"r{bad}", bad)
    for words in ((), (job_id,)):
        shown = call("results", *words).stdout
        assert not {"\x1b", "\u202e"} & set(shown)
        assert shown.count(r"[bold]x\x1b[2J\u202e:smile:") >= 1 + 4 * len(words)


@pytest.mark.parametrize(
    ("how", "begins"), [("markdown", "**"), ("latex", "% needs"), ("csv", "dataset,target,profile,label,group")]
)
def test_every_format_goes_to_stdout_alone(home: Path, tmp_path: Path, how: str, begins: str) -> None:
    job_id = filled(home, tmp_path)
    result = call("results", job_id, "--format", how)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.startswith(begins)


def test_what_cannot_be_asked_is_a_usage_error(home: Path, tmp_path: Path) -> None:
    filled(home, tmp_path)
    for words, line in [
        (["--metric", "acc9"], "--metric: given 'acc9'; did you mean "),
        (["--metric", "acc2"], "--metric: given 'acc2'; did you mean acc2_has0 or acc2_nonzero? (known: mae, corr, "),
        (["--json", "--format", "csv"], "--json and --format csv exclude each other"),
        (["--literature", "x"], "--literature: given 'x'; give the path of a YAML file"),
        (["--literature", "mosi", "--cluster", "http://h:1"], "--cluster and --literature exclude each other"),
    ]:
        result = call("results", *words)
        assert (result.exit_code, result.stdout) == (2, ""), words
        assert line in result.stderr


def test_with_nothing_finished_there_is_no_table(home: Path, tmp_path: Path) -> None:
    submit(home, tmp_path)
    result = call("results")
    assert (result.exit_code, result.stdout) == (101, "")
    assert "raymsa list shows what runs" in result.stderr


def test_of_several_jobs_it_is_said_what_is_not_finished(home: Path, tmp_path: Path) -> None:
    job_id = filled(home, tmp_path)
    with open_store(home) as store:
        about = {"id": "r", "job_id": job_id, "task_id": None, "variant": "disc", "seed": 9, "group_key": "k"}
        records.create_runs(store, [{**about, "spec": {}, "spec_digest": "d"}])
        other = put_job(store, "other")
        run(store, other)
    result = call("results", job_id, other)
    assert result.exit_code == 0
    assert f"job {job_id}: runs not finished: 1; raymsa results {job_id} lists them" in result.stderr
    assert "not finished" in call("results", job_id, "--format", "csv").stderr
    assert call("results", job_id).stderr == ""
    assert other not in result.stderr


def test_published_results_stand_beside_ours_in_every_format(home: Path) -> None:
    with Store.open(f"sqlite:///{home}/store.db", create=True) as store:
        run(store, put_job(store), 1)
    for how in ("text", "markdown", "latex", "csv"):
        result = call("results", "--literature", "mosi", "--format", how)
        assert (result.exit_code, result.stderr) == (0, "")
        assert "Qwen2.5-Omni readout, headline" in " ".join(result.stdout.split())
        assert "best seed of 4" in result.stdout
        assert "test clips; the published split has 686" in " ".join(result.stdout.split())
    rows = list(csv.DictReader(io.StringIO(result.stdout)))
    assert {row["test_acc2_nonzero"] for row in rows if row["test_acc2_other_rule"]} == {""}
    said = json.loads(call("results", "--literature", "mosi", "--json").stdout)
    assert said["literature"]["rows"][0]["mae"]["mean"] == 0.947


def test_published_results_can_be_read_before_the_first_job(home: Path) -> None:
    result = call("results", "--literature", "sims")
    assert (result.exit_code, result.stderr) == (0, "")
    assert "ch_sims: published results on test" in result.stdout
    assert not home.exists()
    assert call("results").exit_code == 102


def test_results_need_neither_torch_nor_ray(home: Path, tmp_path: Path) -> None:
    import subprocess
    import sys

    code = (
        "import sys\nfrom raymsa.cli import main\n"
        "try: main(['results', '--literature', 'mosi'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'transformers', 'optuna', 'matplotlib'} & sys.modules.keys()), file=sys.stderr)"
    )
    environment = {**os.environ, "RAYMSA_HOME": str(home)}
    ended = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert ended.stderr.splitlines()[-1] == "[]"
