"""What each page shows: one look at the store gives its pieces. Numbers and words are those of report/."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock, Thread
from typing import Any

from raymsa.errors import NotFound, StoreError, UsageError
from raymsa.evaluation.criteria import criterion_of
from raymsa.home import home, job_log, run_dir
from raymsa.report import rows, sortable
from raymsa.report.chart import Line, chart
from raymsa.report.results import Results, results
from raymsa.report.sortable import Sortable
from raymsa.report.status import Status, last_lines, no_log, status
from raymsa.report.top import frame
from raymsa.store import Store, overview, queries
from raymsa.store.queries import Job, RunRow
from raymsa.store.states import LIVE, state_of
from raymsa.target import task_of
from raymsa.ui.curves import Curves, Points
from raymsa.ui.live import Seen
from raymsa.ui.words import piece, pieces, plain
from raymsa.words import duration, moment

STATES = ("queued", "running", "paused", "done", "failed", "cancelled")
JOBS = 200  # on one page
GROUPS = 24  # offered for comparison; more are those of a search
COMPARED = 48  # runs at most
TAIL, TAIL_BYTES = 200, 256 * 1024  # lines of a log beside other things
LOG, LOG_BYTES = 5_000, 2 * 2**20  # and on a page of its own
REPORTS = (".html", ".md", ".tex", ".pdf", ".csv", ".json")
LOSS = "loss"
RESULTS_S = 0.3  # a page is not kept waiting longer for the numbers of many runs
KEPT = 8  # jobs whose results are kept


@dataclass
class Known:
    """What looks keep between them: curves, and results until another run is over."""

    reports: Path
    curves: Curves = field(default_factory=Curves)
    results: dict[str, tuple[int, Results]] = field(default_factory=dict)
    reading: Lock = field(default_factory=Lock)  # results are read by one thread at a time


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
    return Seen("Jobs", {**facts, "more": more}, {"said": said}, {"jobs": _rows(table, "job", "")})


def job(store: Store, name: str, known: Known) -> Seen:
    """A job: its state in words, tasks, failures, results, runs."""
    found = status(store, name)
    make = pieces("job_parts.html")
    table = sortable.runs(found)
    groups = _groups(found.runs)
    parts = {
        "state": make.about(found, rows.counts(overview.run_counts(found.runs))),
        "said": make.said(found, _since(found)),
        "waits": make.waits(found.waits),
        "tasks": make.table(rows.tasks(found)),
        "failures": make.failures(found.failures, found.job.id, lambda at: moment(at, found.now)),
        "results": _results(store, found, known, make),
        "groups": make.groups(groups if len(groups) <= GROUPS else {}),
        "reports": make.reports(found.job, _reports(known.reports, found.job)),
    }
    facts = {"job": found.job, "columns": table.columns}
    title = f"{rows.short(plain(found.job.name), 60)} ({found.job.id})"
    return Seen(title, facts, _texts(parts), {"runs": _rows(table, "run", "run")})


def run(store: Store, name: str, known: Known) -> Seen:
    """A run: facts, curves, final metrics, the end of its log."""
    found = queries.run(store, name)
    now = store.clock()
    make = pieces("run_parts.html")
    lines, why = _log(run_dir(found.id) / "log.txt", TAIL, TAIL_BYTES, found.place)
    measured = queries.finals(store, found.id) if found.state == "done" else {}
    parts = {
        "state": make.about(found),
        "said": make.said(found),
        "facts": make.facts(rows.run_facts(found, now)),
        "curves": make.curves(_charts(store, [found], known.curves), []),
        "finals": make.finals(sortable.finals(measured, task_of(found.spec).profile)) if measured else "",
        "log": make.log(lines, why),
    }
    return Seen(found.id, {"run": found}, _texts(parts))


def compare(store: Store, runs: tuple[str, ...], groups: tuple[str, ...], known: Known) -> Seen:
    """Curves of runs over each other, coloured by group, and their numbers beside each other."""
    found = {one.id: one for name in runs for one in [queries.run(store, name)]}
    found |= {one.id: one for key in groups for one in queries.group(store, key)}
    if not found:
        raise UsageError("nothing to compare: choose runs or groups on the page of a job")
    shown = list(found.values())[:COMPARED]
    make = pieces("run_parts.html")
    kinds = _kinds(shown)
    legend = [(kind, _label(one), one.id) for one, kind in zip(shown, kinds, strict=True)]
    values = {one.id: queries.finals(store, one.id).get("test", {}) for one in shown}
    parts = {
        "curves": make.curves(_charts(store, shown, known.curves, kinds), legend),
        "said": make.compare_said(len(shown), len(found)),
    }
    table = sortable.compared(shown, values)
    facts = {"columns": table.columns, "test": _test(shown)}
    return Seen("Compare", facts, _texts(parts), {"compared": _rows(table, "run", "")})


def _test(shown: list[RunRow]) -> str:
    """The command that tests the difference, where there are groups to compare."""
    keys = list(dict.fromkeys(one.group_key for one in shown))
    return f"raymsa compare {' '.join(keys)}" if len(keys) > 1 else ""


def log(store: Store, kind: str, name: str) -> Seen:
    """The log of a job or run."""
    title, path, host = log_of(store, kind, name)
    lines, why = _log(path, LOG, LOG_BYTES, host)
    facts = {"kind": kind, "name": title, "whole": path.exists()}
    return Seen(f"Log of {title}", facts, {"log": piece("run_parts.html", "log", lines, why)})


def log_of(store: Store, kind: str, name: str) -> tuple[str, Path, str | None]:
    """Whose log it is, where it lies, and where it was written. Raises NotFound."""
    if kind not in ("jobs", "runs"):
        raise NotFound(f"there are logs of jobs and of runs, and none of {kind!r}")
    if kind == "jobs":
        found = queries.job(store, name)
        return found.id, job_log(found.id), None
    one = queries.run(store, name)
    return one.id, run_dir(one.id) / "log.txt", one.place


def is_ours(path: Path) -> bool:
    """Whether a path is under RAYMSA_HOME: an id may have been made to lead elsewhere."""
    return path.resolve().is_relative_to(home().resolve())


def report_folder(root: Path, job: Job) -> Path | None:
    """Where reports of a job lie: a folder named by its id or its name, in the folder of all reports."""
    for name in (job.id, job.name):
        folder = root / name
        if name not in ("", ".", "..") and "/" not in name and "\0" not in name and _is_dir(folder):
            return folder
    return None


def _is_dir(folder: Path) -> bool:
    try:
        return folder.is_dir()
    except OSError:  # a name that is too long
        return False


def _reports(root: Path, job: Job) -> list[str]:
    folder = report_folder(root, job)
    found = [] if folder is None else [path.name for path in folder.iterdir() if path.suffix in REPORTS]
    return sorted((name for name in found if not name.startswith(".")), key=lambda n: (not n.endswith(".html"), n))


def _log(path: Path, most: int, most_bytes: int, place: str | None) -> tuple[list[str], str]:
    """The end of a log, or why there is none. Of a line that was written over again, what came last."""
    if not is_ours(path):
        return [], "its log is not under RAYMSA_HOME"
    try:
        lines = last_lines(path, most, most_bytes)
    except OSError:
        return [], no_log((place or "").partition(" ")[0])
    return [plain(line) for line in lines], ""


def _results(store: Store, found: Status, known: Known, make: Any) -> str:
    """Asked for again only when a run has got another state: it reads every number of every run."""
    if not any(one.state == "done" for one in found.runs):
        return str(make.no_results(state_of(task.state for task in found.tasks) in LIVE))
    version = hash(tuple((one.id, one.state, one.finished_at) for one in found.runs))
    kept = known.results.get(found.job.id)
    if (kept is None or kept[0] != version) and known.reading.acquire(blocking=False):  # else the next look asks
        reading = Thread(target=_read_results, args=(store, found.job.id, version, known), daemon=True)
        reading.start()
        reading.join(RESULTS_S)
        kept = known.results.get(found.job.id)
    return str(make.results(sortable.results(kept[1])) if kept is not None else make.results_later())


def _read_results(store: Store, job_id: str, version: int, known: Known) -> None:
    try:
        with suppress(StoreError, NotFound):  # the next look asks again
            known.results[job_id] = (version, results(store, job_id))
        for old in list(known.results)[:-KEPT]:
            del known.results[old]
    finally:
        known.reading.release()


def _groups(runs: Iterable[RunRow]) -> dict[str, tuple[str, int]]:
    """Groups of more than one run: key -> (variant, how many)."""
    found: dict[str, list[str]] = {}
    for one in runs:
        found.setdefault(one.group_key, []).append(one.variant)
    return {key: (names[0], len(names)) for key, names in found.items() if len(names) > 1}


def _charts(store: Store, runs: list[RunRow], curves: Curves, kinds: list[int] | None = None) -> list[tuple[str, str]]:
    """(title, picture) of the loss, and of each metric that decides on valid."""
    told: dict[str, list[Line]] = {}
    for one, kind in zip(runs, kinds or [0] * len(runs), strict=True):
        valid = f"valid_{criterion_of(one.spec).metric}"
        for name, points in curves.of(store, one, (LOSS, valid)).items():
            told.setdefault(name, []).append(Line(_label(one), points, kind))
    words = {LOSS: "training loss"}
    drawn = [(words.get(name, name.replace("_", " ")), lines) for name, lines in told.items() if _any(lines)]
    return [(title, chart(title, "step", lines)) for title, lines in drawn]


def _any(lines: list[Line]) -> bool:
    points: list[Points] = [list(line.points) for line in lines]
    return any(points)


def _kinds(runs: list[RunRow]) -> list[int]:
    """One look for each group, or for each run where there is but one group."""
    keys = [one.group_key for one in runs]
    if len(set(keys)) == 1:
        return list(range(len(runs)))
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]


def _label(one: RunRow) -> str:
    return f"{plain(one.variant)}, seed {one.seed}"


def _since(found: Status) -> str:
    return f"{duration(found.now - found.job.created_at)} ago"


def _rows(table: Sortable, links: str, box: str) -> dict[str, str]:
    """The rows of a table as HTML: the first cell is a link, perhaps with a box to choose the row by."""
    row: Callable[..., Any] = pieces("tables.html").row
    return {name: str(row(name, cells, links, box)) for name, cells in table.rows.items()}


def _texts(parts: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(made) for name, made in parts.items()}
