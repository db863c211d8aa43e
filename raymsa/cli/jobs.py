"""Commands that put jobs into the queue, serve it, and take jobs out of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from raymsa import queue
from raymsa.cli.base import json_option, main, open_store, print_json, say, store_option
from raymsa.driver import Driver, alone, on_ctrl_c, submit
from raymsa.errors import Cancelled, RaymsaError
from raymsa.provenance import who
from raymsa.spec import load_job
from raymsa.store import Store, queries

LEASE_S = click.option(
    "--lease-s", default=60.0, show_default=True, help="Seconds of silence after which a driver counts as dead."
)
ADDRESS = click.option(
    "--address", default=None, help="Ray cluster to use, host:port [default: a session on this machine]."
)


@main.command("submit", short_help="Queue a job, run it, show its table.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field, e.g. train.lora_lr=1e-4."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved job and what it would do; write nothing.")
@click.option("--detach", is_flag=True, help="Only queue it; `raymsa work` does it.")
@ADDRESS
@LEASE_S
@store_option
@json_option
def submit_command(
    file: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    detach: bool,
    address: str | None,
    lease_s: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Queue a job file, run it and show its results. Ctrl-C once detaches: the job keeps its place."""
    job = load_job(file, list(overrides))
    if dry_run:
        _dry_run(job, as_json)
        return
    store = open_store(url, create=True)
    job_id = submit(store, job)
    say(f"job {job_id} ({job.name}) is queued")
    say(f"  raymsa status {job_id}    raymsa logs -f {job_id}    raymsa cancel {job_id}")
    if detach:
        say("  raymsa work               does what is queued")
        print_json({"job": job_id}) if as_json else click.echo(job_id)
        return
    _follow(Driver(store, say, address, lease_s), job_id, as_json)


@main.command("work", short_help="Serve the queue.")
@click.option("--until-empty", is_flag=True, help="End when nothing is queued or running.")
@ADDRESS
@LEASE_S
@store_option
def work_command(until_empty: bool, address: str | None, lease_s: float, url: str | None) -> None:
    """Serve the queue: do one task after the other until Ctrl-C."""
    driver = Driver(open_store(url, create=True), say, address, lease_s)

    def done() -> bool:
        return until_empty and not _pending(_tasks(driver))

    with on_ctrl_c(driver.stop):
        _serve(driver, done, lambda: done() or driver.stopped)
    say("stopped" if driver.stopped else "the queue is empty")


@main.command("cancel", short_help="Take a job out, running or not.")
@click.argument("job")
@store_option
@json_option
def cancel_command(job: str, url: str | None, as_json: bool) -> None:
    """Cancel a job; a running task stops within seconds, its checkpoints stay."""
    store = open_store(url)
    found = queries.job(store, job)
    stopped = queue.cancel(store, found.id, who())
    if as_json:
        print_json({"job": found.id, **stopped._asdict()})
    if not any(stopped):
        raise RaymsaError(
            f"job {found.id} has nothing to cancel; it is {queue.job_state(queries.tasks(store, found.id))}"
        )
    say(f"job {found.id}: {stopped.cancelled} tasks cancelled, {stopped.asked} running tasks asked to stop")


@main.command("retry", short_help="Queue what failed again.")
@click.argument("job")
@store_option
@json_option
def retry_command(job: str, url: str | None, as_json: bool) -> None:
    """Queue a job's failed and cancelled tasks again; finished runs are kept, others go on from their checkpoints."""
    store = open_store(url)
    found = queries.job(store, job)
    count = queue.retry(store, found.id, who())
    if as_json:
        print_json({"job": found.id, "tasks": count})
    say(f"job {found.id}: {count} tasks queued again; `raymsa work` does them")


def _dry_run(job: Any, as_json: bool) -> None:
    from raymsa.plan import plan

    made = plan(job)
    if as_json:
        print_json({"job": job.model_dump(mode="json"), **made})
        return
    import yaml

    click.echo(yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True), nl=False)
    for key, value in made.items():
        say(f"{key}: {value:,}" if isinstance(value, int) else f"{key}: {value}")


def _follow(driver: Driver, job_id: str, as_json: bool) -> None:
    """Serve the queue until the job is over, then show its results; leaves with the job's exit code."""

    def state() -> str:
        return queue.job_state(queries.tasks(driver.store, job_id))

    with on_ctrl_c(driver.stop):
        _serve(
            driver,
            lambda: state() not in ("queued", "running"),
            lambda: driver.stopped or state() not in ("queued", "running"),
        )
    if driver.stopped and state() in ("queued", "running"):
        say(f"detached: job {job_id} keeps its place and goes on from its last checkpoint with `raymsa work`")
        say(f"  raymsa status {job_id}    raymsa cancel {job_id}")
        sys.exit(130)
    _show_end(driver.store, job_id, state(), as_json)


def _show_end(store: Store, job_id: str, state: str, as_json: bool) -> None:
    from raymsa.cli.show import show_results

    if queries.runs(store, job_id):
        show_results(store, job_id, as_json)
    if state == "cancelled":
        raise Cancelled(f"job {job_id} was cancelled")
    if state == "failed":
        errors = [task.error for task in queries.tasks(store, job_id) if task.error]
        raise RaymsaError(
            "\n".join([f"job {job_id} failed: {e}" for e in errors] + [f"the whole story: raymsa logs {job_id}"])
        )


def _serve(driver: Driver, done: Callable[[], bool], give_up: Callable[[], bool]) -> None:
    told: set[object] = set()

    def wait(other: str) -> bool:
        if other not in told:
            told.add(other)
            say(f"{other} serves this machine; waiting for it")
        return not give_up()

    def idle() -> None:
        for task in _tasks(driver):
            if task.state == "running" and (task.id, task.driver) not in told:
                told.add((task.id, task.driver))
                left = max(0, (task.lease_until or 0) - time.time())
                say(f"{task.kind} of job {task.job_id} is held by {task.driver}; if it is dead, ours in {left:.0f} s")

    with alone(wait) as mine:
        if mine:
            driver.serve(done, idle)


def _tasks(driver: Driver) -> list[queries.Task]:
    return queries.tasks(driver.store)


def _pending(tasks: list[queries.Task]) -> bool:
    """Whether there is anything left to do; a task behind a failed one waits for `retry`, not for a driver."""
    jobs: dict[str, list[queries.Task]] = {}
    for task in tasks:
        jobs.setdefault(task.job_id, []).append(task)
    return any(queue.job_state(mine) in ("queued", "running") for mine in jobs.values())
