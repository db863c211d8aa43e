"""The command that makes a job's report."""

from __future__ import annotations

from pathlib import Path

import click

from raymsa.cli.base import json_option, main, open_store, print_json, say, shards_option, store_option


@main.command("report", short_help="A job as a page, with its tables.")
@click.argument("job")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder to write: a new one, or an older report, which is replaced.",
)
@shards_option
@store_option
@json_option
def report_command(job: str, out: Path, shards: str | None, url: str | None, as_json: bool) -> None:
    """A page with a job's tables, plots and worst clips that needs no network, and the tables as Markdown and LaTeX.

    What is not finished is named in it; a job of which nothing is finished has a report that says so.
    """
    from raymsa.report import page

    store = open_store(url)
    page.check(out)  # before the work
    report = page.gather(store, job, shards)
    files = page.write(report, out)
    shown = out / page.PAGE
    if as_json:
        print_json({"job": report.about.job.id, "page": str(shown), "bytes": shown.stat().st_size, "files": files})
        return
    say(f"{len(files)} files, {shown.stat().st_size / 1e6:.1f} MB the page; {report.words.source}")
    click.echo(str(shown))
