"""The command that looks at a job's search."""

from __future__ import annotations

from pathlib import Path

import click

from raymsa.cli.base import cluster_option, json_option, main, open_store, print_json, say, store_option


@main.command("search", short_help="What a job's search found.")
@click.argument("job")
@click.option("--plot", type=click.Path(file_okay=False, path_type=Path), help="Write Optuna's plots into this folder.")
@click.option(
    "--export", type=click.Path(dir_okay=False, path_type=Path), help="Write an Optuna storage (SQLite file)."
)
@store_option
@cluster_option()
@json_option
def search_command(job: str, plot: Path | None, export: Path | None, url: str | None, as_json: bool) -> None:
    """The best settings of a job's search, what was confirmed, what mattered, and what ended early."""
    from raymsa.cli.show import console
    from raymsa.report import search as report
    from raymsa.report.search_tables import render_search

    store = open_store(url)
    found = report.search(store, job)
    if plot is not None:
        for path in report.plots(store, found.job_id, plot):
            say(f"wrote {path}")
    if export is not None:
        name = report.export(store, found.job_id, export)
        say(f"wrote study {name}; optuna-dashboard sqlite:///{export} shows it")
    if as_json:
        print_json(report.as_json(found))
    else:
        render_search(found, console(markup=True))
