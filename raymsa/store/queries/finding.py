"""How rows are found: by equal columns, by the beginning of an id, and of many runs at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sqlalchemy import Column, Select, Table, select

from raymsa.errors import NotFound, UsageError
from raymsa.store.engine import Store
from raymsa.store.queries.nouns import Row

CANDIDATES = 8  # named when a prefix fits several
AT_ONCE = 5_000  # runs asked about in one statement
LAST = "\U0010ffff"  # no character comes after it


def equal_to(table: Table, **equal: str | None) -> Select[Any]:
    """The rows of a table with these values; None asks for nothing."""
    given = {name: value for name, value in equal.items() if value is not None}
    return select(table).where(*(table.c[name] == value for name, value in given.items()))


def read_rows(store: Store, row_type: type[Row], statement: Select[Any]) -> list[Row]:
    """What a statement finds, as dataclasses."""
    with store.read() as connection:
        return [row_type(**row._mapping) for row in connection.execute(statement)]


def of_runs(store: Store, found: Select[Any], column: Column[Any], run_ids: Sequence[str]) -> Iterator[Any]:
    """Rows of a statement for many runs, some thousand at a time: a statement has a limited number of parameters."""
    with store.read() as connection:
        for at in range(0, len(run_ids), AT_ONCE):
            yield from connection.execute(found.where(column.in_(run_ids[at : at + AT_ONCE])))


def whole(store: Store, row_type: type[Row], table: Table, row_id: str) -> Row:
    """The row with this id. Raises NotFound."""
    rows = read_rows(store, row_type, equal_to(table, id=row_id))
    if not rows:
        raise NotFound(f"{row_id} was removed from the store just now")
    return rows[0]


def starting(store: Store, column: Column[Any], prefix: str) -> Select[Any]:
    """Ids (or keys) with this beginning, from their index alone."""
    if store.engine.dialect.name == "sqlite":  # whose LIKE ignores case, and no index then
        return select(column).where(column.between(prefix, prefix + LAST))
    # Not a range: PostgreSQL's order depends on the locale.
    return select(column).where(column.startswith(prefix, autoescape=True))


def only(found: Sequence[tuple[str, str]], prefix: str, noun: str) -> str:
    """The one id that fits; an id given in full wins. Each is (id, how to show it). Raises NotFound, UsageError."""
    if any(row_id == prefix for row_id, _ in found):
        return prefix
    if not prefix or not found:
        raise NotFound(f"no {noun} {prefix!r} in the store")
    if len(found) > 1:
        shown = ", ".join(label for _, label in found[:CANDIDATES])
        more = f" and {len(found) - CANDIDATES} more" if len(found) > CANDIDATES else ""
        raise UsageError(f"{prefix!r} could be {shown}{more}; give more of the id")
    return found[0][0]
