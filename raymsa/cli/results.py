"""results: tables of groups, of a job or the whole store, in several formats. Heavy imports are where they are used."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from raymsa.cli.base import cluster_option, json_option, main, open_store, print_json, say, store_option
from raymsa.errors import Cancelled, NotFinished, NotFound, RaymsaError, UsageError
from raymsa.words import visible

if TYPE_CHECKING:
    from raymsa.report.groups import GroupTable
    from raymsa.report.literature import Literature
    from raymsa.store import Store

FORMATS = ("text", "markdown", "latex", "csv", "json")


@dataclass(frozen=True)
class _Asked:
    """What is to be shown, and how. `jobs` are ids, `groups` keys; both None for the whole store."""

    jobs: list[str] | None
    groups: list[str] | None
    metrics: tuple[str, ...]
    how: str
    literature: Literature | None

    @property
    def job(self) -> str | None:
        """The job, where a single one was asked for: it has more to show."""
        return self.jobs[0] if self.jobs and len(self.jobs) == 1 and not self.groups else None

    @property
    def whole_job(self) -> bool:
        """Whether all that there is of a job is shown: its unfinished runs, too."""
        return self.job is not None and self.how in ("text", "json")


@main.command("results", short_help="Tables: mean ± sd over seeds, cost.")
@click.argument("words", nargs=-1, metavar="[JOB|GROUP]...")
@click.option("--metric", "metrics", multiple=True, metavar="NAME", help="Show this column only; may be repeated.")
@click.option("--format", "how", type=click.Choice(FORMATS), help="How the tables are written [default: text].")
@click.option(
    "--literature", metavar="NAME", help="Published results beside ours: a name of configs/literature, or a YAML file."
)
@store_option
@cluster_option()
@json_option
def results_command(
    words: tuple[str, ...],
    metrics: tuple[str, ...],
    how: str | None,
    literature: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """Groups of runs that differ in the seed alone, best on valid first: mean ± sd on test, cost, constant predictor.

    Of a job also confusions, the best run by valid, and what is not finished. Without a word, all groups of the store;
    a GROUP is named by the beginning of its key.
    """
    if as_json and how not in (None, "json"):
        raise UsageError(f"--json and --format {how} exclude each other")
    if metrics:
        from raymsa.report.group_sheets import check_metrics

        check_metrics(metrics)
    published = _published(literature)
    try:
        store = open_store(url)
    except NotFound:
        if published is None or words:
            raise
        asked = _Asked(None, None, metrics, "json" if as_json else how or "text", published)
        _check_metrics([], asked)
        _print([], {}, asked)
        return
    jobs, groups = _named(store, words)
    asked = _Asked(jobs, groups, metrics, "json" if as_json else how or "text", published)
    if asked.job:
        _check_begun(store, asked.job)
    _show(store, asked)
    for job in jobs or ():
        if not asked.whole_job:
            _say_unfinished(store, job)
    if asked.job:
        _end_as(store, asked.job)


def show_results(store: Store, job_id: str, as_json: bool) -> None:
    """Print a job's results."""
    _show(store, _Asked([job_id], [], (), "json" if as_json else "text", None))


def _published(name: str | None) -> Literature | None:
    if name is None:
        return None
    from raymsa.report.literature import load

    return load(name)


def _named(store: Store, words: Sequence[str]) -> tuple[list[str] | None, list[str] | None]:
    """Job ids and group keys; a word that could be either is a job."""
    from raymsa.store import queries

    jobs: list[str] = []
    groups: list[str] = []
    for word in words:
        try:
            jobs.append(queries.job(store, word).id)
        except NotFound:
            try:
                groups.append(queries.group_key(store, word))
            except NotFound:
                raise NotFound(f"no job or group {word!r} in the store") from None
    return (jobs, groups) if words else (None, None)


def _check_begun(store: Store, job_id: str) -> None:
    from raymsa.store import queries
    from raymsa.store.states import LIVE

    state = queries.state(store, job_id)
    if state in LIVE and not any(run.state == "done" for run in queries.runs(store, job_id)):
        raise NotFinished(f"job {job_id} is {state} and has no finished run yet; raymsa status {job_id}")


def _end_as(store: Store, job_id: str) -> None:
    """The command ends as the job did."""
    from raymsa.store import queries

    state = queries.state(store, job_id)
    if state == "failed":
        raise RaymsaError(f"job {job_id} failed; raymsa status {job_id} says why")
    if state == "cancelled":
        raise Cancelled(f"job {job_id} was cancelled")
    if state != "done":
        raise NotFinished(f"job {job_id} is still {state}; the table holds what is finished")


def _say_unfinished(store: Store, job_id: str) -> None:
    from raymsa.store import queries

    left = sum(run.state not in ("done", "pruned") for run in queries.runs(store, job_id))
    if left:
        say(f"job {job_id}: runs not finished: {left}; raymsa results {job_id} lists them")


def _show(store: Store, asked: _Asked) -> None:
    from raymsa.report.groups import group_tables
    from raymsa.store import queries

    tables = group_tables(store, asked.jobs, asked.groups)
    if not tables and not asked.job and asked.literature is None:
        raise NotFinished("no run of these is finished yet; raymsa list shows what runs")
    _check_metrics(tables, asked)
    runs = [seed.run_id for table in tables for group in table.groups for seed in group.seeds]
    clips = queries.clip_counts(store, runs, "test") if asked.literature else {}
    if asked.job and asked.whole_job:
        _print_job(store, asked.job, tables, clips, asked)
    else:
        _print(tables, clips, asked)


def _check_metrics(tables: list[GroupTable], asked: _Asked) -> None:
    """A metric of other datasets alone would be an empty answer."""
    from raymsa.report.group_sheets import check_metrics

    published = [asked.literature.metrics] if asked.literature else []
    if shown := dict.fromkeys([*(table.profile for table in tables), *published]):
        check_metrics(asked.metrics, shown)


def _print(tables: list[GroupTable], clips: dict[str, int], asked: _Asked) -> None:
    from raymsa.report.group_sheets import one_sheet, sheets

    if asked.how == "json":
        print_json(_plain(tables, asked))
    elif asked.how == "text":
        _print_text(tables, clips, asked)
    else:
        from raymsa.report.formats import write

        wanted = (tables, asked.metrics, asked.literature, clips)
        made = [one_sheet(*wanted)] if asked.how == "csv" else sheets(*wanted)
        click.echo(write(made, asked.how), nl=False)


def _print_job(store: Store, job_id: str, tables: list[GroupTable], clips: dict[str, int], asked: _Asked) -> None:
    """A job has more than groups: variants that have not begun, confusions, the best run, a search, errors."""
    from raymsa.cli.show import console
    from raymsa.report.results import as_json, results
    from raymsa.report.tables import render_rest

    found = results(store, job_id)
    if asked.how == "json":
        print_json({**as_json(found), **_plain(tables, asked)})
        return
    click.echo(visible(f"{found.name} ({found.job_id})"))
    _print_text(tables, clips, asked)
    render_rest(found, console(markup=True))


def _print_text(tables: list[GroupTable], clips: dict[str, int], asked: _Asked) -> None:
    from raymsa.cli.show import console
    from raymsa.report.group_sheets import sheets
    from raymsa.report.screen import render_sheet

    for sheet in sheets(tables, asked.metrics, asked.literature, clips):
        render_sheet(sheet, console())


def _plain(tables: list[GroupTable], asked: _Asked) -> dict[str, Any]:
    from raymsa.report.groups import as_json

    literature = asked.literature
    beside = {} if literature is None else {"literature": literature.model_dump(mode="json")}
    return {"tables": as_json(tables), **beside}
