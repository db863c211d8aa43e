"""The page of all groups of the store, and the same tables for one job."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from raymsa.report import sortable
from raymsa.report.formats import Sheet
from raymsa.report.group_sheets import sheets
from raymsa.report.groups import GroupTable, group_tables
from raymsa.store import Store, queries
from raymsa.ui.kept import Kept
from raymsa.ui.live import Seen
from raymsa.ui.words import link, pieces, row_html

ALL = "all"  # the key of the whole store


def groups(store: Store, known: Kept[str]) -> Seen:
    """All groups of the store, a table for each dataset, task and metric rules."""
    done, ended_at = queries.done_mark(store)
    html = known.of(ALL, (done, ended_at), lambda: html_of(group_tables(store))) if done else ""
    made = pieces("group_parts.html")
    parts = {"groups": str(made.later() if html is None else html or made.empty())}
    return Seen("Groups", parts=parts)


def of_job(store: Store, job_id: str) -> str:
    """The tables of one job's groups as HTML."""
    return html_of(group_tables(store, [job_id]))


def html_of(tables: Sequence[GroupTable]) -> str:
    """Tables of groups with boxes to choose them by; what they say is what `raymsa results` says."""
    make = pieces("group_parts.html")
    return "".join(_html(make, at, *both) for at, both in enumerate(zip(tables, sheets(tables), strict=True)))


def _html(make: Any, number: int, table: GroupTable, sheet: Sheet) -> str:
    shown = sortable.sheet(sheet)
    rows = list(shown.rows.values())
    lines = [
        row_html(cells[0].text, cells, f"/compare?group={link(group.key)}", ("group", group.key))
        for group, cells in zip(table.groups, rows, strict=False)
    ]
    floors = [row_html("", cells, "", ("", "")) for cells in rows[len(lines) :]]
    return str(make.table(number, sheet.title, shown.columns, lines, floors, sheet.notes))
