"""Cells and frames of the tables on the screen. Only report/ rounds."""

from __future__ import annotations

from rich import box
from rich.markup import escape
from rich.table import Table

from raymsa.report.spread import Spread
from raymsa.words import visible

FIRST = ("mae", "corr")  # the numbers papers are compared by


def table(title: str, headings: list[str]) -> Table:
    """An empty table; its first column is words, the others numbers."""
    made = Table(title=words(title) or None, title_justify="left", box=box.SIMPLE_HEAD)
    for index, heading in enumerate(headings):
        made.add_column(heading, justify="right" if index else "left", no_wrap=index > 0)
    return made


def words(text: str) -> str:
    """A text for rich, in its lines: neither its markup nor a terminal's."""
    return "\n".join(escape(visible(line)) for line in text.split("\n"))


def heading(name: str) -> str:
    """A metric's name over its column."""
    return name.replace("_", "\n") + ("" if name in FIRST else "\n%")


def spread_text(name: str, spread: Spread | None) -> str:
    """`mean ± sd`."""
    if spread is None:
        return "-"
    sd = "" if spread.sd is None else f" ± {number(name, spread.sd)}"
    return number(name, spread.mean) + sd


def number(name: str, value: float | None) -> str:
    """Errors and correlations with three decimals, shares in percent with one, as papers print them."""
    if value is None:
        return "-"
    return f"{value:.3f}" if name in FIRST else f"{100 * value:.1f}"
