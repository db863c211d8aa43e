"""Commands that read the store: list, status, logs. Quick ones: heavy imports are where they are used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from raymsa.cli.base import (
    LOOK_S,
    answered,
    cluster_option,
    json_option,
    main,
    open_store,
    print_json,
    say,
    store_option,
)
from raymsa.cli.columns import columns, sentence, width
from raymsa.errors import NotFound
from raymsa.home import job_log, run_dir
from raymsa.store.states import ENDED
from raymsa.words import duration, moment, visible

if TYPE_CHECKING:
    from rich.console import Console

    from raymsa.report.status import Failure, Status
    from raymsa.store.overview import JobLine

STATES = ("queued", "running", "paused", "done", "failed", "cancelled")


@main.command("list", short_help="What is not finished, and the newest jobs.")
@click.option("--all", "everything", is_flag=True, help="Every job.")
@click.option(
    "--state", "states", multiple=True, type=click.Choice(STATES), help="Jobs in this state; may be repeated."
)
@store_option
@cluster_option()
@json_option
def list_command(everything: bool, states: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Jobs that are not finished and the newest 20, the newest last: state, runs, when they were submitted."""
    from raymsa.store import overview

    found, now = overview.Listed([], {}), 0.0
    with suppress(NotFound):  # nothing was ever submitted
        store = open_store(url)
        found, now = overview.listed(store, everything, states), store.clock()
    if as_json:
        print_json([asdict(job) for job in found.jobs])
    elif found.jobs:
        click.echo("\n".join(_list_lines(found.jobs, now)))
    elif states:
        click.echo(f"no job is {' or '.join(states)}")
    else:
        click.echo("no jobs yet; `raymsa submit jobs/demo.yaml` makes one")
    if found.hidden:
        left_out = ", ".join(f"{count:,} {state}" for state, count in sorted(found.hidden.items()))
        say(f"not shown: {left_out}; --all shows every job, --state {next(iter(found.hidden))} those of one state")


@main.command("status", short_help="What a job does now.")
@click.argument("job")
@store_option
@cluster_option()
@json_option
def status_command(job: str, url: str | None, as_json: bool) -> None:
    """What runs where, how far it is, how long still, what it waits for, and why something failed."""
    from raymsa.report.status import as_json as plain
    from raymsa.report.status import status

    store = open_store(url)
    found = status(store, job)
    if as_json:
        print_json(plain(store, found))
    else:
        click.echo("\n".join(_status_lines(found, width())))


@main.command("logs", short_help="What a job or run wrote.")
@click.argument("job_or_run")
@click.option("-f", "--follow", is_flag=True, help="Go on until the job is over.")
@store_option
@cluster_option()
@json_option
def logs_command(job_or_run: str, follow: bool, url: str | None, as_json: bool) -> None:
    """What a job's driver said, or what one run wrote."""
    from raymsa.store import queries

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
    _print_log(path, (lambda: answered(lambda: queries.state(store, job_id)) in ENDED) if follow else None)


def console(markup: bool = False) -> Console:
    """Where tables are printed; without markup, because an error text may hold brackets."""
    from rich.console import Console

    # A pipe has no width: 80 columns would fold every table.
    return Console(
        width=None if Console().is_terminal else 160, soft_wrap=False, highlight=False, markup=markup, emoji=False
    )


def _list_lines(jobs: list[JobLine], now: float) -> list[str]:
    rows = [("job", "name", "state", "runs", "submitted", "by")]
    for job in jobs:
        when = f"{duration(now - job.created_at)} ago"
        rows.append((job.id, job.name, job.state, f"{job.runs.get('done', 0)}/{job.planned}", when, job.submitted_by))
    return columns(rows, width())


def _status_lines(found: Status, most: int | None) -> Iterator[str]:
    from raymsa.report import rows

    job, now = found.job, found.now
    ago = duration(now - job.created_at)
    yield from sentence(f"job {job.id} ({job.name}): {found.state}, submitted by {job.submitted_by} {ago} ago", most)
    if found.left:
        done = sum(run.state in ("done", "pruned") for run in found.runs)
        yield from sentence(f"{done} of {found.planned} runs are over; {found.left}", most)
    if found.not_here:
        yield from sentence(f"{found.not_here} of {found.planned} runs are not in this store", most)
    if found.deadline is not None:
        yield from sentence(f"failed if not done by {moment(found.deadline, now)} ({_in(found.deadline - now)})", most)
    yield ""
    yield from columns(rows.tasks(found), most)
    for task in found.tasks:
        if task.state == "running" and task.said:
            yield from sentence(f"{task.kind}: {task.said}", most)
    if found.runs:
        yield ""
        yield from columns(rows.runs(found), most)
    if found.waits:
        yield ""
        for what, why in found.waits.items():
            yield from sentence(f"{what} waits for {why}", most)
    for failure in found.failures:
        yield ""
        yield from _failure_lines(failure, found, most)


def _failure_lines(failure: Failure, found: Status, most: int | None) -> Iterator[str]:
    times = f" {failure.times} times" if failure.times > 1 else ""
    yield from sentence(f"{failure.what} failed{times}: {failure.words} ({failure.cause})", most)
    yield from sentence(failure.error, most, "  ")
    if failure.again_at is not None:
        yield from sentence(f"tried again at {moment(failure.again_at, found.now)}", most, "  ")
    elif found.state == "failed":
        yield from sentence(f"not tried again by itself; raymsa retry {found.job.id}", most, "  ")
    if failure.log_at:
        yield from sentence(failure.log_at + (":" if failure.log else ""), most, "  ")
    yield from (f"  | {line}" for line in failure.log)


def _in(seconds: float) -> str:
    return f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"


def _print_log(path: Path, over: Callable[[], bool] | None) -> None:
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
                    click.echo(visible(line, "\n\t"), nl=False)
                position = file.tell()
        if ended:
            return
        time.sleep(LOOK_S)
