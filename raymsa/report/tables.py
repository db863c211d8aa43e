"""What a job has beside its groups, on the screen: confusions, how it was trained, the runs chosen on valid."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table

from raymsa.report.cells import heading, number, words
from raymsa.report.cells import table as new_table
from raymsa.report.results import Best, Results, Row
from raymsa.report.search_tables import render_trials


def render_rest(found: Results, console: Console) -> None:
    """Print what the table of groups does not have: confusions, training, the run chosen on valid, a search, errors."""
    for table in [*_confusions(found), _training(found), *_chosen(found, console.width)]:
        console.print(table)
    if found.search is not None:
        render_trials(found.search, console)
    for run in found.unfinished:
        why = f": {run.error}" if run.error else ""
        console.print(words(f"not finished: {run.run_id} ({run.variant}, seed {run.seed}) is {run.state}{why}"))


def _label(row: Row) -> str:
    """The variant; its answers may be of another kind than those of the row above."""
    return words(row.variant) + ("\n(constrained answers)" if row.constrained else "")


def _confusions(found: Results) -> Iterator[Table]:
    """True classes in rows, answers in columns; over all seeds of a variant."""
    for row in found.rows:
        if row.confusion is None:
            continue
        runs = "1 run" if row.finished == 1 else f"{row.finished} runs together"
        title = f"{row.variant}: test clips by true class (rows) and answer (columns), {runs}"
        said_none = any(line[-1] for line in row.confusion)
        table = new_table(title, ["", *map(words, found.classes), *(["no class"] if said_none else [])])
        for name, line in zip(found.classes, row.confusion, strict=True):
            table.add_row(words(name), *map(str, line if said_none else line[:-1]))
        yield table


def _side_by_side(found: Results, width: int, cell: int) -> list[tuple[str, ...]]:
    """The metrics in as many tables as the console's width asks for: a wrapped number cannot be read."""
    labels = max((max(map(len, _label(row).split("\n"))) for row in found.rows), default=0)
    count = max(2, (width - max(labels, 14) - 10) // (cell + 2))
    return [found.metrics[at : at + count] for at in range(0, len(found.metrics), count)]


def _training(found: Results) -> Table:
    """What the table of groups does not have: also variants of which nothing has begun."""
    table = new_table("training", ["variant", "runs", "data\nwait %", "trainable\nparameters"])
    for row in found.rows:
        table.add_row(
            _label(row),
            f"{row.finished}/{row.planned}",
            "-" if row.data_wait is None else f"{100 * row.data_wait:.0f}",
            "-" if row.trainable_parameters is None else f"{row.trainable_parameters:,}",
        )
    return table


def _chosen(found: Results, width: int) -> Iterator[Table]:
    if not any(row.best for row in found.rows):
        return
    title = "best run of each variant, chosen on valid; its numbers on test"
    for names in _side_by_side(found, width - 16, cell=7):  # the run's seed and its metric on valid stand in front
        table = new_table(title, ["run", "seed", "valid\n" + heading(found.decides), *map(heading, names)])
        for row, best in ((row, row.best) for row in found.rows if row.best):
            head = (_named(row, best), str(best.seed), number(found.decides, best.valid))
            table.add_row(*map(words, head), *(number(name, best.test.get(name)) for name in names))
        yield table
        title = ""


def _named(row: Row, best: Best) -> str:
    """The best seed of a variant may be no better than a constant all the same."""
    return best.run_id + ("\n(collapsed)" if best.seed in {one.seed for one in row.collapse.seeds} else "")
