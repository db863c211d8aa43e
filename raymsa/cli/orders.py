"""Commands for jobs that are queued or running: cancel, pause, retry, wait, rm."""

from __future__ import annotations

import shutil
import time

import click

from raymsa import orders
from raymsa.cli.base import cluster_option, json_option, main, open_store, print_json, say, store_option
from raymsa.errors import Cancelled, NotFinished, RaymsaError, UsageError
from raymsa.home import home, job_log, run_dir
from raymsa.provenance import who
from raymsa.store import Store, queries
from raymsa.store.states import LIVE

LOOK_S = 0.5


@main.command("cancel", short_help="Take a job out, running or not.")
@click.argument("job")
@store_option
@cluster_option()
@json_option
def cancel_command(job: str, url: str | None, as_json: bool) -> None:
    """Cancel a job; a running task stops within seconds, its checkpoints stay."""
    store = open_store(url)
    found = queries.job(store, job)
    _told(store, found.id, orders.cancel(store, found.id, who()), "cancelled", as_json)


@main.command("pause", short_help="Stop a job with a checkpoint, until `resume`.")
@click.argument("job")
@store_option
@cluster_option()
@json_option
def pause_command(job: str, url: str | None, as_json: bool) -> None:
    """Pause a job: running trainings write a checkpoint and free their devices; `raymsa resume` goes on."""
    store = open_store(url)
    found = queries.job(store, job)
    _told(store, found.id, orders.pause(store, found.id, who()), "paused", as_json)


@main.command("retry", short_help="Queue what failed again.")
@click.argument("job", required=False)
@click.option("--failed", is_flag=True, help="Failed tasks only, not cancelled ones; without JOB, of every failed job.")
@store_option
@cluster_option()
@json_option
def retry_command(job: str | None, failed: bool, url: str | None, as_json: bool) -> None:
    """Queue a job's failed and cancelled tasks again; finished runs are kept, others go on from their checkpoints."""
    if job is None and not failed:
        raise UsageError("name a job, or say --failed for every failed job")
    store = open_store(url)
    chosen = [queries.job(store, job).id] if job else _failed(store)
    counts = {job_id: orders.retry(store, job_id, who(), failed) for job_id in chosen}
    if as_json:
        print_json([{"job": job_id, "tasks": count} for job_id, count in counts.items()])
    for job_id, count in counts.items():
        say(f"job {job_id}: {count} tasks queued again; `raymsa work` does them")
    if not counts:
        say("no job has failed")


@main.command("wait", short_help="Wait until a job is over.")
@click.argument("job")
@click.option("--timeout", "timeout_s", type=float, metavar="SECONDS", help="Give up then, with exit code 101.")
@store_option
@cluster_option()
def wait_command(job: str, timeout_s: float | None, url: str | None) -> None:
    """Wait until a job is over; leaves with its exit code (0 done, 1 failed, 103 cancelled, 101 not finished)."""
    from raymsa.report.status import stuck

    store = open_store(url)
    found, until = queries.job(store, job), time.monotonic() + (float("inf") if timeout_s is None else timeout_s)
    while (state := queries.state(store, found.id)) in LIVE:
        if why := stuck(store, found.id):
            raise NotFinished(f"job {found.id} waits for {why}")
        if time.monotonic() > until:
            raise NotFinished(f"job {found.id} is still {state}")
        time.sleep(LOOK_S)
    if state == "failed":
        raise RaymsaError(f"job {found.id} failed; raymsa status {found.id} says why")
    if state == "cancelled":
        raise Cancelled(f"job {found.id} was cancelled")
    if state == "paused":
        raise NotFinished(f"job {found.id} is paused; raymsa resume {found.id}")
    say(f"job {found.id} is done")


@main.command("rm", short_help="Remove a job and its files.")
@click.argument("job")
@click.option("--keep-files", is_flag=True, help="Leave its run folders and logs on the disk.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@store_option
@cluster_option()
@json_option
def rm_command(job: str, keep_files: bool, yes: bool, url: str | None, as_json: bool) -> None:
    """Remove a job that is not running: its runs, numbers, predictions, checkpoints and logs."""
    store = open_store(url)
    found = queries.job(store, job)
    if not yes:
        click.confirm(f"remove job {found.id} ({found.name}) with all its numbers?", abort=True, err=True)
    gone = orders.remove(store, found.id, who())
    if not keep_files:
        for folder in (*map(run_dir, gone), home() / "ray" / found.id):
            shutil.rmtree(folder, ignore_errors=True)
        job_log(found.id).unlink(missing_ok=True)
    if as_json:
        print_json({"job": found.id, "runs": gone})
    say(f"job {found.id} and its {len(gone)} runs are removed")


def _told(store: Store, job_id: str, what: orders.Ended, word: str, as_json: bool) -> None:
    if as_json:
        print_json({"job": job_id, word: what.ended, "asked": what.asked})
    if not any(what):
        state = queries.state(store, job_id)
        raise RaymsaError(f"job {job_id} has nothing that could be {word}; it is {state}")
    say(f"job {job_id}: {what.ended} tasks {word}, {what.asked} running tasks asked to stop")


def _failed(store: Store) -> list[str]:
    return [job_id for job_id, states in queries.job_states(store).items() if "failed" in states]
