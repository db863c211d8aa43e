"""Runs of a stranger, taken in: what their rows name is never opened, asked for over a network, or obeyed."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from sqlalchemy import select

from raymsa.cli import main
from raymsa.errors import SpecError, UsageError
from raymsa.exporters.base import chosen
from raymsa.exporters.raymsa import Raymsa
from raymsa.home import run_dir, store_url
from raymsa.report.compare import Drawing, comparison
from raymsa.report.evidence import evidence
from raymsa.report.groups import group_tables
from raymsa.report.results import results
from raymsa.report.worst import words_of
from raymsa.spec import ModelSpec
from raymsa.store import Store, queries, tables
from raymsa.store.exports import export
from raymsa.store.imports import import_
from raymsa.thinker.load import open_folder
from raymsa.ui import pages
from raymsa.ui.pages import Known
from raymsa.unpack import take_in
from tests import made_up_runs
from tests.clips import clip
from tests.test_look import write_shards

IDS = [f"c{n:02d}" for n in range(24)]  # no video in them
MUCH = 1e12
TOUCHED: list[str] | None = None


def _hook(event: str, given: tuple[Any, ...]) -> None:
    if TOUCHED is None:
        return
    if event in ("open", "os.listdir", "os.scandir") and isinstance(given[0], (str, bytes, os.PathLike)):
        TOUCHED.append(os.path.realpath(os.fsdecode(given[0])))
    elif event in ("socket.connect", "socket.getaddrinfo"):
        TOUCHED.append(f"{event} {given[-1]} {given[0]}")


sys.addaudithook(_hook)  # for good: Python has no way to take one away


@contextmanager
def touched() -> Iterator[list[str]]:
    """Every path that is opened or listed meanwhile, links followed, and every address that is asked for."""
    global TOUCHED
    TOUCHED = found = []
    try:
        yield found
    finally:
        TOUCHED = None


@pytest.fixture
def theirs(tmp_path: Path) -> Path:
    """A folder of this machine that is none of raymsa's: clips with the right digest, and a label file."""
    folder = tmp_path / "theirs"
    write_shards(folder, [clip(name, "secret words", 0, 0.0, label=0.0) for name in IDS])
    (folder / "clips.csv").write_text("id,text,score,split\nc00,secret words,0,test\n")
    return folder


def taken_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str, **columns: Any) -> Store:
    """A store with one imported job, both readouts of which name these clips wherever a spec or a task names any."""
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "stranger"))
    dataset = {"kind": "table", "name": "own", "raw": named, "shards": named}
    spec = made_up_runs.job_spec(dataset=dataset)
    labels = {split: {name: float(n % 7 - 3) for n, name in enumerate(IDS)} for split in ("valid", "test")}
    with Store.open(store_url()) as store:
        job_id = made_up_runs.submit(store, spec, shards=named)
        for run_id in made_up_runs.finish(store, job_id, spec, labels):
            (run_dir(run_id)).mkdir(parents=True)
            (run_dir(run_id) / "log.txt").write_text("trained\n")
        with store.write() as connection:
            digest = {"data_digest": digest_of(tmp_path), **columns}
            connection.execute(tables.runs.update().values(**digest))
        Raymsa(with_checkpoints=True).write(chosen(store, [job_id]), tmp_path / "parcel")
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    mine = Store.open(store_url())
    take_in(mine, tmp_path / "parcel", "me", MUCH)
    return mine


def digest_of(tmp_path: Path) -> str:
    return str(json.loads((tmp_path / "theirs" / "manifest.json").read_text())["digest"])


def call(*words: str) -> Result:
    result = CliRunner().invoke(main, list(words), prog_name="raymsa")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exc_info
    return result


def outside(found: list[str], *, but: Path) -> list[str]:
    """Addresses, and paths that only the stranger's rows lead to."""
    strange = (str(but.parent / "theirs"), str(but.parent / "stranger"), "/etc/passwd", "/etc/hosts.d", "socket")
    return [path for path in found if path.startswith(strange)]


NAMED = {
    "absolute": "{theirs}",
    "relative": "../theirs",
    "through our own": "{home}/shards/../../theirs",
    "file address": "file://{theirs}",
    "a file": "/etc/passwd",
    "file address of a file": "file:///etc/passwd",
    "http": "http://127.0.0.1:9/x",
    "s3": "s3://bucket/x",
    "memory": "memory://x",
    "a link": "{link}",
    "a run's folder": "{home}/runs",
}


def name_of(form: str, tmp_path: Path) -> str:
    link = tmp_path / "link"
    if not link.exists():
        link.symlink_to(tmp_path / "theirs")
    return NAMED[form].format(theirs=tmp_path / "theirs", home=tmp_path / "home", link=link)


def each_name(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Every form of NAMED, when the store's one job names it: as an import would have left it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")  # so that ../theirs is there
    (spec,) = {json.dumps(run.spec["dataset"]) for run in queries.runs(store)}
    before = json.loads(spec)["raw"]
    for form in NAMED:
        name = name_of(form, tmp_path)
        with store.write() as connection:
            for table, column in ((tables.jobs, "spec"), (tables.runs, "spec"), (tables.tasks, "payload")):
                for row in connection.execute(select(table)).mappings().all():
                    value = json.loads(json.dumps(row[column]).replace(json.dumps(before), json.dumps(name)))
                    connection.execute(table.update().where(table.c.id == row["id"]).values({column: value}))
        assert queries.runs(store)[0].spec["dataset"]["shards"] == name
        yield form
        before = name


def test_no_words_and_no_videos_come_from_a_place_that_a_strangers_job_names(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_in(tmp_path, monkeypatch, "to be replaced") as store:
        for form in each_name(store, tmp_path, monkeypatch):
            about = evidence(store, queries.jobs(store)[0].id)
            with touched() as found:
                words = words_of(about)
                compared = comparison(store, ["made_up/disc", "made_up/gen"], [], drawing=Drawing(resamples=100))
            assert outside(found, but=tmp_path / "home") == [], form
            assert words.texts == {} and words.shards is None and compared.videos is None
            assert words.source.startswith("The words are not at hand: no clips with data ")


def test_analyse_takes_no_clips_from_a_place_that_a_strangers_run_names(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_in(tmp_path, monkeypatch, "to be replaced") as store:
        run_id = queries.runs(store)[0].id
        (run_dir(run_id) / "best-000001").mkdir()
        (run_dir(run_id) / "best-000001" / "state.json").write_text("{}")
        for form in each_name(store, tmp_path, monkeypatch):
            with touched() as found:
                refused = call("analyse", run_id)
            assert refused.exit_code == 2 and "no clips with data" in refused.stderr
            assert outside(found, but=tmp_path / "home") == [], form


@pytest.mark.parametrize("path", ["/etc/passwd", "http://127.0.0.1:9/x", "file:///etc/passwd", "s3://bucket/x"])
def test_a_model_is_a_folder_or_on_the_hub_and_nothing_else(path: str) -> None:
    with touched() as found, pytest.raises(SpecError, match="there is no such folder"):
        open_folder(ModelSpec(path=path))
    assert [one for one in found if one.startswith(("/etc", "socket"))] == []


def test_every_command_leaves_alone_what_a_strangers_rows_name(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_in(tmp_path, monkeypatch, str(theirs)) as store:
        job_id = queries.jobs(store)[0].id
        out = tmp_path / "out"
        with touched() as found:
            done = [
                call("report", job_id, "--out", str(out / "report")),
                call("compare", "made_up/disc", "made_up/gen", "--resamples", "100"),
                call("results", job_id),
                call("status", job_id),
                call("logs", queries.runs(store)[0].id),
                call("export", job_id, "--to", "csv", "--out", str(out / "csv")),
                call("export", job_id, "--to", "tensorboard", "--out", str(out / "tb")),
                call("export", job_id, "--with-checkpoints", "--out", str(out / "parcel")),
            ]
            for read in (pages.job, pages.run):
                read(store, job_id if read is pages.job else queries.runs(store)[0].id, Known(out))
        assert [one.exit_code for one in done] == [0] * len(done), [one.output for one in done]
        assert outside(found, but=tmp_path / "home") == []
        assert "The words are not at hand" in done[0].stderr


def test_the_clips_of_an_imported_job_are_shown_where_they_are_our_own(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_in(tmp_path, monkeypatch, "s3://bucket/x") as store:
        about = evidence(store, queries.jobs(store)[0].id)
        assert words_of(about, str(theirs)).texts["c00"] == "secret words"  # a person has named it
        (theirs.parent / "home/shards").mkdir()
        theirs.rename(tmp_path / "home/shards/own-0123")
        assert words_of(about).texts["c00"] == "secret words"
        assert comparison(store, ["made_up/disc", "made_up/gen"], [], drawing=Drawing(resamples=100)).videos == 1


def test_a_folder_that_a_person_names_must_have_the_clips_of_the_runs(
    theirs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with taken_in(tmp_path, monkeypatch, "", data_digest="0" * 16) as store:
        job_id = queries.jobs(store)[0].id
        for words in (["report", job_id, "--out", str(tmp_path / "out")], ["compare", "made_up/disc", "made_up/gen"]):
            refused = call(*words, "--shards", str(theirs))
            assert refused.exit_code == 2 and "the runs have seen data 0000000000000000" in refused.stderr
        assert not (tmp_path / "out").exists()


SEARCH = {"algorithm": "tpe", "space": {"lora.rank": {"choice": [2, 4]}}, "metric": "valid_mae", "trials": 2}
MALFORMED = {
    "a search without seeds": ("jobs", {"search": SEARCH, "seeds": ...}, "spec.seeds: missing; it is one run for each"),
    "no seed": ("jobs", {"seeds": []}, "spec.seeds: given []; give at least 1"),
    "seeds that are none": ("jobs", {"seeds": [1, "x"]}, "spec.seeds.1: given 'x'; give a whole number"),
    "a metric that is a number": ("jobs", {"search": {**SEARCH, "metric": 7}}, "spec.search.metric: given 7; "),
    "a search by nothing": ("jobs", {"search": {**SEARCH, "algorithm": None}}, "spec.search.algorithm: given None; "),
    "a search that is none": ("jobs", {"search": [1]}, "spec.search: given [1]; "),
    "variants that are none": ("jobs", {"variants": ["disc"]}, "spec.variants: given ['disc']; give a mapping"),
    "no variants": ("jobs", {"variants": None}, "spec.variants: given None; give a mapping"),
    "a dataset that is a word": ("jobs", {"dataset": "x"}, "spec.dataset: given 'x'; "),
    "no dataset": ("runs", {"dataset": ...}, "spec.dataset: missing; it is the clips"),
    "an unknown task": ("runs", {"dataset": {"task": {"kind": "a\nb"}}}, "task.kind: unknown kind 'a\\nb'"),
    "an old range that is none": ("runs", {"dataset": {"low": "x"}}, "spec.dataset.task.low: given 'x'; give a number"),
    "words in a figure": ("runs", {"lora": {"rank": 8, "alpha": "big"}}, "spec.lora.alpha: given 'big'; give a number"),
    "a spec that is none": ("runs", None, "spec.: given "),
}  # fmt: skip


@pytest.mark.parametrize("form", MALFORMED)
def test_a_spec_that_would_break_every_table_is_refused_in_one_line(form: str, tmp_path: Path) -> None:
    table, change, problem = MALFORMED[form]
    with Store.open(f"sqlite:///{tmp_path}/theirs.db") as store, Store.open(f"sqlite:///{tmp_path}/mine.db") as mine:
        spec = made_up_runs.job_spec(seeds=(1,), variants={})
        made_up_runs.finish(store, made_up_runs.submit(store, spec), spec, made_up_runs.small(2))
        changed = change and {name: value for name, value in {**spec, **change}.items() if value is not ...}
        with store.write() as connection:
            connection.execute(tables.metadata.tables[table].update().values(spec=changed or []))
        export(store, tmp_path / "1.jsonl")
        with pytest.raises(UsageError) as refused:
            import_(mine, tmp_path / "1.jsonl", "me")
        assert f": {table} " in str(refused.value) and problem in str(refused.value)
        assert "\n" not in str(refused.value) and queries.jobs(mine) == []


def test_what_other_versions_of_raymsa_say_of_a_job_is_taken_in_and_shown(tmp_path: Path) -> None:
    """Fields that are unknown here, and those that were not there yet."""
    with Store.open(f"sqlite:///{tmp_path}/theirs.db") as store, Store.open(f"sqlite:///{tmp_path}/mine.db") as mine:
        spec = made_up_runs.job_spec(seeds=(1,), variants={})
        job_id = made_up_runs.submit(store, spec)
        made_up_runs.finish(store, job_id, spec, made_up_runs.small(2))
        old = {"dataset": {"name": "mosi", "low": -3, "high": 3}, "readout": {"kind": "new", "x": 1}, "seeds": [1]}
        with store.write() as connection:
            connection.execute(tables.jobs.update().values(spec={**old, "later": {"x": [1]}}))
            connection.execute(tables.runs.update().values(spec={**old, "later": {"x": [1]}}))
        export(store, tmp_path / "1.jsonl")
        import_(mine, tmp_path / "1.jsonl", "me")
        assert [len(table.groups) for table in group_tables(mine)] == [1]
        assert sum(row.finished for row in results(mine, job_id).rows) == 1
        with mine.write() as connection:
            connection.execute(tables.jobs.update().values(spec={**old, "search": SEARCH}))
        with pytest.raises(SpecError, match=f"job {job_id}: model: missing"):
            results(mine, job_id)
