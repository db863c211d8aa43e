"""Commands that look after the store: export, import, gc."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from raymsa.cli.base import json_option, main, open_store, print_json, say, store_option
from raymsa.store import queries

if TYPE_CHECKING:
    from raymsa.garbage import Waste


@main.group("store", short_help="Look after the store: export, import, gc.")
def store_command() -> None:
    """Look after the store: write it to a file, take such a file in, free the disk of checkpoints nobody needs."""


@store_command.command("export", short_help="Write it, or some jobs, to a file or folder.")
@click.argument("dest", type=click.Path(path_type=Path))
@click.argument("jobs", nargs=-1, metavar="[JOB...]")
@store_option
@json_option
def export_command(dest: Path, jobs: tuple[str, ...], url: str | None, as_json: bool) -> None:
    """Write every job, or each JOB, to DEST: JSON lines if it ends in .jsonl, else a folder of Parquet files.

    It has what the store has: jobs, tasks, runs, metrics, predictions, events; not the files that runs left.
    """
    from raymsa.store.exports import export

    store = open_store(url)
    chosen = [queries.job(store, job).id for job in jobs]
    rows = export(store, dest, chosen if jobs else None)
    if as_json:
        print_json({"path": str(dest), "rows": rows})
    else:
        click.echo(str(dest))
    say(f"{rows['jobs']} jobs, {rows['runs']} runs, {sum(rows.values()):,} rows in all")


@store_command.command("import", short_help="Take in what export wrote.")
@click.argument("source", type=click.Path(path_type=Path, exists=True))
@store_option
@json_option
def import_command(source: Path, url: str | None, as_json: bool) -> None:
    """Take in what `raymsa store export` wrote, all of it or nothing; a job that is there already stays as it is.

    A task that was not over is paused: `raymsa resume` lets it go on.
    """
    from raymsa.provenance import who
    from raymsa.store.imports import import_

    made = import_(open_store(url, create=True), source, who())
    if as_json:
        print_json(made._asdict())
    say(f"{made.jobs} jobs taken in, {made.already_there} were there already; {sum(made.rows.values()):,} rows")
    if made.paused:
        say(f"{made.paused} of their tasks are paused; `raymsa resume JOB` lets them go on")


@store_command.command("gc", short_help="Remove checkpoints that nobody needs.")
@click.option("--dry-run", is_flag=True, help="Say what would go; touch nothing.")
@click.option(
    "--keep", type=click.IntRange(min=0), default=1, show_default=True, help="Best trials of a search to be kept."
)
@store_option
@json_option
def gc_command(dry_run: bool, keep: int, url: str | None, as_json: bool) -> None:
    """Remove checkpoints on this machine: of failed, cancelled and pruned runs of jobs that are over, of a search's
    trials but the best, and what done runs would have resumed from. Logs and predictions stay.

    A failed run that is retried afterwards begins at its first step again.
    """
    from raymsa import garbage

    store = open_store(url)
    found = garbage.find(store, keep)
    gone = found.waste if dry_run else garbage.remove(store, found.waste)
    if as_json:
        rows = [{**one._asdict(), "path": str(one.path)} for one in gone]
        print_json({"dry_run": dry_run, "bytes": sum(one.bytes for one in gone), "checkpoints": rows})
    else:
        for one in gone:
            click.echo(f"{_mb(one):>12}  {one.path}  ({one.why})")
    for run_id in found.newer:
        say(f"run {run_id}: its checkpoints are newer than what this store knows of it; they stay")
    say(f"{len(gone)} checkpoints {'would go' if dry_run else 'are gone'}, {_mb(*gone)}")


def _mb(*waste: Waste) -> str:
    return f"{sum(one.bytes for one in waste) / 1e6:,.1f} MB"
