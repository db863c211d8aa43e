"""Tables of numbers whose rows can be put in order: each cell is what is shown, and the number it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

from raymsa.evaluation.criteria import criterion_of
from raymsa.report import formats, rows
from raymsa.report.cells import metric_column, number
from raymsa.report.finals import CONSTANT, HEALTH, in_order
from raymsa.report.formats import Noted, Sheet, on_the_left
from raymsa.report.spread import Spread
from raymsa.report.status import Status, left_of
from raymsa.store.overview import JobLine
from raymsa.store.queries import RunRow
from raymsa.target import task_of
from raymsa.words import duration


@dataclass(frozen=True)
class Cell:
    """`value` None is sorted as words; NaN, and a number that is missing, come last in any order."""

    text: str
    value: float | None = None


@dataclass(frozen=True)
class Column:
    words: str
    numbers: bool = False


@dataclass(frozen=True)
class Sortable:
    """A table: row id -> its cells, under the columns."""

    columns: tuple[Column, ...]
    rows: Mapping[str, tuple[Cell, ...]]


MISSING = float("nan")
SHORT = 8  # characters of a digest


def jobs(lines: list[JobLine], now: float) -> Sortable:
    """A list of jobs."""
    columns = (Column("job"), Column("name"), Column("state"), Column("runs done", True), Column("submitted", True))
    return Sortable((*columns, Column("by")), {line.id: _job(line, now) for line in lines})


def _job(line: JobLine, now: float) -> tuple[Cell, ...]:
    done = line.runs.get("done", 0)
    ago = Cell(f"{duration(now - line.created_at)} ago", line.created_at)
    runs = Cell(f"{done}/{line.planned}", float(done))
    return Cell(line.id), Cell(line.name), Cell(line.state), runs, ago, Cell(line.submitted_by)


def runs(found: Status, collapsed: Collection[str] = ()) -> Sortable:
    """The runs of a job; the words are those of `raymsa status`. `collapsed` are ids."""
    head = rows.runs(found)[0]
    numbers = ("since", "epoch", "step", "left", head[7], "attempts", "device time")
    columns = (head[0], "variant", "seed", *head[1:])
    shown = tuple(Column(words, words in numbers or words == "seed") for words in columns)
    return Sortable(shown, {run.id: _run(run, found.now, run.id in collapsed) for run in found.runs})


def _run(run: RunRow, now: float, collapsed: bool) -> tuple[Cell, ...]:
    run_id, state, where, *rest = rows.run_row(run, now)
    valid = None if run.valid_error is None else criterion_of(run.spec).turned(run.valid_error)
    numbers = (run.started_at, run.epoch, run.step, left_of(run, now), valid, run.attempts, run.device_s)
    cells = (Cell(text, _or_missing(value)) for text, value in zip(rest, numbers, strict=True))
    return Cell(run_id), _variant(run, collapsed), Cell(str(run.seed), run.seed), Cell(state), Cell(where), *cells


def sheet(found: Sheet) -> Sortable:
    """Any table, in its order; footnotes stand as words in a last column."""
    left = on_the_left(found)
    noted = any(isinstance(cell, Noted) for row in found.rows for cell in row)
    columns = [Column(c.heading, not words) for c, words in zip(found.columns, left, strict=True)]
    kinds = list(zip(found.columns, left, strict=True))
    made = {}
    for at, row in enumerate(found.rows):
        cells = [_of_sheet(cell, *kind) for cell, kind in zip(row, kinds, strict=True)]
        notes = "; ".join(note for cell in row if isinstance(cell, Noted) for note in cell.notes)
        made[str(at)] = (*cells, *([Cell(notes)] if noted else []))
    return Sortable((*columns, *([Column("notes")] if noted else [])), made)


def _of_sheet(cell: formats.Cell, column: formats.Column, words: bool) -> Cell:
    plain = cell.cell if isinstance(cell, Noted) else cell
    text = formats.shown(plain, column)
    if words or isinstance(plain, str):
        return Cell("" if plain is None else text)
    return Cell(text, plain.mean if isinstance(plain, Spread) else MISSING if plain is None else float(plain))


def finals(found: Mapping[str, Mapping[str, float]], profile: str) -> Sortable:
    """The final metrics of one run: a row for each metric, a column for each split, then the constant predictor's."""
    splits = [split for split in ("train", "valid", "test") if split in found]
    floors = [split for split in splits if any(name.startswith(CONSTANT) for name in found[split])]
    columns = (Column("metric"), *(Column(words, True) for words in (*splits, *(f"constant on {s}" for s in floors))))
    kept = [name for name in (*in_order(profile), *HEALTH) if any(name in found[split] for split in splits)]
    places = [*((split, "") for split in splits), *((split, CONSTANT) for split in floors)]
    cells = {n: tuple(_or_dash(found[s].get(p + n), lambda v, n=n: number(n, v)) for s, p in places) for n in kept}  # type: ignore[misc]
    return Sortable(columns, {name: (Cell(_words(name)), *cells[name]) for name in kept})


def compared(runs: list[RunRow], test: Mapping[str, Mapping[str, float]], collapsed: Collection[str] = ()) -> Sortable:
    """Runs beside each other, with their metrics on test; on which clips, where these differ. `collapsed` are ids."""
    profiles = [task_of(run.spec).profile for run in runs]
    names = list(dict.fromkeys(name for profile in profiles for name in in_order(profile)))
    data = len({run.data_digest for run in runs}) > 1
    about = ("run", "variant", "seed", "state", *(["data"] if data else []))
    valid = " or ".join(dict.fromkeys(rows.valid_heading(run.spec) for run in runs))
    numbers = (valid, *map(_words, names))
    columns = (*(Column(words, words == "seed") for words in about), *(Column(words, True) for words in numbers))
    return Sortable(columns, {run.id: _compared(run, test[run.id], names, data, run.id in collapsed) for run in runs})


def _compared(
    run: RunRow, test: Mapping[str, float], names: list[str], data: bool, collapsed: bool
) -> tuple[Cell, ...]:
    valid = None if run.valid_error is None else criterion_of(run.spec).turned(run.valid_error)
    digest = [Cell((run.data_digest or "unknown")[:SHORT])] if data else []
    about = (Cell(run.id), _variant(run, collapsed), Cell(str(run.seed), run.seed), Cell(run.state), *digest)
    cells = (_or_dash(test.get(n), lambda v, n=n: number(n, v)) for n in names)  # type: ignore[misc]
    return (*about, Cell(rows.valid(run) or "-", _or_missing(valid)), *cells)


def _variant(run: RunRow, collapsed: bool) -> Cell:
    return Cell(f"{run.variant} (collapsed)" if collapsed else run.variant)


def _words(name: str) -> str:
    return metric_column(name, name.replace("_", " ")).heading


def _or_dash(value: float | None, words: Callable[[float], str]) -> Cell:
    return Cell("-", MISSING) if value is None else Cell(words(value), float(value))


def _or_missing(value: float | None) -> float:
    return MISSING if value is None else float(value)
