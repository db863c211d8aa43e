"""Tables of groups as sheets: which columns there are, what the rows are called and what their footnotes say."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from raymsa.errors import UsageError
from raymsa.evaluation.metrics import CRITERIA, LOW_IS_GOOD, PROFILES
from raymsa.report.cells import GIB, HOUR_S, metric_column
from raymsa.report.finals import HEALTH, in_order
from raymsa.report.formats import Cell, Column, Noted, Plain, Sheet
from raymsa.report.groups import Group, GroupTable, extremes
from raymsa.report.members import tried_words

if TYPE_CHECKING:
    from raymsa.report.literature import Literature, PublishedRow

SHORT = 8  # characters of a key or digest that are shown, and more where several begin so
COSTS = {
    "clips_per_s": Column("clips_per_s", "clips/s", 1),
    "device_s": Column("device_s", "device h/run", 3, 1 / HOUR_S),
    "peak_memory_bytes": Column("peak_memory_bytes", "peak GiB", 2, 1 / GIB),
}
NO_FLOOR = "these runs did not record what a constant prediction has"


@dataclass(frozen=True)
class _Line:
    """A row before its columns are chosen: column name -> cell."""

    label: str
    notes: tuple[str, ...]
    cells: dict[str, Cell]


class _Among:
    """What a group's row says of the others of its table, found once for all of them."""

    def __init__(self, table: GroupTable) -> None:
        digests: dict[str, set[str | None]] = {}
        for group in table.groups:
            digests.setdefault(group.key, set()).add(group.data_digest)
        self.one_job = len({name for group in table.groups if not group.rivals for name in group.names}) == 1
        self.several_data = len(set().union(*digests.values())) > 1
        self.split = {key for key, found in digests.items() if len(found) > 1}
        self.short = _shortened(sorted(digests))


def check_metrics(names: Sequence[str], profiles: Iterable[str] = tuple(PROFILES)) -> None:
    """Raises UsageError for names that are no column of any table with these metric rules."""
    columns = [*dict.fromkeys(name for profile in profiles for name in in_order(profile)), *COSTS, *HEALTH]
    for name in names:
        if name not in columns:
            near = [one for one in columns if one.startswith(name)] or difflib.get_close_matches(name, columns)
            meant = f"; did you mean {' or '.join(near)}?" if near else ""
            raise UsageError(f"--metric: given {name!r}{meant} (known: {', '.join(columns)})")


def sheets(
    tables: Sequence[GroupTable],
    metrics: Sequence[str] = (),
    literature: Literature | None = None,
    clips: Mapping[str, int] | None = None,
) -> list[Sheet]:
    """One sheet for each table, and for published results that fit none. `metrics` are the columns that are wanted, all
    of them if empty; `clips` counts the test clips of runs by their ids, to be compared with the published split."""
    return [sheet for _, sheet in _sheets(tables, metrics, literature, clips)]


def one_sheet(
    tables: Sequence[GroupTable],
    metrics: Sequence[str] = (),
    literature: Literature | None = None,
    clips: Mapping[str, int] | None = None,
) -> Sheet:
    """The same in one sheet, for programs: what `sheets` says in titles is in columns."""
    about = [Column(name, name) for name in ("dataset", "target", "profile")]
    made = _sheets(tables, metrics, literature, clips)
    columns = {column.name: column for _, sheet in made for column in sheet.columns}
    rows = []
    for table, sheet in made:
        for row in sheet.rows:
            cells = dict(zip((column.name for column in sheet.columns), row, strict=True))
            rows.append((table.dataset, table.target, table.profile, *(cells.get(name) for name in columns)))
    return Sheet("", (*about, *columns.values()), tuple(rows))


def _sheets(
    tables: Sequence[GroupTable],
    metrics: Sequence[str],
    literature: Literature | None,
    clips: Mapping[str, int] | None,
) -> list[tuple[GroupTable, Sheet]]:
    beside = [literature if literature and _fits(table, literature) else None for table in tables]
    made = [(table, _sheet(table, metrics, also, clips or {})) for table, also in zip(tables, beside, strict=True)]
    if literature is not None and not any(beside):
        rule = CRITERIA[literature.metrics]
        metrics_of = in_order(literature.metrics)
        alone = GroupTable(literature.dataset, literature.metrics, None, (), metrics_of, rule.metric, (), ())
        made.append((alone, _sheet(alone, metrics, literature, {})))
    return made


def _fits(table: GroupTable, literature: Literature) -> bool:
    return (table.dataset, table.profile, table.target) == (literature.dataset, literature.metrics, None)


def _sheet(table: GroupTable, wanted: Sequence[str], literature: Literature | None, clips: Mapping[str, int]) -> Sheet:
    metrics = [name for name in dict.fromkeys(wanted or table.metrics) if name in table.metrics]
    first = metrics[0] if metrics else CRITERIA[table.profile].metric
    published = literature.test_clips if literature else None
    among = _Among(table)
    lines = [_group_line(group, table, among, first, published, clips) for group in table.groups]
    lines += _floor_lines(table) if table.groups else []
    lines += [_published_line(row, literature) for row in literature.rows] if literature else []
    columns = [*_columns(table, metrics, first, wanted)]
    kept = [
        c for c in columns if c.name in (*wanted, f"valid_{table.decides}") or any(c.name in x.cells for x in lines)
    ]
    rows = [tuple(line.cells.get(column.name) for column in kept) for line in lines]
    labels = [Noted(line.label, line.notes) if line.notes else line.label for line in lines]
    return Sheet(
        title=_title(table, literature),
        columns=(Column("label", "runs"), *kept),
        rows=tuple((label, *row) for label, row in zip(labels, rows, strict=True)),
        notes=literature.notes if literature else (),
    )


def _title(table: GroupTable, literature: Literature | None) -> str:
    what = table.dataset + (f", {table.target}" if table.target else "")
    if not table.groups:
        return f"{what}: published results on test, {table.profile} metrics"
    beside = "; published results below" if literature else ""
    order = f"best on valid ({table.decides}) first"
    return f"{what}: test, mean ± sd over seeds, {table.profile} metrics; {order}{beside}"


def _columns(table: GroupTable, metrics: Sequence[str], first: str, wanted: Sequence[str]) -> Iterator[Column]:
    yield Column("group", "group", None)
    yield Column("data", "data", None)
    yield Column("numbers", "numbers are", None)
    yield Column("seeds", "seeds", None)
    yield metric_column(f"valid_{table.decides}", f"valid {_words(table.decides)}", table.decides)
    for name in metrics:
        yield metric_column(f"test_{name}", _words(name), name)
    for name in ("acc2", "f1"):
        if not wanted or any(metric.startswith(name) for metric in wanted):
            yield Column(f"test_{name}_other_rule", f"{name} by another rule (%)", 1, 100)
    for which in ("best", "worst"):
        yield metric_column(f"test_{first}_{which}", f"{which} {_words(first)}", first)
        yield Column(f"{which}_seed", f"{which} seed", None)
    for name, column in {**COSTS, **{name: metric_column(name, _words(name)) for name in HEALTH}}.items():
        if not wanted or name in wanted:
            yield column


def _words(metric: str) -> str:
    return metric.replace("_", " ")


def _group_line(
    group: Group, table: GroupTable, among: _Among, first: str, published: int | None, clips: Mapping[str, int]
) -> _Line:
    ends = extremes(group, first, first not in LOW_IS_GOOD)
    cells: dict[str, Plain] = {
        "group": among.short[group.key],
        "data": _digest(group.data_digest) if among.several_data else None,
        "numbers": None if published is None else "mean ± sd" if len(group.seeds) > 1 else "one seed",
        "seeds": len(group.seeds),
        f"valid_{table.decides}": group.valid,
        **{f"test_{name}": spread for name, spread in group.test.items()},
        **group.health,
        "clips_per_s": group.clips_per_s,
        "device_s": group.device_s,
        "peak_memory_bytes": group.peak_memory_bytes,
    }
    for which, seed in zip(("best", "worst"), ends or (), strict=False):
        cells |= {f"test_{first}_{which}": seed.test[first], f"{which}_seed": seed.seed}
    notes = (*group.collapse.reasons(table.classes), *_about(group, among, published, clips))
    return _Line(_label(group, among), notes, {name: cell for name, cell in cells.items() if cell is not None})


def _label(group: Group, among: _Among) -> str:
    """Job and variant; the job is left out where there is one only."""
    said = {
        group.collapse.words: bool(group.collapse.words),
        "text only": group.text_only,
        "constrained answers": group.constrained,
        "a trial": group.trial,
    }
    words = ", ".join(word for word, holds in said.items() if holds)
    name = group.variant if among.one_job and not group.rivals else f"{group.names[0]} {group.variant}"
    return f"{name} ({words})" if words else name


def _about(group: Group, among: _Among, published: int | None, clips: Mapping[str, int]) -> Iterator[str]:
    if len(group.names) > 1:
        yield f"runs of the jobs {', '.join(group.names)}"
    if group.repeated:
        yield f"run more than once, of which the newest counts: seed {', '.join(map(str, group.repeated))}"
    if group.rivals:
        others = "" if group.rivals == 1 else f"; of {group.rivals} such groups the best on valid"
        on = f"from other shards (data {_digest(group.data_digest)}), of which test has the same clips and labels"
        where = on if group.other_shards else "on the same clips"
        yield f"the text-only baseline, shown unasked: other runs {where}{others}"
    if group.tried:
        yield tried_words(group.tried)
    if group.trial:
        yield "a trial of a search: the best of many on one seed is also the luckiest"
    if group.key in among.split:
        yield "the same settings on different data (column data): not one group"
    counts = sorted({clips[seed.run_id] for seed in group.seeds if seed.run_id in clips})
    if published is not None and counts and counts != [published]:
        yield f"scored on {' and '.join(map(str, counts))} test clips; the published split has {published}"


def _floor_lines(table: GroupTable) -> Iterator[_Line]:
    label = "constant (most frequent class)" if table.classes else "constant (train median)"
    known = [floor for floor in table.floors if any(floor.metrics.values())]
    for floor in known or table.floors[:1]:
        on = ", ".join(map(_digest, floor.data_digests))
        yield _Line(
            label + (f", data {on}" if len(known) > 1 else ""),
            () if known else (NO_FLOOR,),
            {
                **{f"test_{name}": value for name, value in floor.metrics.get("test", {}).items()},
                **{f"valid_{name}": value for name, value in floor.metrics.get("valid", {}).items()},
            },
        )


def _published_line(row: PublishedRow, literature: Literature) -> _Line:
    from raymsa.report.literature import chosen_words, in_our_units, notes_of

    found = in_our_units(row, literature.metrics)
    cells: dict[str, Cell] = {
        "numbers": chosen_words(row),
        **({"seeds": row.seeds} if row.seeds else {}),
        **{f"test_{name}": spread for name, spread in found.test.items()},
        **{f"test_{name}_other_rule": Noted(spread, (rule,)) for name, (spread, rule) in found.foreign.items()},
    }
    return _Line(row.method, tuple(notes_of(row, literature)), cells)


def _digest(digest: str | None) -> str:
    return "unknown" if digest is None else digest[:SHORT]


def _shortened(keys: Sequence[str]) -> dict[str, str]:
    """Sorted keys -> the beginning that tells each from the others."""
    shared = [
        sum(1 for _ in takewhile(lambda both: both[0] == both[1], zip(*pair, strict=False))) for pair in pairwise(keys)
    ]
    needed = [max(SHORT, before + 1, after + 1) for before, after in zip([0, *shared], [*shared, 0], strict=False)]
    return {key: key[:length] for key, length in zip(keys, needed, strict=False)}
