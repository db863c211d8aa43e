"""Tables of numbers whose rows can be put in order: each cell is what is shown, and the number it is sorted by."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from raymsa.evaluation.criteria import criterion_of
from raymsa.report import rows
from raymsa.report.cells import heading, number, spread_text
from raymsa.report.finals import HEALTH, in_order
from raymsa.report.results import Results, Row
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


def jobs(lines: list[JobLine], now: float) -> Sortable:
    """A list of jobs."""
    columns = (Column("job"), Column("name"), Column("state"), Column("runs done", True), Column("submitted", True))
    return Sortable((*columns, Column("by")), {line.id: _job(line, now) for line in lines})


def _job(line: JobLine, now: float) -> tuple[Cell, ...]:
    done = line.runs.get("done", 0)
    ago = Cell(f"{duration(now - line.created_at)} ago", line.created_at)
    runs = Cell(f"{done}/{line.planned}", float(done))
    return Cell(line.id), Cell(line.name), Cell(line.state), runs, ago, Cell(line.submitted_by)


def runs(found: Status) -> Sortable:
    """The runs of a job; the words are those of `raymsa status`."""
    head = rows.runs(found)[0]
    numbers = ("since", "epoch", "step", "left", head[7], "attempts", "device time")
    columns = (head[0], "variant", "seed", *head[1:])
    shown = tuple(Column(words, words in numbers or words == "seed") for words in columns)
    return Sortable(shown, {run.id: _run(run, found.now) for run in found.runs})


def _run(run: RunRow, now: float) -> tuple[Cell, ...]:
    run_id, state, where, *rest = rows.run_row(run, now)
    valid = None if run.valid_error is None else criterion_of(run.spec).turned(run.valid_error)
    numbers = (run.started_at, run.epoch, run.step, left_of(run, now), valid, run.attempts, run.device_s)
    cells = (Cell(text, _or_missing(value)) for text, value in zip(rest, numbers, strict=True))
    return Cell(run_id), Cell(run.variant), Cell(str(run.seed), run.seed), Cell(state), Cell(where), *cells


def results(found: Results) -> Sortable:
    """A job's results: one row for each variant, and the constant floor."""
    health = [name for name in HEALTH if any(name in row.health for row in found.rows)]
    makers: list[tuple[str, Callable[[Row], Cell]]] = [
        ("runs", lambda row: Cell(f"{row.finished}/{row.planned}", row.finished)),
        (f"valid {_words(found.decides)}", lambda row: _spread(found.decides, row.valid)),
        *((_words(name), _of(name)) for name in found.metrics),
        *((_words(name), lambda row, name=name: _spread(name, row.health.get(name))) for name in health),
        ("device min/run", lambda row: _or_dash(row.device_s, lambda s: f"{s / 60:.1f}")),
        ("peak GiB", lambda row: _or_dash(row.peak_memory_bytes, lambda b: f"{b / 2**30:.2f}")),
    ]
    columns = (Column("variant"), *(Column(words, True) for words, _ in makers))
    made = {row.variant: (Cell(row.variant), *(make(row) for _, make in makers)) for row in found.rows}
    floor = next((row.constant for row in found.rows if row.constant), None)
    if floor:
        names = [None, None, *found.metrics, *[None] * (len(health) + 2)]
        made["(constant)"] = (Cell("constant"), *(_floor(floor, name) for name in names))
    return Sortable(columns, made)


def finals(found: Mapping[str, Mapping[str, float]], profile: str) -> Sortable:
    """The final metrics of one run: a row for each metric, a column for each split."""
    splits = [split for split in ("train", "valid", "test") if split in found]
    columns = (Column("metric"), *(Column(split, True) for split in splits))
    kept = [name for name in in_order(profile) if any(name in found[split] for split in splits)]
    cells = {n: tuple(_or_dash(found[s].get(n), lambda v, n=n: number(n, v)) for s in splits) for n in kept}  # type: ignore[misc]
    return Sortable(columns, {name: (Cell(_words(name)), *cells[name]) for name in kept})


def compared(runs: list[RunRow], test: Mapping[str, Mapping[str, float]]) -> Sortable:
    """Runs beside each other, with their metrics on test."""
    profiles = [task_of(run.spec).profile for run in runs]
    names = list(dict.fromkeys(name for profile in profiles for name in in_order(profile)))
    head = ("variant", "seed", "state", "valid", *map(_words, names))
    columns = (Column("run"), *(Column(words, words not in ("variant", "state")) for words in head))
    shown = {}
    for run in runs:
        valid = None if run.valid_error is None else criterion_of(run.spec).turned(run.valid_error)
        about = (Cell(run.id), Cell(run.variant), Cell(str(run.seed), run.seed), Cell(run.state))
        cells = (_or_dash(test[run.id].get(n), lambda v, n=n: number(n, v)) for n in names)  # type: ignore[misc]
        shown[run.id] = (*about, Cell(rows.valid(run) or "-", _or_missing(valid)), *cells)
    return Sortable(columns, shown)


def _of(name: str) -> Callable[[Row], Cell]:
    return lambda row: _spread(name, row.test.get(name))


def _words(name: str) -> str:
    return heading(name).replace("\n", " ")


def _spread(name: str, spread: Spread | None) -> Cell:
    return Cell(spread_text(name, spread), MISSING if spread is None else spread.mean)


def _floor(floor: Mapping[str, float], name: str | None) -> Cell:
    return Cell("", MISSING) if name is None else Cell(number(name, floor.get(name)), floor.get(name, MISSING))


def _or_dash(value: float | None, words: Callable[[float], str]) -> Cell:
    return Cell("-", MISSING) if value is None else Cell(words(value), float(value))


def _or_missing(value: float | None) -> float:
    return MISSING if value is None else float(value)
