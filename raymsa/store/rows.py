"""Rows of the store as plain data: what an export writes and an import checks, read off tables.py.

JSON has no NaN and no infinities: they are the strings NaN, Infinity and -Infinity there.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from functools import cache
from typing import Any, NamedTuple

from sqlalchemy import JSON, Boolean, Column, Float, Integer, String, Table
from sqlalchemy.types import TypeDecorator

from raymsa.errors import UsageError
from raymsa.store import migrations, tables

FORMAT = 1
# Parents before their children; events last, because they speak of tasks without a foreign key.
ORDER = sorted(tables.metadata.sorted_tables, key=lambda table: table is tables.events)
KINDS = ((Boolean, bool), (Integer, int), (Float, float), (JSON, object), (String, str))
NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}
WORDS = {bool: "true or false", int: "a whole number", float: "a number", str: "a text"}


def header() -> dict[str, Any]:
    """What an export begins with."""
    columns = {table.name: [column.name for column in table.columns] for table in ORDER}
    return {"raymsa": "export", "format": FORMAT, "schema": migrations.HEAD, "tables": columns}


def check_header(given: Any) -> list[Table]:
    """The tables that an export has, in the order of their rows. Raises UsageError when it cannot be read here."""
    theirs = given.get("tables") if isinstance(given, dict) and given.get("raymsa") == "export" else None
    if not isinstance(theirs, dict) or not all(isinstance(columns, list) for columns in theirs.values()):
        raise UsageError("this is no export of a raymsa store")
    if given.get("format") != FORMAT:
        raise UsageError(f"it has format {given.get('format')} and this raymsa reads {FORMAT}: upgrade raymsa")
    mine = header()["tables"]
    strange = [f"{name}.{c}" for name in theirs for c in theirs[name] if c not in mine.get(name, ())]
    both = [table for table in ORDER if table.name in theirs]
    needed = [f"{t.name}.{c}" for t in both for c, rule in _rules(t).items() if rule.needed and c not in theirs[t.name]]
    if strange or needed:
        what = f"knows no {strange[0]}" if strange else f"needs {needed[0]}"
        raise UsageError(
            f"it was made from a store of version {given.get('schema')}, and this raymsa (version {migrations.HEAD}) "
            f"{what}: export it again with the same raymsa on both sides"
        )
    return both


def kinds(table: Table) -> dict[str, type]:
    """A table's columns as bool, int, float, str, or object for JSON."""
    return {name: rule.kind for name, rule in _rules(table).items()}


def for_json(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row that JSON can hold."""
    return {name: _word(value) if isinstance(value, float) else value for name, value in row.items()}


def from_json(text: str | bytes) -> Any:
    """Plain data. Raises ValueError when it is not JSON; Python would take NaN for a number."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise ValueError("this is not JSON") from None


def checked(table: Table, row: Any) -> dict[str, Any]:
    """A row that was read, with each value of its column's type. Raises ValueError that says what is wrong."""
    rules = _rules(table)
    if not isinstance(row, dict):
        raise ValueError("a row is an object")
    if strange := row.keys() - rules.keys():
        raise ValueError(f"unknown column {min(strange)!r}")
    if len(row) < len(rules):
        lacking = [name for name, rule in rules.items() if name not in row and rule.needed]
        if lacking:
            raise ValueError(f"column {lacking[0]!r} is missing")
    return {name: _checked(name, rules[name], value) for name, value in row.items()}


class _Rule(NamedTuple):
    """What may stand in a column; `limit` is characters of a text."""

    kind: type
    nullable: bool
    needed: bool
    limit: float


@cache
def _rules(table: Table) -> dict[str, _Rule]:
    """Made once per table: a store has a million rows."""
    rules = {}
    for column in table.columns:
        limit = getattr(column.type, "length", None)
        needed = not column.nullable and column.server_default is None
        rules[column.name] = _Rule(_kind(column), bool(column.nullable), needed, limit or math.inf)
    return rules


def _kind(column: Column[Any]) -> type:
    type_ = column.type.impl_instance if isinstance(column.type, TypeDecorator) else column.type
    return next(kind for sql, kind in KINDS if isinstance(type_, sql))


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _word(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _checked(name: str, rule: _Rule, value: Any) -> Any:
    kind = rule.kind
    if kind is float and not isinstance(value, float):
        value = (
            NOT_FINITE.get(value, value) if isinstance(value, str) else float(value) if type(value) is int else value
        )
    if value is None:
        if not rule.nullable:
            raise ValueError(f"{name!r} is null")
    elif type(value) is not kind and kind is not object:
        raise ValueError(f"{name!r} is {_short(value)}, which is not {WORDS[kind]}")
    elif kind is int and not -(2**63) <= value < 2**63:
        raise ValueError(f"{name!r} is {value}, which is too large")
    elif kind is str and len(value) > rule.limit:
        raise ValueError(f"{name!r} is {_short(value)}, which is longer than {rule.limit} characters")
    return value


def _short(value: Any) -> str:
    shown = json.dumps(value, default=str)
    return shown if len(shown) <= 40 else f"{shown[:40]}..."
