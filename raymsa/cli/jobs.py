"""Commands that make work and do it: submit, work, resume."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from raymsa import orders, queue
from raymsa.cli.base import (
    CLUSTER,
    check_cluster,
    cluster_option,
    complain,
    json_option,
    main,
    open_store,
    out,
    print_json,
    say,
    store_option,
)
from raymsa.errors import Cancelled, NotFinished, NotFound, Paused, RaymsaError, UsageError
from raymsa.provenance import SENT_BY, who
from raymsa.store import Store, queries
from raymsa.store.states import LIVE
from raymsa.supervise import Options, Supervisor

LEASE_S = click.option(
    "--lease-s",
    type=click.FloatRange(1.0),
    default=queue.LEASE_S,
    show_default=True,
    help="Seconds of silence after which a driver counts as dead.",
)
ADDRESS = click.option(
    "--address", default=None, help="Ray cluster to use, host:port [default: a session on this machine]."
)


NOTIFY = click.option(
    "--notify",
    metavar="TARGET",
    help="When a job ends: POST to this http(s) URL, or run this command with JSON on stdin.",
)
DETACH = click.option("--detach", is_flag=True, help="Only queue it; `raymsa work` does it.")


@main.command("submit", short_help="Queue a job, run it, show its table.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option(
    "--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field, e.g. train.lora_lr=1e-4."
)
@click.option("--dry-run", is_flag=True, help="Print the resolved job and what it would do; write nothing.")
@click.option("--priority", type=int, help="Higher goes first (queue.priority).")
@click.option("--after", multiple=True, metavar="JOB", help="A job that must be done first (queue.after).")
@click.option("--deadline", type=float, metavar="HOURS", help="Failed if not done by then (queue.deadline_h).")
@DETACH
@NOTIFY
@ADDRESS
@LEASE_S
@store_option
@CLUSTER
@json_option
def submit_command(
    file: Path,
    overrides: tuple[str, ...],
    dry_run: bool,
    priority: int | None,
    after: tuple[str, ...],
    deadline: float | None,
    detach: bool,
    notify: str | None,
    address: str | None,
    lease_s: float,
    url: str | None,
    cluster: str | None,
    as_json: bool,
) -> None:
    """Queue a job file, run it and show its results. Ctrl-C once detaches: the job keeps its place.

    With --cluster, the job is queued on the head, and its `raymsa work` runs it; paths in it are the head's.
    """
    from raymsa.jobfile import load_job

    _check_notify(notify, detach)
    wishes = {"priority": priority, "after": list(after) or None, "deadline_h": deadline}
    named = [f"queue.{name}={json.dumps(value)}" for name, value in wishes.items() if value is not None]
    job = load_job(file, [*overrides, *named])
    if cluster is not None:
        check_cluster({"url": url, "address": address, "notify": notify})
        _send(cluster, job, dry_run, as_json)
        return
    if dry_run:
        _dry_run(job, as_json)
        return
    store = _store_to_fill(url)
    from raymsa.submit import submit

    job_id = submit(store, job)
    say(f"job {job_id} ({job.name}) is queued")
    say(f"  raymsa status {job_id}    raymsa logs -f {job_id}    raymsa cancel {job_id}")
    if detach:
        say("  raymsa work               does what is queued")
        print_json({"job": job_id}) if as_json else click.echo(job_id)
        return
    _follow(store, Options(address, lease_s, job_id=job_id), notify, as_json)


@main.command("work", short_help="Serve the queue.")
@click.option("--until-empty", is_flag=True, help="End when nothing is queued or running.")
@click.option("--tasks", default=1, show_default=True, type=click.IntRange(1), help="Tasks at a time.")
@NOTIFY
@click.option(
    "--metrics", "port", type=click.IntRange(0, 65535), help="Serve Prometheus text on this port; 0: a free one."
)
@click.option("--metrics-host", default="127.0.0.1", show_default=True, help="Address that --metrics listens on.")
@ADDRESS
@LEASE_S
@store_option
def work_command(
    until_empty: bool,
    tasks: int,
    notify: str | None,
    port: int | None,
    metrics_host: str,
    address: str | None,
    lease_s: float,
    url: str | None,
) -> None:
    """Serve the queue until Ctrl-C. A driver that dies is started again, and goes on from the checkpoints."""
    _check_notify(notify)
    options = Options(address, lease_s, tasks, until_empty=until_empty)
    store = open_store(url, create=True)
    supervisor = Supervisor(store, options, say, notify)
    with _metrics(store, metrics_host, port):
        supervisor.serve()
    say("stopped" if supervisor.stopped else "the queue is empty")


@main.command("resume", short_help="Go on with a job that was paused or interrupted.")
@click.argument("job")
@DETACH
@NOTIFY
@ADDRESS
@LEASE_S
@store_option
@cluster_option("--detach")
@json_option
def resume_command(
    job: str,
    detach: bool,
    notify: str | None,
    address: str | None,
    lease_s: float,
    url: str | None,
    as_json: bool,
) -> None:
    """Go on with a job that was paused, or whose driver died, and show its table. Finished runs are kept."""
    _check_notify(notify, detach)
    store = open_store(url)
    found = queries.job(store, job)
    count = orders.resume(store, found.id, who())
    state = queries.state(store, found.id)
    if state not in LIVE:
        advice = f"; raymsa retry {found.id}" if state in ("failed", "cancelled") else ""
        raise UsageError(f"job {found.id} is {state}: there is nothing to resume{advice}")
    say(f"job {found.id}: {count} paused tasks are queued again")
    if detach:
        print_json({"job": found.id, "tasks": count}) if as_json else None
        return
    _follow(store, Options(address, lease_s, job_id=found.id), notify, as_json)


def _check_notify(notify: str | None, detach: bool = False) -> None:
    """Raises UsageError before anything is queued."""
    if notify is None:
        return
    from raymsa.notify import target

    if detach:
        raise UsageError("--notify: with --detach nobody is here when the job ends; give it to `raymsa work --notify`")
    target(notify)


@contextmanager
def _metrics(store: Store, host: str, port: int | None) -> Iterator[None]:
    if port is None:
        yield
        return
    from raymsa.gauges import served

    with served(store, host, port) as address:
        say(f"metrics at {address}")
        yield


def _store_to_fill(url: str | None) -> Store:
    """The store for a new job; a job that was sent to a head must find one there, or nobody would ever serve it."""
    if SENT_BY not in os.environ:
        return open_store(url, create=True)
    try:
        return open_store(url)
    except NotFound:
        named = "its RAYMSA_STORE" if "RAYMSA_STORE" in os.environ else "where RAYMSA_STORE is not set"
        raise RaymsaError(f"the head has no store yet ({named}): start `raymsa work` there first") from None


def _send(cluster: str, job: Any, dry_run: bool, as_json: bool) -> None:
    """Queue a job on a cluster's head, or ask what it would be there."""
    from raymsa import remote

    words = ("--dry-run", *(["--json"] if as_json else [])) if dry_run else ("--detach", "--json")
    code, printed, said = remote.submit(cluster, job, *words)
    if code or dry_run:
        out(printed)
        complain(said)
        sys.exit(code)
    job_id = json.loads(printed)["job"]
    say(f"job {job_id} ({job.name}) is queued at {cluster}; the `raymsa work` there does it")
    for command in ("status", "logs -f", "results", "cancel"):
        say(f"  raymsa {command} {job_id} --cluster {cluster}")
    print_json({"job": job_id}) if as_json else click.echo(job_id)


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


def _follow(store: Store, options: Options, notify: str | None, as_json: bool) -> None:
    """Serve the queue until the job is over, then show its results; leaves with the job's exit code."""
    from raymsa.report.status import stuck

    job_id = str(options.job_id)
    supervisor = Supervisor(store, options, say, notify)
    supervisor.serve()
    state = queries.state(store, job_id)
    if state == "paused":
        raise Paused(f"job {job_id} was paused; raymsa resume {job_id} goes on with it")
    if state in LIVE and not supervisor.stopped and (why := stuck(store, job_id)):
        raise NotFinished(f"job {job_id} keeps its place and waits for {why}")
    if state in LIVE:
        say(f"detached: job {job_id} keeps its place and goes on from its last checkpoint with `raymsa work`")
        say(f"  raymsa status {job_id}    raymsa resume {job_id}    raymsa cancel {job_id}")
        sys.exit(130)
    _show_end(store, job_id, state, as_json)


def _show_end(store: Store, job_id: str, state: str, as_json: bool) -> None:
    from raymsa.cli.results import show_results

    if queries.runs(store, job_id):
        show_results(store, job_id, as_json)
    if state == "cancelled":
        raise Cancelled(f"job {job_id} was cancelled")
    if state == "failed":
        errors = [task.error for task in queries.tasks(store, job_id) if task.error]
        raise RaymsaError(
            "\n".join([f"job {job_id} failed: {e}" for e in errors] + [f"the whole story: raymsa logs {job_id}"])
        )
