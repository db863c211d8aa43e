"""The page that compares runs and groups: differences with intervals and p, curves over each other, numbers."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from typing import Any

from raymsa.errors import NotFinished, UsageError
from raymsa.report import sortable
from raymsa.report.collapse import collapsed
from raymsa.report.compare import comparison
from raymsa.report.compare_sheets import sheets
from raymsa.report.finals import tests_of
from raymsa.report.members import members
from raymsa.store import Store, queries
from raymsa.store.queries import RunRow
from raymsa.ui.curves import charts, label
from raymsa.ui.live import Seen
from raymsa.ui.pages import Known
from raymsa.ui.words import pieces, row_html, table_rows, texts
from raymsa.words import visible

MOST = 48  # runs whose curves are drawn
HALF = 300  # characters of a reason before and after what is left out
SIDES = 6  # groups or runs that are tested against each other; each pair takes some seconds


def compare(store: Store, runs: tuple[str, ...], groups: tuple[str, ...], known: Known) -> Seen:
    """Curves of runs over each other, coloured by group, their numbers, and the differences of their groups."""
    found = {one.id: one for name in runs for one in [queries.run(store, name)]}
    whole = {one.id: one for key in groups for one in queries.group(store, key)}
    counted = _counted(store, list(whole.values()))
    found |= {one.id: one for one in counted}
    if not found:
        raise UsageError("nothing to compare: choose runs or groups on the page of a job, or of all groups")
    shown = list(found.values())[:MOST]
    sides = _sides(list(found.values()), runs)
    make = pieces("run_parts.html")
    kinds = _kinds(shown)
    legend = [(kind, label(one), one.id) for one, kind in zip(shown, kinds, strict=True)]
    parts = {
        "curves": make.curves(charts(store, shown, known.curves, kinds), legend),
        "said": make.compare_said(len(shown), len(found), len(whole) - len(counted), _digests(shown)),
        "differences": _differences(store, sides, _version(store, found.values()), known),
    }
    test = tests_of(store, shown)
    table = sortable.compared(shown, test, collapsed(store, shown, test))
    whole_groups = bool(runs) and len(sides) > 1 and sides[0] not in found
    facts = {
        "columns": table.columns,
        "whole_groups": whole_groups,
        "command": f"raymsa compare {shlex.join(sides)}" if len(sides) > 1 else "",
    }
    return Seen("Compare", facts, texts(parts), {"compared": table_rows(table, "run")})


def _counted(store: Store, rows: Sequence[RunRow]) -> list[RunRow]:
    """The runs of groups, by seed: those that are done and count, and those that are not done."""
    jobs = {job.id: job for job in queries.jobs(store, sorted({one.job_id for one in rows}))}
    done = members([one for one in rows if one.state == "done"], jobs)
    open_ = [one for one in rows if one.state not in ("done", "pruned")]
    order = list(dict.fromkeys(one.group_key for one in rows))
    kept = [*(one for group in done for one in group.runs), *open_]
    return sorted(kept, key=lambda one: (order.index(one.group_key), one.seed))


def _sides(found: Sequence[RunRow], runs: Sequence[str]) -> list[str]:
    """What is tested: the groups; of one group alone, the runs that were chosen one by one."""
    keys = list(dict.fromkeys(one.group_key for one in found))
    return keys if len(keys) > 1 else list(dict.fromkeys(one.id for one in found)) if runs else []


def _differences(store: Store, sides: list[str], version: Any, known: Known) -> str:
    """A table with its sentences, or why there is none, in words."""
    make = pieces("compare_parts.html")
    if len(sides) < 2:
        return str(make.why("This is one group; choose two or more to test their difference."))
    if len(sides) > SIDES:
        return str(make.why(f"These are {len(sides)}; choose at most {SIDES} to test the difference of each two."))
    html = known.differences.of(tuple(sides), version, lambda: _drawn(store, sides, make))
    return str(make.later()) if html is None else html


def _drawn(store: Store, sides: list[str], make: Any) -> str:
    try:
        found = comparison(store, sides, ())
    except (UsageError, NotFinished) as error:
        return str(make.why(_middle_out(str(error))))
    html = []
    for number, sheet in enumerate(sheets(found)):
        table = sortable.sheet(sheet)
        lines = [row_html("", cells, "", ("", "")) for cells in table.rows.values()]
        html.append(str(make.table(number, sheet.title, table.columns, lines, sheet.notes)))
    return "".join(html)


def _middle_out(text: str) -> str:
    """A reason with a very long name in it, with its beginning and its end."""
    return text if len(text) <= 2 * HALF else f"{text[:HALF]} … {text[-HALF:]}"


def _version(store: Store, found: Iterable[RunRow]) -> int:
    """Whole groups are tested, also where single runs were chosen: any run of the store may be one of theirs."""
    states = tuple((one.id, one.state, one.finished_at) for one in found)
    return hash((queries.done_mark(store), states))


def _digests(shown: Sequence[RunRow]) -> list[str]:
    """The clips that the runs were trained on, where they differ."""
    known = list(dict.fromkeys(one.data_digest for one in shown if one.data_digest))
    return [visible(one[: sortable.SHORT]) for one in known] if len(known) > 1 else []


def _kinds(runs: Sequence[RunRow]) -> list[int]:
    """One look for each group, or for each run where there is but one group."""
    keys = [one.group_key for one in runs]
    if len(set(keys)) == 1:
        return list(range(len(runs)))
    order = list(dict.fromkeys(keys))
    return [order.index(key) for key in keys]
