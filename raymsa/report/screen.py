"""A sheet on the screen: in as many tables side by side as the width asks for, its notes under them."""

from __future__ import annotations

import textwrap

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from raymsa.report.cells import table
from raymsa.report.formats import Sheet, Shown, marked, on_the_left
from raymsa.words import visible

WORDS, LONGEST = 36, 200  # of a first cell: columns before it is folded, characters before it is cut
OTHER_WORDS = 40  # characters of another cell before it is cut
MARGIN = 2  # beside each column, and beside the table


def render_sheet(sheet: Sheet, console: Console) -> None:
    """Print a sheet."""
    rows, notes = marked(sheet)
    texts = [[_text(cell, LONGEST if n == 0 else OTHER_WORDS) for n, cell in enumerate(row)] for row in rows]
    headings = [_heading(column.heading) for column in sheet.columns]
    title, left = visible(sheet.title), on_the_left(sheet)
    for columns in _side_by_side(headings, texts, console.width):
        made = table(title, [])
        for n in columns:
            made.add_column(Text(headings[n]), justify="left" if left[n] else "right", no_wrap=n > 0)
        for line in texts:
            made.add_row(*(Text(line[n]) for n in columns))
        console.print(made)
        title = ""
    for note in notes:
        lines = textwrap.wrap(visible(note), max(20, console.width - 2), subsequent_indent="    ")
        console.print(Text("\n".join(lines)))


def _heading(words: str) -> str:
    """One word above the other: columns are as narrow as their numbers."""
    return "\n".join(visible(words).replace("(%)", "%").split())


def _text(cell: Shown, most: int) -> str:
    text = visible(cell.text)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"{text} [{cell.mark}]" if cell.mark else text


def _side_by_side(headings: list[str], texts: list[list[str]], width: int) -> list[list[int]]:
    """Which columns stand in which table; the first stands in each."""
    sizes = [
        max(map(cell_len, [*headings[n].split("\n"), *(line[n] for line in texts)])) + MARGIN
        for n in range(len(headings))
    ]
    sizes[0] = min(sizes[0], WORDS + MARGIN, width // 2)
    groups: list[list[int]] = [[0]]
    used = sizes[0] + MARGIN
    for n in range(1, len(headings)):
        if len(groups[-1]) > 1 and used + sizes[n] > width:
            groups.append([0])
            used = sizes[0] + MARGIN
        groups[-1].append(n)
        used += sizes[n]
    return groups
