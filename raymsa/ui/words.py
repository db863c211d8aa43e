"""Templates and what they need: text of others shown as text, links, pieces of HTML from macros."""

from __future__ import annotations

import math
import shlex
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raymsa.report.rows import short
from raymsa.report.sortable import Cell, Sortable
from raymsa.words import visible

HERE = Path(__file__).parent
LONGEST = 60  # characters of a name in a table
MOST_ROWS = 200  # of a table at first: a browser takes a second to lay out a thousand
TABLES_KEPT = 8  # with their rows as HTML


@cache
def environment() -> Environment:
    """The templates of this folder; whatever is put into them is escaped."""
    made = Environment(
        loader=FileSystemLoader(HERE / "templates"),
        autoescape=True,
        auto_reload=False,  # a raymsa that is upgraded meanwhile must not give a page of two versions
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.globals["MOST_ROWS"] = MOST_ROWS
    made.filters |= {
        "plain": plain,
        "link": link,
        "key": key,
        "sentence": sentence,
        "shell": lambda text: shlex.quote(str(text)),
        "short": lambda text: short(str(text), LONGEST),
    }
    return made


def plain(text: Any) -> str:
    """A text of others in which nothing hides or acts; its line ends and tabs stay."""
    return visible(str(text), "\n\t")


def link(text: Any) -> str:
    """A text as one part of an address."""
    return quote(str(text), safe="")


def sentence(text: str) -> str:
    """With a capital at its beginning; names in it stay as they are."""
    return text[:1].upper() + text[1:]


def key(value: float | None) -> str:
    """What a cell is sorted by; empty for what comes last."""
    return "" if value is None or math.isnan(value) else repr(float(value))


def piece(template: str, macro: str, *values: Any) -> str:
    """What a macro of a template makes."""
    made = environment().get_template(template).make_module()
    return str(getattr(made, macro)(*values))


def page(template: str, **values: Any) -> str:
    """A whole page."""
    return environment().get_template(template).render(**values)


def failed(error: Exception) -> str:
    """What stands where a part of a page should be."""
    return piece("tables.html", "failed", f"{type(error).__name__}: {error}")


def pieces(template: str) -> Any:
    """The macros of a template, for many calls."""
    return environment().get_template(template).make_module()


def as_html(made: str) -> Markup:
    """Pieces are HTML already: what they were made of was escaped then."""
    return Markup(made)  # noqa: S704


def table_rows(table: Sortable, noun: str, box: str = "") -> dict[str, str]:
    """The rows of a table of jobs or runs as HTML, each with a link, and a box to choose it by if that has a name."""
    return {name: row_html(name, cells, f"/{noun}s/{link(name)}", (box, name)) for name, cells in table.rows.items()}


class Rows:
    """Rows of tables as HTML, kept until their cells are others: of a large table few change between two looks."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, dict[str, tuple[tuple[Cell, ...], str]]] = OrderedDict()

    def of(self, key: str, table: Sortable, noun: str, box: str = "") -> dict[str, str]:
        """As `table_rows`; `key` says which table it is."""
        before = self._kept.pop(key, {})
        other = {name: cells for name, cells in table.rows.items() if name not in before or before[name][0] != cells}
        made = table_rows(replace(table, rows=other), noun, box)
        now = {name: (cells, made[name]) if name in made else before[name] for name, cells in table.rows.items()}
        self._kept[key] = now
        while len(self._kept) > TABLES_KEPT:
            self._kept.popitem(last=False)
        return {name: html for name, (_, html) in now.items()}


def row_html(label: str, cells: tuple[Cell, ...], href: str, box: tuple[str, str]) -> str:
    """One row. `box` is the name and the value of a box to choose it by, `compare LABEL`; without a name, none."""
    return str(_row_macro()(label, cells, href, box))


@cache
def _row_macro() -> Any:
    return pieces("tables.html").row


def texts(parts: Mapping[str, Any]) -> dict[str, str]:
    """What macros made, as plain texts of HTML."""
    return {name: str(made) for name, made in parts.items()}
