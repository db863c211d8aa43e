"""What the pages show, from stores of every state, without a browser."""

import json
import math
import re
import shutil
import threading

import pytest

from raymsa import queue
from raymsa.errors import StoreError
from raymsa.home import job_log, run_dir
from raymsa.report import sortable
from raymsa.report.formats import Column, Noted, Sheet
from raymsa.report.groups import group_tables
from raymsa.report.results import results
from raymsa.report.spread import Spread
from raymsa.store import Store, records
from raymsa.ui import groups, kept, logs, pages, reports
from raymsa.ui import words as ui_words
from raymsa.ui.curves import Curves
from raymsa.ui.words import environment, key, piece, plain
from tests import made_up_runs
from tests.jobs import wait_for
from tests.stores import BACKENDS, fresh_url, put
from tests.ui_site import Visitor, add_job, add_run, own_home, own_store, spec, train  # noqa: F401 (fixtures)


@pytest.fixture()
def guest(store, home):
    return Visitor(f"sqlite:///{home}/store.db", home / "reports")


def words(html: str) -> str:
    """What is read of a page."""
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


# The queue


def test_the_queue_says_what_runs_what_is_next_and_why_there_are_no_gpus(store, guest, monkeypatch) -> None:
    job_id = add_job(store, "running", done=False)
    put(store, "waiting")
    monkeypatch.setenv("PATH", "")
    page = guest.get("/").text
    shown = words(page)
    assert f"{job_id}-gen-2" in shown
    assert '<progress value="20" max="40"' in page
    assert "box:1" in shown
    assert "waiting" in shown
    assert "No nvidia-smi on this machine" in shown
    assert not re.search(r"\b2 running", shown)
    assert "1 running, 1 queued" in shown


def test_an_empty_queue_says_so(store, guest) -> None:
    shown = words(guest.get("/").text)
    assert "Nothing runs." in shown
    assert "Nothing is ready to start." in shown


# Jobs


def test_jobs_are_listed_the_newest_first_and_filtered_by_name_state_and_owner(store, guest) -> None:
    done, running = add_job(store, "first"), add_job(store, "second", done=False)
    page = guest.get("/jobs").text
    assert page.index(running) < page.index(done)

    def ids(query: str) -> set[str]:
        found = guest.get(f"/jobs?{query}").text
        return {job_id for job_id in (done, running) if job_id in found}

    assert ids("name=FIRST") == {done}
    assert ids("state=running") == {running}
    assert ids("owner=ada") == {done, running}
    assert ids("owner=bob") == set()
    assert ids("state=nonsense") == {done, running}


def test_many_jobs_are_on_several_pages(store, guest, monkeypatch) -> None:
    monkeypatch.setattr(pages, "JOBS", 2)
    ids = [put(store, f"job{n}") for n in range(5)]
    shown = [[i for i in ids if i in guest.get(f"/jobs?page={page}").text] for page in (1, 2, 3, 4)]
    assert shown == [ids[3:], ids[1:3], ids[:1], []]
    assert "Older jobs" in guest.get("/jobs").text
    assert "Newer jobs" in guest.get("/jobs?page=3").text
    for nonsense in ("0", "-1", "x", "9" * 30, "²"):
        assert guest.get(f"/jobs?page={nonsense}").status_code == 200


def test_a_job_shows_state_tasks_runs_and_the_numbers_of_its_results(store, guest) -> None:
    job_id = add_job(store, "mine")
    shown = words(guest.get(f"/jobs/{job_id}").text)
    assert "mine" in shown and "4 done of 4 planned" in shown and "prepare" in shown
    row = results(store, job_id).rows[0]
    assert f"{row.test['mae'].mean:.3f} ± {row.test['mae'].sd:.3f}" in shown
    assert "constant" in shown


def test_a_job_is_found_by_name_and_by_the_beginning_of_its_id(store, guest) -> None:
    job_id = add_job(store, "mine")
    assert job_id in guest.get("/jobs/mine").text
    assert job_id in guest.get(f"/jobs/{job_id[:5]}").text
    add_job(store, "mine")
    answer = guest.get("/jobs/mine?x=1")
    assert answer.status_code == 404
    assert "could be" in answer.text


def test_a_failed_job_says_why_and_what_to_do(store, guest) -> None:
    job_id = put(store, "broken")
    task = queue.claim(store, "box:1", 60)
    job_log(job_id).parent.mkdir(parents=True)
    job_log(job_id).write_text("first\nlast words\n")
    queue.fail(store, task, "the <disk> is full", "user")
    shown = words(guest.get(f"/jobs/{job_id}").text)
    assert "something that was written is wrong, or the data is (user)" in shown
    assert "the &lt;disk&gt; is full" in shown
    assert "last words" in shown
    assert f"raymsa retry {job_id}" in shown


def test_results_are_read_again_only_when_a_run_is_over(store, guest, monkeypatch) -> None:
    asked = []
    monkeypatch.setattr(groups, "group_tables", lambda s, j: asked.append(j) or group_tables(s, j))
    monkeypatch.setattr(kept, "PATIENCE_S", 60)
    job_id = add_job(store, done=False)
    known = pages.Known(guest.site.known.reports)
    pages.job(store, job_id, known)
    train(store, f"{job_id}-gen-2", 21, 22)
    pages.job(store, job_id, known)
    assert len(asked) == 1
    records.set_run_state(store, f"{job_id}-gen-2", "cancelled")
    pages.job(store, job_id, known)
    assert len(asked) == 2


def test_results_that_take_long_keep_no_page_waiting_and_are_read_once(store, guest, monkeypatch) -> None:
    free, asked = threading.Event(), []
    monkeypatch.setattr(groups, "group_tables", lambda s, j: asked.append(j) or (free.wait(60) and group_tables(s, j)))
    monkeypatch.setattr(kept, "PATIENCE_S", 0.05)
    job_id = add_job(store)
    known = pages.Known(guest.site.known.reports)
    for _ in range(3):
        assert "are being read" in pages.job(store, job_id, known).parts["results"]
    free.set()
    wait_for(lambda: "±" in pages.job(store, job_id, known).parts["results"], 60)
    assert asked == [[job_id]]


def test_what_cannot_be_made_is_said_once_in_words_and_logged(store, guest, monkeypatch, caplog) -> None:
    asked = []
    monkeypatch.setattr(groups, "group_tables", lambda s, j: asked.append(j) or {}["<b>"])
    monkeypatch.setattr(kept, "PATIENCE_S", 60)
    job_id = add_job(store, done=False)
    known = pages.Known(guest.site.known.reports)
    shown = [pages.job(store, job_id, known).parts["results"] for _ in range(2)]
    assert all("This cannot be made:" in html and "KeyError: &#39;&lt;b&gt;&#39;" in html for html in shown)
    assert len(asked) == 1 and "KeyError" in caplog.text
    records.set_run_state(store, f"{job_id}-gen-2", "cancelled")
    monkeypatch.setattr(groups, "group_tables", group_tables)
    assert "±" in pages.job(store, job_id, known).parts["results"]


def test_results_are_read_again_when_a_run_of_another_job_is_done(store, guest, monkeypatch) -> None:
    monkeypatch.setattr(kept, "PATIENCE_S", 60)
    monkeypatch.setattr(made_up_runs, "STEPS", made_up_runs.EPOCHS)
    known = pages.Known(guest.site.known.reports)

    def finished(name: str, **sections) -> str:
        spec = made_up_runs.job_spec(name=name, variants={"disc": {}}, **sections)
        job_id = made_up_runs.submit(store, spec)
        made_up_runs.finish(store, job_id, spec, made_up_runs.small())
        return job_id

    job_id = finished("main")
    assert "text only" not in pages.job(store, job_id, known).parts["results"]
    finished("words", inputs={"modalities": ["text"]})
    assert "text only" in pages.job(store, job_id, known).parts["results"]


def test_rows_are_made_again_only_where_their_cells_are_others(monkeypatch) -> None:
    monkeypatch.setattr(ui_words, "TABLES_KEPT", 2)
    made, some = [], ui_words.Rows()
    monkeypatch.setattr(ui_words, "row_html", lambda *row: made.append(row[0]) or f"{row[1][0].text}{len(made)}")

    def rows(key: str, **texts: str) -> dict[str, str]:
        table = sortable.Sortable((), {name: (sortable.Cell(text, sortable.MISSING),) for name, text in texts.items()})
        return some.of(key, table, "run")

    assert rows("t", a="x", b="y") == {"a": "x1", "b": "y2"}
    assert rows("t", b="z", a="x", c="w") == {"b": "z3", "a": "x1", "c": "w4"}
    assert rows("t", a="x") == {"a": "x1"}
    assert rows("t", b="z", a="x") == {"b": "z5", "a": "x1"}
    assert [rows(key, a="x") for key in "uvt"][2] == {"a": "x8"}


def test_only_so_many_things_are_kept(monkeypatch) -> None:
    monkeypatch.setattr(kept, "MOST", 2)
    some = kept.Kept(str)
    assert [some.of(key, 1, lambda key=key: key * 2) for key in "abca"] == ["aa", "bb", "cc", "aa"]
    assert len(some._made) == 2


def test_of_a_long_table_the_first_rows_are_shown(store, guest, monkeypatch) -> None:
    job_id = add_job(store, variants=("a", "b", "c"), seeds=2)
    monkeypatch.setitem(environment().globals, "MOST_ROWS", 4)
    page = guest.get(f"/jobs/{job_id}").text
    assert page.count('class="more"') == 2
    assert page.count(f"/runs/{job_id}") == 6


def report_in(folder, job_id: str, text: str = "findings") -> None:
    """A folder as `raymsa report` leaves it."""
    (folder / "tables").mkdir(parents=True)
    for name in ("index.html", "job.yaml", "tables/cost & time.md", "tables/cost & time.tex", ".hidden.html"):
        (folder / name).write_text(text)
    (folder / "raymsa-report.json").write_text(json.dumps({"raymsa": "report", "job": job_id, "files": []}))


def test_a_report_of_a_job_and_its_tables_are_linked_and_open(store, guest, home) -> None:
    job_id = add_job(store, "mine")
    assert "/reports/" not in guest.get(f"/jobs/{job_id}").text
    for name in (job_id, "mine"):
        report_in(home / "reports" / name, job_id, f"in {name}")
        guest.site.hub._feeds.clear()
        links = re.findall(r'/reports/[^"]+', guest.get(f"/jobs/{job_id}").text)
        assert [link.rpartition(job_id)[2] for link in links] == [
            "/index.html",
            "/tables/cost%20%26%20time.md",
            "/tables/cost%20%26%20time.tex",
        ]
        assert {guest.get(link).text for link in links} == {f"in {name}"}
        shutil.rmtree(home / "reports" / name)


def test_the_report_of_another_job_of_the_same_name_is_not_shown(store, guest, home) -> None:
    older, newer = add_job(store, "mine"), add_job(store, "mine")
    report_in(home / "reports" / "mine", older)
    assert "/reports/" in guest.get(f"/jobs/{older}").text
    assert "/reports/" not in guest.get(f"/jobs/{newer}").text
    assert guest.get(f"/reports/{newer}/index.html").status_code == 404
    (home / "reports" / "mine" / "raymsa-report.json").write_text("no mark")
    guest.site.hub._feeds.clear()
    assert "/reports/" not in guest.get(f"/jobs/{older}").text


@pytest.mark.parametrize("name", ["..", ".", "", "a/b", "x" * 5000, "a\0b"])
def test_a_jobs_name_never_leads_out_of_the_folder_of_reports(store, home, name) -> None:
    from dataclasses import replace

    from raymsa.store import queries

    job = replace(queries.job(store, put(store)), id="nosuchid", name=name)
    report_in(home / "reports" / "a" / "b", "nosuchid")
    (home / "raymsa-report.json").write_text('{"job": "nosuchid"}')
    assert reports.folder_of(home / "reports", job) is None


# Runs


def test_a_run_shows_facts_curves_log_and_metrics_at_the_end(store, guest) -> None:
    job_id = add_job(store)
    page = guest.get(f"/runs/{job_id}-disc-1").text
    shown = words(page)
    assert "20 of 20" in shown and "box GPU 0" in shown and "epoch 2" in shown
    assert page.count('<svg class="chart"') == 2
    assert "At the end" in shown
    assert "Training loss" in shown and "Valid mae" in shown


def test_a_log_is_shown_from_its_end_and_whole_as_a_file(store, guest) -> None:
    job_id = add_job(store)
    run_id = f"{job_id}-disc-1"
    (run_dir(run_id) / "log.txt").write_text("".join(f"line {n}\n" for n in range(10_000)))
    assert "line 9999" in guest.get(f"/runs/{run_id}").text
    assert "line 5\n" not in guest.get(f"/runs/{run_id}").text
    whole = guest.get(f"/logs/runs/{run_id}?whole=1")
    assert whole.headers["content-type"] == "text/plain; charset=utf-8"
    assert whole.text.count("\n") == 10_000


def test_a_run_whose_id_leads_elsewhere_has_no_log(store, guest, home, tmp_path) -> None:
    job_id = add_job(store)
    (tmp_path / "log.txt").write_text("a secret")
    add_run(store, job_id, "../..", "v", 1)
    (home / "runs").mkdir(exist_ok=True)
    for path in ("/runs/..%2F..", "/logs/runs/..%2F..", "/logs/runs/..%2F..?whole=1"):
        request = guest.build_request("GET", "/")
        request.url = request.url.copy_with(raw_path=path.encode())
        assert "a secret" not in guest.send(request).text
    assert logs.end_of(run_dir("../..") / "log.txt", 10, 1000, None) == ([], "its log is not under RAYMSA_HOME")


def test_curves_follow_a_run_and_one_that_went_back_to_its_checkpoint(store) -> None:
    from raymsa.store import queries

    job_id = put(store)
    add_run(store, job_id, "r", "v", 1)
    train(store, "r", 1, 10)
    curves = Curves()
    names = ("loss", "valid_mae")

    def look() -> dict[str, list[tuple[float, float]]]:
        return curves.of(store, queries.run(store, "r"), names)

    def told(name: str) -> list[tuple[float, float]]:
        return [(step.step, step.value) for step in queries.steps(store, "r") if step.name == name]

    assert look() == {name: told(name) for name in names}
    train(store, "r", 11, 13)
    assert look() == {name: told(name) for name in names}
    entries = [{"step": step, "epoch": 1, "values": {"loss": 99.0}} for step in (8, 9)]
    records.record_steps(store, "r", entries[:1])
    look()
    records.record_steps(store, "r", entries[1:])
    assert look()["loss"] == told("loss")
    assert dict(look()["loss"])[9] == 99.0


def test_curves_read_what_is_new_and_keep_a_bounded_number_of_runs(store, monkeypatch) -> None:
    from raymsa.store import queries
    from raymsa.ui import curves as module

    monkeypatch.setattr(module, "KEPT", 2)
    asked = []
    read = queries.steps
    monkeypatch.setattr(queries, "steps", lambda s, r, names, since: asked.append(since) or read(s, r, names, since))
    job_id = put(store)
    curves = Curves()
    for run_id in "abc":
        add_run(store, job_id, run_id, "v", 1)
        train(store, run_id, 1, 5)
        curves.of(store, queries.run(store, run_id), ("loss",))
    curves.of(store, queries.run(store, "c"), ("loss",))
    assert asked == [0, 0, 0, 5]
    assert len(curves._kept) == 2


# What is not there, and what must not be written


@pytest.mark.parametrize(
    "path", ["/jobs/zzz", "/runs/zzz", "/logs/jobs/zzz", "/logs/x/zzz", "/compare?run=zzz", "/zzz"]
)
def test_what_is_not_there_is_a_404_in_words(store, guest, path) -> None:
    answer = guest.get(path)
    assert answer.status_code == 404
    assert "There is no such" in answer.text


def test_a_store_that_is_not_there_yet_is_waited_for(home) -> None:
    guest = Visitor(f"sqlite:///{home}/store.db", home / "reports")
    answer = guest.get("/jobs")
    assert answer.status_code == 503
    assert "The store is away." in answer.text
    with Store.open(str(home / "store.db")) as store:
        job_id = add_job(store)
        guest.site.hub._feeds.clear()  # a second later
        assert job_id in guest.get("/jobs").text


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_page_cannot_write(backend, tmp_path) -> None:
    with fresh_url(backend, tmp_path) as url:
        with Store.open(url) as store:
            job_id = put(store)
        guest = Visitor(url, tmp_path)
        reader = guest.site.source.store()
        with pytest.raises(StoreError, match=r"(?i)readonly|read-only|query_only"):
            records.add_event(reader, "written")
        assert job_id in guest.get("/jobs").text
        reader.close()


def test_tables_put_what_is_missing_last_and_round_only_what_is_shown() -> None:
    assert [key(value) for value in (None, math.nan, 0.1, 3)] == ["", "", "0.1", "3.0"]
    columns = (Column("runs", "runs"), Column("mae", "MAE", 3), Column("acc", "acc (%)", 1, 100))
    rows = (("a", Noted(Spread(0.123456, 0.01, 2), ("one", "two")), 0.5), ("b", None, None))
    found = sortable.sheet(Sheet("t", columns, rows))
    assert [column.words for column in found.columns] == ["runs", "MAE", "acc (%)", "notes"]
    label, mae, acc, notes = found.rows["0"]
    assert (mae.text, mae.value) == ("0.123 ± 0.010", 0.123456)
    assert (acc.text, acc.value) == ("50.0", 0.5)
    assert (label.value, notes.text) == (None, "one; two")
    assert [math.isnan(cell.value) for cell in found.rows["1"][1:3]] == [True, True]


def test_characters_that_act_or_hide_are_shown_as_what_they_are() -> None:
    assert plain("\x1b[31m\r\n\tx\x7f") == "\\x1b[31m\\r\n\tx\\x7f"
    assert plain("abc\u202egnp\u200bexe\ufeff") == "abc\\u202egnp\\u200bexe\\ufeff"
    assert plain("سلام 👩🏽‍🔬") == "سلام 👩🏽‍🔬"


def test_names_in_commands_are_quoted(store, guest, monkeypatch) -> None:
    from raymsa.store import queries, tables

    job_id = put(store, "broken")
    queue.fail(store, queue.claim(store, "box:1", 60), "x", "user")
    with store.write() as connection:  # as an import once let in
        connection.exec_driver_sql("PRAGMA defer_foreign_keys = on")
        connection.execute(tables.jobs.update().values(id="a; rm -r ~"))
        connection.execute(tables.tasks.update().values(job_id="a; rm -r ~"))
    assert queries.job(store, "a;").id != job_id
    assert "raymsa retry &#39;a; rm -r ~&#39;" in guest.get("/jobs/broken").text


def test_a_very_long_text_is_in_a_box_of_its_own() -> None:
    table = piece("tables.html", "words_table", "c", [("driver",), ("x" * 10_000,)])
    assert 'class="clip"' in table
    assert "x" * 10_000 in table


def test_a_job_that_was_never_run_and_one_of_classes_can_be_shown(store, guest) -> None:
    job_id = put(store, "bare")
    assert guest.get(f"/jobs/{job_id}").status_code == 200
    classes = {"kind": "classification", "target": "e", "classes": ["a", "b"]}
    named = {**spec(), "name": "classes", "dataset": {**spec()["dataset"], "task": classes}}
    about = {"submitted_by": "ada", "folder": "/", "git_commit": None}
    other = queue.put(store, "classes", named, [queue.NewTask("train", {})], **about)
    row = {"id": "c1", "job_id": other, "task_id": None, "variant": "disc", "seed": 1, "group_key": "g", "spec": named}
    records.create_runs(store, [{**row, "spec_digest": "d"}])
    records.start_run(store, "c1", steps_total=2)
    records.record_steps(store, "c1", [{"step": 1, "epoch": 1, "values": {"loss": 1.0, "valid_f1": 0.5}}])
    records.finish_run(store, "c1", {"valid_error": 0.5}, {"test": {"f1": 0.25}, "valid": {"f1": 0.5}})
    assert guest.get(f"/jobs/{other}").status_code == 200
    shown = words(guest.get("/runs/c1").text)
    assert "Valid f1" in shown
    assert "25.0" in shown
