"""A table as plain data, and how it is written: Markdown, LaTeX, CSV (on the screen: screen.py).

Markdown and LaTeX are for people: rounded, in the heading's unit. CSV is for programs: under the column's name,
unrounded, in the unit the number is kept in. Words may come from anybody (names of jobs, clips, transcripts): whatever
they hold, they are text in every format, never markup, a formula or a terminal's command.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from raymsa.report.spread import Spread
from raymsa.words import JOINERS, visible

MISSING = "-"
# A spreadsheet takes a cell that begins so for a formula, and some skip what cannot be seen before it.
FORMULA = re.compile(rf"[\s{JOINERS}]*[=+\-@＝＋－＠]|[\t\r\n]")
MARKDOWN = re.compile(r"[\\`*{}\[\]#|~$!]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])")
ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;", "@": "&#64;"}  # @ would call somebody on a forge
LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "×": r"$\times$",
    "[": "{[}",  # at the beginning of a row it would be an argument of \\
    "]": "{]}",
    "*": "{*}",
    **{char: "\\" + char for char in "{}$&#%_"},
}
LACKING = "«»ÐÞðþĄąĐđĘęĦħĮįĸĿŀŉŊŋŦŧŲųſ"  # pdfLaTeX has them in some fonts only
NOT_LATEX = re.compile(f"(?:[^\0-\u017f–—…‘’“”€†‡−]|[{LACKING}])+")
FITTED = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"  # never larger than it is
SENTENCE = 60  # characters of a cell that are not put on one line
LIGATURES = re.compile(r"([-',])(?=\1)")  # -- would be a dash


@dataclass(frozen=True)
class Noted:
    """A cell with footnotes, in words."""

    cell: Plain
    notes: tuple[str, ...]


Plain = str | int | float | Spread | None  # words, a number, a mean with its sd, nothing
Cell = Plain | Noted


@dataclass(frozen=True)
class Column:
    """`heading` is for people and has the unit; `name` is for programs. Shown is the number times `scale`, rounded to
    `decimals`, or as it is where that is None (seeds, counts)."""

    name: str
    heading: str
    decimals: int | None = 0
    scale: float = 1.0


@dataclass(frozen=True)
class Sheet:
    """A table: as many cells in a row as there are columns; `notes` stand under it, one line each."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def shown(cell: Plain, column: Column) -> str:
    """A cell for people: words as they are, numbers rounded, `mean ± sd`."""
    if cell is None:
        return MISSING
    if isinstance(cell, str):
        return cell
    if isinstance(cell, Spread):
        sd = "" if cell.sd is None else f" ± {_rounded(cell.sd, column)}"
        return _rounded(cell.mean, column) + sd
    return _rounded(cell, column)


class Shown(NamedTuple):
    """A cell for people: its text, the numbers of its footnotes, and whether it is words and no number."""

    text: str
    mark: str
    is_words: bool


def marked(sheet: Sheet) -> tuple[list[list[Shown]], list[str]]:
    """For people: rows of cells, and the lines under the table. Equal footnotes share a number."""
    numbers: dict[str, int] = {}
    rows = []
    for row in sheet.rows:
        cells = []
        for cell, column in zip(row, sheet.columns, strict=True):
            plain, notes = (cell.cell, cell.notes) if isinstance(cell, Noted) else (cell, ())
            marks = [str(numbers.setdefault(note, len(numbers) + 1)) for note in notes]
            cells.append(Shown(shown(plain, column), ",".join(marks), plain is None or isinstance(plain, str)))
        rows.append(cells)
    return rows, [*(f"[{number}] {note}" for note, number in numbers.items()), *sheet.notes]


def markdown(sheet: Sheet) -> str:
    """A table of GitHub's Markdown: title, table, notes as a list."""
    rows, notes = marked(sheet)
    lines = [
        [_markdown(column.heading) for column in sheet.columns],
        ["---" if left else "---:" for left in on_the_left(sheet)],
        *([_markdown(cell.text) + (f" \\[{cell.mark}\\]" if cell.mark else "") for cell in row] for row in rows),
    ]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"**{_markdown(sheet.title)}**" if sheet.title else ""
    under = "\n".join(f"- {_markdown(note)}" for note in notes)
    return "\n\n".join(filter(None, [title, table, under])) + "\n"


def latex(sheet: Sheet) -> str:
    """A table of LaTeX with booktabs, to be put into a paper by \\input; wider than the text, it is made smaller.
    Characters that pdfLaTeX lacks are written as code points (U+4F60)."""
    rows, notes = marked(sheet)
    heading, *body = [
        " & ".join(line) + r" \\"
        for line in [[_latex(column.heading) for column in sheet.columns], *(map(_latex_cell, row) for row in rows)]
    ]
    lines = [
        r"% needs \usepackage{booktabs,graphicx}",
        r"\begin{table}",
        r"\centering",
        *([rf"\caption{{{_latex(sheet.title)}}}"] if sheet.title else []),
        FITTED + "{%",
        rf"\begin{{tabular}}{{{''.join(_places(sheet, rows))}}}",
        *(r"\toprule", heading, r"\midrule", *body, r"\bottomrule"),
        r"\end{tabular}%",
        "}",
        *(rf"\par{{\footnotesize {_latex(note)}}}" for note in notes),
        r"\end{table}",
    ]
    return "\n".join(lines) + "\n"


def _places(sheet: Sheet, rows: Sequence[Sequence[Shown]]) -> Iterator[str]:
    """How each column stands; sentences have lines."""
    for n, left in enumerate(on_the_left(sheet)):
        longest = max((len(row[n].text) for row in rows), default=0)
        yield r"p{.4\linewidth}" if left and longest > SENTENCE else "l" if left else "r"


def csv_text(sheet: Sheet) -> str:
    """RFC 4180, unrounded. A mean with an sd takes two columns, `NAME` and `NAME_sd`; footnotes are the last column."""
    rows = [[_plain(cell) for cell in row] for row in sheet.rows]
    wide = [1 + any(isinstance(row[n], Spread) for row in rows) for n in range(len(sheet.columns))]
    noted = any(isinstance(cell, Noted) for row in sheet.rows for cell in row)
    names = [name for c, count in zip(sheet.columns, wide, strict=True) for name in (c.name, f"{c.name}_sd")[:count]]
    page = io.StringIO()
    writer = csv.writer(page, lineterminator="\r\n")
    writer.writerow([*map(csv_cell, names), *(["notes"] if noted else [])])
    for given, row in zip(sheet.rows, rows, strict=True):
        values = [value for cell, count in zip(row, wide, strict=True) for value in _values(cell)[:count]]
        notes = "; ".join(note for cell in given if isinstance(cell, Noted) for note in cell.notes)
        writer.writerow([*map(csv_cell, values), *([csv_cell(notes)] if noted else [])])
    return page.getvalue()


def csv_cell(value: Any) -> str:
    """A value of a CSV file: numbers unrounded, nothing for None, words that no spreadsheet takes for a formula.

    Words keep tabs and line ends, which RFC 4180 allows; what else is invisible is escaped.
    """
    if not isinstance(value, str):
        return "" if value is None else str(value)
    text = visible(value, "\t\r\n")
    return f"'{text}" if FORMULA.match(text) else text


WRITERS: dict[str, Callable[[Sheet], str]] = {"markdown": markdown, "latex": latex, "csv": csv_text}


def on_the_left(sheet: Sheet) -> list[bool]:
    """Which columns are words; numbers stand on the right."""
    return [n == 0 or any(isinstance(_plain(row[n]), str) for row in sheet.rows) for n in range(len(sheet.columns))]


def write(sheets: Sequence[Sheet], how: str) -> str:
    """Some tables in one of WRITERS' formats, an empty line between two."""
    between = "\r\n" if how == "csv" else "\n"
    return between.join(WRITERS[how](sheet) for sheet in sheets)


def _rounded(value: float, column: Column) -> str:
    return str(value) if column.decimals is None else f"{value * column.scale:,.{column.decimals}f}"


def _plain(cell: Cell) -> Plain:
    return cell.cell if isinstance(cell, Noted) else cell


def _markdown(text: str) -> str:
    text = MARKDOWN.sub(r"\\\g<0>", visible(text))
    return "".join(ENTITIES.get(c, c) for c in text)


def _latex_cell(cell: Shown) -> str:
    text = cell.text if cell.is_words else cell.text.replace("-", "−")
    return _latex(text) + (rf"\textsuperscript{{{cell.mark}}}" if cell.mark else "")


def _latex(text: str) -> str:
    text = NOT_LATEX.sub(lambda found: " ".join(f"U+{ord(c):04X}" for c in found[0]), visible(text))
    return LIGATURES.sub(r"\1{}", "".join(LATEX.get(c, c) for c in text))


def _values(cell: Plain) -> tuple[Plain, Plain]:
    return (cell.mean, cell.sd) if isinstance(cell, Spread) else (cell, None)
