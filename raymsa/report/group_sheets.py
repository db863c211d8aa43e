"""Tables of groups as sheets: which columns there are, what the rows are called and what their footnotes say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise, takewhile
from typing import TYPE_CHECKING

from raymsa.errors import UsageError
from raymsa.evaluation.metrics import CRITERIA, LOW_IS_GOOD, PROFILES
from raymsa.report.cells import FIRST, number
from raymsa.report.finals import HEALTH, in_order
from raymsa.report.formats import Cell, Column, Noted, Plain, Sheet
from raymsa.report.groups import Group, GroupTable, extremes

if TYPE_CHECKING:
    from raymsa.report.literature import Literature, PublishedRow

HOUR, GIB = 3600, 2**30
SHORT = 8  # characters of a key or digest that are shown, and more where several begin so
COSTS = {
    "clips_per_s": Column("clips_per_s", "clips/s", 1),
    "device_s": Column("device_s", "device h/run", 3, 1 / HOUR),
    "peak_memory_bytes": Column("peak_memory_bytes", "peak GiB", 2, 1 / GIB),
}
NO_FLOOR = "these runs did not record what a constant prediction has"
KNOWN = tuple(dict.fromkeys(name for metrics in PROFILES.values() for name in metrics))


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
        self.one_job = len({name for group in table.groups for name in group.names}) == 1
        self.several_data = len(set().union(*digests.values())) > 1
        self.split = {key for key, found in digests.items() if len(found) > 1}
        self.short = _shortened(sorted(digests))


def check_metrics(names: Sequence[str]) -> None:
    """Raises UsageError for names that are no column of any table."""
    columns = (*KNOWN, *COSTS, *HEALTH)
    for name in names:
        if name not in columns:
            raise UsageError(f"--metric: given {name!r} (known: {', '.join(columns)})")


def sheets(
    tables: Sequence[GroupTable],
    metrics: Sequence[str] = (),
    literature: Literature | None = None,
    clips: Mapping[str, int] | None = None,
) -> list[Sheet]:
    """One sheet for each table, and for published results that fit none. `metrics` are the columns that are wanted, all
    of them if empty; `clips` counts the test clips of runs by their ids, to be compared with the published split."""
    beside = [literature if literature and _fits(table, literature) else None for table in tables]
    made = [_sheet(table, metrics, also, clips or {}) for table, also in zip(tables, beside, strict=True)]
    if literature is not None and not any(beside):
        rule = CRITERIA[literature.metrics]
        metrics_of = in_order(literature.metrics)
        alone = GroupTable(literature.dataset, literature.metrics, None, (), metrics_of, rule.metric, (), ())
        made.append(_sheet(alone, metrics, literature, {}))
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
    yield _metric(f"valid_{table.decides}", table.decides, "valid ")
    for name in metrics:
        yield _metric(f"test_{name}", name)
    for name in ("acc2", "f1"):
        if not wanted or any(metric.startswith(name) for metric in wanted):
            yield Column(f"test_{name}_other_rule", f"{name} by another rule (%)", 1, 100)
    for which in ("best", "worst"):
        yield _metric(f"test_{first}_{which}", first, f"{which} ")
        yield Column(f"{which}_seed", f"{which} seed", None)
    for name, column in {**COSTS, **{name: _metric(name, name) for name in HEALTH}}.items():
        if not wanted or name in wanted:
            yield column


def _metric(name: str, metric: str, before: str = "") -> Column:
    """Errors and correlations with three decimals, shares in percent with one, as papers print them."""
    words = before + metric.replace("_", " ")
    return Column(name, words, 3) if metric in FIRST else Column(name, f"{words} (%)", 1, 100)


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
    notes = (*_collapsed(group, table), *_about(group, among, published, clips))
    return _Line(_label(group, among), notes, {name: cell for name, cell in cells.items() if cell is not None})


def _label(group: Group, among: _Among) -> str:
    """Job and variant; the job is left out where there is one only."""
    said = {
        "collapsed": group.no_better or any(seed.one_value is not None for seed in group.seeds),
        "text only": group.text_only,
        "constrained answers": group.constrained,
        "a trial": group.trial,
    }
    words = ", ".join(word for word, holds in said.items() if holds)
    return (group.variant if among.one_job else f"{group.names[0]} {group.variant}") + (f" ({words})" if words else "")


def _collapsed(group: Group, table: GroupTable) -> Iterator[str]:
    metric = CRITERIA[table.profile].metric
    if group.no_better:
        ours, floor = number(metric, group.test[metric].mean), number(metric, group.constant["test"][metric])
        mean = "the mean test" if len(group.seeds) > 1 else "test"
        unit = "" if metric in FIRST else " %"
        yield f"collapsed: {mean} {metric} {ours}{unit} is no better than the constant predictor's {floor}{unit}"
    for seed in group.seeds:
        if seed.one_value is not None:
            said = (
                table.classes[int(seed.one_value)]
                if 0 <= seed.one_value < len(table.classes)
                else f"{seed.one_value:g}"
            )
            yield f"collapsed: seed {seed.seed} predicts one value ({said}) for all test clips"


def _about(group: Group, among: _Among, published: int | None, clips: Mapping[str, int]) -> Iterator[str]:
    if len(group.names) > 1:
        yield f"runs of the jobs {', '.join(group.names)}"
    if group.repeated:
        yield f"run more than once, of which the newest counts: seed {', '.join(map(str, group.repeated))}"
    if group.rivals:
        others = "" if group.rivals == 1 else f"; of {group.rivals} such groups the best on valid"
        yield f"the text-only baseline, shown unasked: other runs on the same clips{others}"
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
    rule = (found.rule,) if found.rule else ()
    cells: dict[str, Cell] = {
        "numbers": chosen_words(row),
        **({"seeds": row.seeds} if row.seeds else {}),
        **{f"test_{name}": spread for name, spread in found.test.items()},
        **{f"test_{name}_other_rule": Noted(spread, rule) for name, spread in found.foreign.items()},
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
