"""Cells and frames of the tables on the screen. Only report/ rounds."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from raymsa.report.formats import Column
from raymsa.report.spread import Spread
from raymsa.words import visible

FIRST = ("mae", "corr")  # the numbers papers are compared by
HEALTH = ("unparsable", "out_of_range")  # shares of the answers, often far below one percent
HOUR_S, GIB = 3600, 2**30


def table(title: str, headings: list[str]) -> Table:
    """An empty table; its first column is words, the others numbers."""
    made = Table(title=words(title) or None, title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
    return made


def words(text: str) -> str:
    """A text for rich, in its lines: neither its markup nor a terminal's."""
    return escape(visible(text, "\n"))


def heading(name: str) -> str:
    """A metric's name over its column."""
    return name.replace("_", "\n") + ("" if name in FIRST else "\n%")


def metric_column(name: str, words: str, metric: str = "") -> Column:
    """A metric's column: its heading in these words and with its unit. `metric` is which, where `name` says more."""
    decimals, scale = form(metric or name)
    return Column(name, words if scale == 1 else f"{words} (%)", decimals, scale)


def form(metric: str) -> tuple[int, float]:
    """Decimals and scale: errors and correlations with three decimals, shares in percent with one, as papers print
    them; unparsable and out-of-range shares with two."""
    if metric in FIRST:
        return 3, 1
    return (2, 100) if metric in HEALTH else (1, 100)


def spread_text(name: str, spread: Spread | None) -> str:
    """`mean ± sd`."""
    if spread is None:
        return "-"
    sd = "" if spread.sd is None else f" ± {number(name, spread.sd)}"
    return number(name, spread.mean) + sd


def number(name: str, value: float | None) -> str:
    """A metric's value, rounded as in any table."""
    if value is None:
        return "-"
    decimals, scale = form(name)
    return f"{value * scale:.{decimals}f}"
