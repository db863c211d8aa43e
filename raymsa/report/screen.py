"""A sheet on the screen: in as many tables side by side as the width asks for, its notes under them.

Lines are laid out here, because rich takes a second for a table of some hundred rows.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console

from raymsa.report.formats import Sheet, Shown, marked, on_the_left
from raymsa.words import visible

WORDS, LONGEST = 36, 200  # of a first cell: columns before it is folded, characters before it is cut
OTHER_WORDS = 40  # characters of another cell before it is cut
GAP = 2  # before each column


@dataclass(frozen=True)
class _Column:
    """A column as text: lines of its heading, its cells, as wide as `size`."""

    heading: list[str]
    cells: list[str]
    left: bool
    size: int


def render_sheet(sheet: Sheet, console: Console) -> None:
    """Print a sheet."""
    rows, notes = marked(sheet)
    columns = list(_columns(sheet, rows, console.width))
    lines = textwrap.wrap(visible(sheet.title), console.width)
    for some in _side_by_side(columns, console.width):
        lines += [*_lines(some), ""]
    for note in notes:
        lines += textwrap.wrap(visible(note), max(20, console.width), subsequent_indent="    ")
    console.out("\n".join(lines), highlight=False)


def _columns(sheet: Sheet, rows: list[list[Shown]], width: int) -> Iterator[_Column]:
    for n, (column, left) in enumerate(zip(sheet.columns, on_the_left(sheet), strict=True)):
        heading = visible(column.heading).replace("(%)", "%").split()  # one word above the other: numbers are narrow
        cells = [_text(row[n], OTHER_WORDS if n else LONGEST) for row in rows]
        size = max(map(cell_len, [*heading, *cells]), default=0)
        yield _Column(heading, cells, left, size if n else min(size, WORDS, width // 2))


def _text(cell: Shown, most: int) -> str:
    text = visible(cell.text)
    text = text if len(text) <= most else f"{text[: most - 1]}…"
    return f"{text} [{cell.mark}]" if cell.mark else text


def _side_by_side(columns: Sequence[_Column], width: int) -> list[list[_Column]]:
    """Which columns stand in which table; the first stands in each."""
    first, *others = columns
    groups, used = [[first]], first.size + GAP
    for column in others:
        if len(groups[-1]) > 1 and used + GAP + column.size > width:
            groups.append([first])
            used = first.size + GAP
        groups[-1].append(column)
        used += GAP + column.size
    return groups


def _lines(columns: Sequence[_Column]) -> Iterator[str]:
    first, *others = columns
    height = max(len(column.heading) for column in columns)
    heads = [[""] * (height - len(column.heading)) + column.heading for column in columns]
    yield from ("".join(map(_padded, line, columns)).rstrip() for line in zip(*heads, strict=True))
    yield " " * GAP + "─" * (sum(GAP + column.size for column in columns) - GAP)
    for label, *cells in zip(*(column.cells for column in columns), strict=True):
        folded = _folded(label, first.size)
        rest = "".join(map(_padded, cells, others))
        yield (_padded(folded[0], first) + rest).rstrip()
        yield from (_padded(more, first).rstrip() for more in folded[1:])


def _padded(text: str, column: _Column) -> str:
    space = " " * (column.size - cell_len(text))
    return " " * GAP + (text + space if column.left else space + text)


def _folded(text: str, size: int) -> list[str]:
    """In lines of that many columns; characters of Chinese, Japanese and Korean take two."""
    if cell_len(text) <= size:
        return [text]
    wide = cell_len(text) > len(text)
    return textwrap.wrap(text, size // 2 if wide else size) or [""]
