"""What the pages of queue, jobs and runs show: one look at the store gives their pieces, in the words of report/."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from raymsa.home import run_dir
from raymsa.report import collapse, rows, sortable
from raymsa.report.finals import completed
from raymsa.report.status import Status, status
from raymsa.report.top import frame
from raymsa.store import Store, overview, queries
from raymsa.store.states import LIVE, state_of
from raymsa.target import Classification, task_of
from raymsa.ui import groups, logs, reports
from raymsa.ui.curves import Curves, charts
from raymsa.ui.kept import Kept
from raymsa.ui.live import Seen
from raymsa.ui.words import Rows, failed, piece, pieces, plain, table_rows, texts
from raymsa.words import duration, moment

STATES = ("queued", "running", "paused", "done", "failed", "cancelled")
JOBS = 200  # on one page
TAIL, TAIL_BYTES = 200, 256 * 1024  # lines of a log beside other things


@dataclass(frozen=True)
class Results:
    """What all numbers of a job's runs are needed for: tables of its groups as HTML, and the runs (ids) that are
    collapsed."""

    html: str
    collapsed: frozenset[str] = frozenset()


@dataclass
class Known:
    """What looks keep between them: curves, results of jobs; as HTML: rows, tables of groups, drawn differences."""

    reports: Path
    curves: Curves = field(default_factory=Curves)
    rows: Rows = field(default_factory=Rows)
    groups: Kept[str] = field(default_factory=lambda: Kept(failed))
    differences: Kept[str] = field(default_factory=lambda: Kept(failed))
    results: Kept[Results] = field(default_factory=lambda: Kept(lambda error: Results(failed(error))))


def queue(store: Store) -> Seen:
    """The queue, what runs, drivers, GPUs."""
    found = frame(store)
    make = pieces("queue_parts.html")
    shown = {
        "running": ("What runs", rows.running(found), "Nothing runs."),
        "training": ("Runs that train", rows.training(found, bar=False), "No run trains."),
        "next": ("Next", rows.next_tasks(found), "Nothing is ready to start."),
        "drivers": ("Drivers", rows.drivers(found), f"{rows.no_driver(found)}."),
        "gpus": ("GPUs of this machine", [rows.GPU_HEADING, *found.gpus], f"{found.no_gpus}."),
    }
    done = {run.id: (run.step or 0, run.steps_total) for run in found.runs if run.steps_total}
    parts = {name: str(make.table(name, *table, done)) for name, table in shown.items()}
    parts["said"] = str(make.said(rows.counts(found.tasks), rows.counts(found.jobs)))
    return Seen("Queue", parts=parts)


def jobs(store: Store, name: str, owner: str, state: str, number: int) -> Seen:
    """The jobs that fit, the newest first, a page of them."""
    wanted = [state] if state in STATES else []
    found = overview.listed(store, everything=True, states=wanted).jobs[::-1]
    fit = [j for j in found if name.lower() in j.name.lower() and owner.lower() in j.submitted_by.lower()]
    shown = fit[(number - 1) * JOBS : number * JOBS]
    table = sortable.jobs(shown, store.clock())
    said = piece("job_parts.html", "jobs_said", len(fit), len(found), number, -(-len(fit) // JOBS))
    more = number * JOBS < len(fit)
    facts = {"name": name, "owner": owner, "state": state, "states": STATES, "number": number, "columns": table.columns}
    return Seen("Jobs", {**facts, "more": more}, {"said": said}, {"jobs": table_rows(table, "job")})


def job(store: Store, name: str, known: Known) -> Seen:
    """A job: its state in words, tasks, failures, results, runs."""
    found = status(store, name)
    make = pieces("job_parts.html")
    read = _results(store, found, known)
    table = sortable.runs(found, read.collapsed if read else ())
    report = reports.folder_of(known.reports, found.job)
    parts = {
        "state": make.about(found, rows.counts(overview.run_counts(found.runs))),
        "said": make.said(found, _since(found)),
        "waits": make.waits(found.waits),
        "tasks": make.table(rows.tasks(found)),
        "failures": make.failures(found.failures, found.job.id, lambda at: moment(at, found.now)),
        "results": _shown(read, found, make),
        "reports": make.reports(found.job, reports.pages_of(report), reports.tables_of(report)),
    }
    facts = {"job": found.job, "columns": table.columns}
    title = f"{rows.short(plain(found.job.name), 60)} ({found.job.id})"
    return Seen(title, facts, texts(parts), {"runs": known.rows.of(found.job.id, table, "run", "run")})


def run(store: Store, name: str, known: Known) -> Seen:
    """A run: facts, curves, final metrics, the end of its log."""
    found = queries.run(store, name)
    now = store.clock()
    make = pieces("run_parts.html")
    lines, why = logs.end_of(run_dir(found.id) / "log.txt", TAIL, TAIL_BYTES, found.place)
    parts = {
        "state": make.about(found),
        "said": make.said(found),
        "facts": make.facts(rows.run_facts(found, now)),
        "curves": make.curves(charts(store, [found], known.curves), []),
        "finals": _finals(store, found, make) if found.state == "done" else "",
        "log": make.log(lines, why),
    }
    return Seen(found.id, {"run": found}, texts(parts))


def _finals(store: Store, found: queries.RunRow, make: Any) -> str:
    task = task_of(found.spec)
    measured = completed(store, found.id, queries.finals(store, found.id), task.profile)
    if not measured:
        return ""
    fallen = collapse.of_run(store, found, measured.get("test", {}), task.profile)
    classes = task.classes if isinstance(task, Classification) else ()
    return str(make.finals(sortable.finals(measured, task.profile), list(fallen.reasons(classes))))


def _results(store: Store, found: Status, known: Known) -> Results | None:
    """Asked for again only when a run of the job has got another state, or one of the store is done: it reads every
    number of every run, and those of other jobs are the text-only baseline and what a search tried. None where no run
    is done, and while they are being read."""
    done = [one for one in found.runs if one.state == "done"]
    if not done:
        return None
    states = tuple((one.id, one.state, one.finished_at) for one in found.runs)
    version = hash((queries.done_mark(store), states))
    job_id = found.job.id
    return known.results.of(
        job_id, version, lambda: Results(groups.of_job(store, job_id), collapse.collapsed(store, done))
    )


def _shown(read: Results | None, found: Status, make: Any) -> str:
    if read is not None:
        return read.html
    if any(one.state == "done" for one in found.runs):
        return str(pieces("group_parts.html").later())
    return str(make.no_results(state_of(task.state for task in found.tasks) in LIVE))


def _since(found: Status) -> str:
    return f"{duration(found.now - found.job.created_at)} ago"
