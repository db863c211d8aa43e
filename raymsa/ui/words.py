"""Templates and what they need: text of others shown as text, links, pieces of HTML from macros."""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from raymsa.report.rows import short

HERE = Path(__file__).parent
# Escapes of terminals and other invisible characters, as the pictures that Unicode has of them; line ends stay.
CONTROLS = {code: 0x2400 + code for code in range(32) if chr(code) not in "\n\t"} | {0x7F: 0x2421}
LONGEST = 60  # characters of a name in a table
MOST_ROWS = 200  # of a table at first: a browser takes a second to lay out a thousand


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
        "short": lambda text: short(str(text), LONGEST),
    }
    return made


def plain(text: Any) -> str:
    """A text of others without characters that act."""
    return str(text).translate(CONTROLS)


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


def pieces(template: str) -> Any:
    """The macros of a template, for many calls."""
    return environment().get_template(template).make_module()


def as_html(made: str) -> Markup:
    """Pieces are HTML already: what they were made of was escaped then."""
    return Markup(made)  # noqa: S704
