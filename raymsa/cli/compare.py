"""The command that compares groups of runs."""

from __future__ import annotations

import click

from raymsa.cli.base import cluster_option, json_option, main, open_store, print_json, shards_option, store_option
from raymsa.cli.results import FORMATS
from raymsa.errors import UsageError


@main.command("compare", short_help="Is one group of runs better than another?")
@click.argument("groups", nargs=-1, required=True, metavar="A B [C ...]")
@click.option(
    "--metric", "metrics", multiple=True, help="Metric to compare, may be repeated [default: the one that decides]."
)
@click.option("--split", type=click.Choice(("train", "valid", "test")), default="test", show_default=True)
@click.option(
    "--confidence",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    default=0.95,
    show_default=True,
    help="Level of the interval.",
)
@click.option(
    "--resamples",
    type=click.IntRange(100, 10_000_000),
    default=10_000,
    show_default=True,
    help="Resamples of the interval, and swaps of the test.",
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the resamples and swaps.")
@click.option("--format", "how", type=click.Choice(FORMATS), help="How it is written [default: text].")
@shards_option
@store_option
@cluster_option()
@json_option
def compare_command(
    groups: tuple[str, ...],
    metrics: tuple[str, ...],
    split: str,
    confidence: float,
    resamples: int,
    seed: int,
    how: str | None,
    shards: str | None,
    url: str | None,
    as_json: bool,
) -> None:
    """The difference of a metric between groups of runs on the same clips: an interval, and a permutation test.

    A group is JOB/VARIANT, a job of one variant, a run, or the key of a group. Videos and seeds are resampled for the
    interval; for p, A and B are swapped video by video, and Holm's correction is for all pairs and metrics together.
    """
    from raymsa.cli.show import console
    from raymsa.report import compare as report
    from raymsa.report.compare_sheets import one_sheet, sheets
    from raymsa.report.formats import write
    from raymsa.report.screen import render_sheet

    if as_json and how not in (None, "json"):
        raise UsageError(f"--json and --format {how} exclude each other")
    if len(groups) < 2:
        raise UsageError(f"compare: given {groups[0]} alone; name two groups or more, such as JOB/disc JOB/gen")
    drawing = report.Drawing(confidence, resamples, seed)
    found = report.comparison(open_store(url), groups, metrics, split, drawing, shards)
    if as_json or how == "json":
        print_json(report.as_json(found))
    elif how in (None, "text"):
        for sheet in sheets(found):
            render_sheet(sheet, console())
    else:
        click.echo(write([one_sheet(found)] if how == "csv" else sheets(found), how), nl=False)
