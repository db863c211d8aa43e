"""Plain columns and sentences. In a pipe, a line for each row; on a terminal, nothing is cut and no id is folded."""

from __future__ import annotations

import shutil
import sys
import textwrap
import unicodedata
from collections.abc import Sequence

GAP = 2


def width() -> int | None:
    """Columns of the terminal; None for a pipe, which has none."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def columns(rows: Sequence[Sequence[str]], most: int | None) -> list[str]:
    """Lines of a table, its heading first. Columns that do not fit into `most` go on in lines of their own below."""
    kept = [n for n in range(len(rows[0])) if any(row[n] for row in rows[1:])]  # an empty column says nothing
    widths = {n: max(cells(row[n]) for row in rows) for n in kept}
    groups = _groups(widths, most)
    lines = []
    for row in rows:
        for number, group in enumerate(groups):
            text = "".join(row[n] + " " * (widths[n] - cells(row[n]) + GAP) for n in group).rstrip()
            lines += _folded("    " + text if number else text, most)
    return lines


def sentence(text: str, most: int | None, indent: str = "") -> list[str]:
    """A text in lines of at most `most`; words are not broken, because a word may be an id or a command."""
    if most is None:
        return [indent + text]
    further = indent + "  "
    return textwrap.wrap(
        text, most, initial_indent=indent, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
    )


def cells(text: str) -> int:
    """How many columns a text takes: characters of Chinese, Japanese and Korean take two."""
    return len(text) + sum(unicodedata.east_asian_width(char) in "WF" for char in text if ord(char) > 0x10FF)


def _folded(line: str, most: int | None) -> list[str]:
    """One line, or several when a single cell is wider than the terminal."""
    if most is None or cells(line) <= most:
        return [line]
    return textwrap.wrap(line, most, subsequent_indent=" " * 6, break_long_words=False, break_on_hyphens=False)


def _groups(widths: dict[int, int], most: int | None) -> list[list[int]]:
    groups: list[list[int]] = [[]]
    used = 0
    for n, size in widths.items():
        if most is not None and groups[-1] and used + size > most:
            groups.append([])
            used = 4
        groups[-1].append(n)
        used += size + GAP
    return groups
