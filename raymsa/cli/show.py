"""Commands that read the store: list, status, logs, results."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from raymsa import queue
from raymsa.cli.base import cluster_option, json_option, main, open_store, print_json, store_option
from raymsa.errors import Cancelled, NotFinished, NotFound, RaymsaError
from raymsa.evaluation.metrics import CRITERIA
from raymsa.home import job_log, run_dir
from raymsa.store import Store, queries
from raymsa.target import task_of
from raymsa.words import duration

LAST_LINES = 8  # of a failed run's log, shown by status
ENDED = ("done", "failed", "cancelled")


@main.command("list", short_help="Every job.")
@store_option
@cluster_option()
@json_option
def list_command(url: str | None, as_json: bool) -> None:
    """Every job, the newest last: its state, its runs, when it was submitted."""
    try:
        store = open_store(url)
        rows = [_summary(store, job) for job in queries.jobs(store)]
    except NotFound:  # nothing was ever submitted
        rows = []
    if as_json:
        print_json(rows)
        return
    table = Table("job", "name", "state", "runs", "submitted", "by", box=None, pad_edge=False)
    for row in rows:
        runs = f"{row['runs'].get('done', 0)}/{row['planned']}"
        when = f"{duration(time.time() - row['created_at'])} ago"
        table.add_row(row["id"], row["name"], row["state"], runs, when, row["submitted_by"])
    console().print(table if rows else "no jobs yet; `raymsa submit jobs/demo.yaml` makes one")


@main.command("status", short_help="What a job does now.")
@click.argument("job")
@store_option
@cluster_option()
@json_option
def status_command(job: str, url: str | None, as_json: bool) -> None:
    """A job's tasks and runs: what runs where, how far it is, why something failed."""
    store = open_store(url)
    found = queries.job(store, job)
    tasks, runs = queries.tasks(store, found.id), queries.runs(store, found.id)
    if as_json:
        about = {"job": _summary(store, found), "tasks": [asdict(t) for t in tasks], "runs": [asdict(r) for r in runs]}
        print_json({**about, "events": [asdict(e) for e in queries.events(store, found.id)]})
        return
    screen = console()
    screen.print(f"job {found.id} ({found.name}): {queue.job_state(tasks)}, submitted by {found.submitted_by}")
    screen.print(_task_table(tasks))
    if runs:
        screen.print(_run_table(runs))
    for failed in (r for r in runs if r.state == "failed"):
        screen.print(f"{failed.id} failed: {failed.error}", markup=False)
        for line in _tail(run_dir(failed.id) / "log.txt"):
            screen.print(f"  {line}", markup=False, highlight=False)


@main.command("logs", short_help="What a job or run wrote.")
@click.argument("job_or_run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@store_option
@cluster_option()
@json_option
def logs_command(job_or_run: str, follow: bool, url: str | None, as_json: bool) -> None:
    """What a job's driver said, or what one run wrote."""
    store = open_store(url)
    try:
        job_id = queries.job(store, job_or_run).id
        path = job_log(job_id)
    except NotFound:
        run = queries.run(store, job_or_run)
        job_id, path = run.job_id, run_dir(run.id) / "log.txt"
    if as_json:
        print_json({"job": job_id, "lines": path.read_text(errors="replace").splitlines() if path.exists() else []})
        return
    _print_log(path, (lambda: queue.job_state(queries.tasks(store, job_id)) in ENDED) if follow else None)


@main.command("results", short_help="A job's table.")
@click.argument("job")
@store_option
@cluster_option()
@json_option
def results_command(job: str, url: str | None, as_json: bool) -> None:
    """A job's table: mean ± sd over seeds on test, cost, and the best run by valid."""
    store = open_store(url)
    found = queries.job(store, job)
    state = queue.job_state(queries.tasks(store, found.id))
    if state in ("queued", "running") and not any(r.state == "done" for r in queries.runs(store, found.id)):
        raise NotFinished(f"job {found.id} is {state} and has no finished run yet; raymsa status {found.id}")
    show_results(store, found.id, as_json)
    if state == "failed":
        raise RaymsaError(f"job {found.id} failed; raymsa status {found.id} says why")
    if state == "cancelled":
        raise Cancelled(f"job {found.id} was cancelled")
    if state != "done":
        raise NotFinished(f"job {found.id} is still {state}; the table holds what is finished")


def show_results(store: Store, job_id: str, as_json: bool) -> None:
    """Print a job's results."""
    from raymsa.report.results import as_json as plain
    from raymsa.report.results import results
    from raymsa.report.tables import render

    found = results(store, job_id)
    if as_json:
        print_json(plain(found))
    else:
        render(found, console(markup=True))


def console(markup: bool = False) -> Console:
    """Where tables are printed; without markup, because an error text may hold brackets."""
    # A pipe has no width: 80 columns would fold every table.
    return Console(width=None if Console().is_terminal else 160, soft_wrap=False, highlight=False, markup=markup)


def _summary(store: Store, job: queries.Job) -> dict[str, Any]:
    runs = queries.runs(store, job.id)
    search = job.spec["search"]
    planned = search["trials"] if search else len(job.spec["seeds"]) * max(1, len(job.spec["variants"]))
    states = dict(Counter(run.state for run in runs))
    about = {"id": job.id, "name": job.name, "state": queue.job_state(queries.tasks(store, job.id)), "runs": states}
    return {**about, "planned": planned, "created_at": job.created_at, "submitted_by": job.submitted_by}


def _task_table(tasks: list[queries.Task]) -> Table:
    table = Table("task", "state", "attempt", "driver", "for", "why", box=None, pad_edge=False)
    for task in tasks:
        end = task.finished_at or time.time()
        took = duration(end - task.started_at) if task.started_at else ""
        why = task.error or ("waits for the task before it" if task.state == "queued" and task.seq else "")
        table.add_row(task.kind, task.state, f"{task.attempts}/{task.max_attempts}", task.driver or "", took, why)
    return table


def _run_table(runs: list[queries.RunRow]) -> Table:
    table = Table("run", "state", "epoch", "step", "valid", "attempts", "device time", box=None, pad_edge=False)
    for run in runs:
        step = f"{run.step or 0}/{run.steps_total}" if run.steps_total is not None else ""
        rule = CRITERIA[task_of(run.spec).profile]
        valid = "" if run.valid_error is None else f"{rule.words} {rule.turned(run.valid_error):.4f}"
        cells = (run.id, run.state, str(run.epoch or ""), step, valid, str(run.attempts), duration(run.device_s))
        table.add_row(*cells)
    return table


def _tail(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:] if path.exists() else []


def _print_log(path: Path, over: Any) -> None:
    """Print a log; with `over`, go on until it says the job has ended and nothing more comes."""
    if not path.exists() and over is None:
        raise NotFound("nothing was logged yet")
    position = 0
    while True:
        ended = over is None or over()
        if path.exists():
            with path.open(encoding="utf-8", errors="replace") as file:
                file.seek(position)
                for line in file:
                    click.echo(line, nl=False)
                position = file.tell()
        if ended:
            return
        time.sleep(0.5)
