"""Commands about raymsa itself: what a job can say, and whether this machine is fit."""

from __future__ import annotations

from rich.table import Table

from raymsa.cli.base import json_option, main, print_json
from raymsa.cli.show import console
from raymsa.errors import RaymsaError


@main.command("kinds", short_help="All that a job file can say.")
@json_option
def kinds_command(as_json: bool) -> None:
    """Everything that can be named in a job file: fields, types, defaults, units."""
    from raymsa.kinds import kinds

    rows = kinds()
    if as_json:
        print_json([row._asdict() for row in rows])
        return
    table = Table("field", "of kind", "type", "default", "what it is", box=None, pad_edge=False)
    for row in rows:
        default = "(required)" if row.required else "" if row.default is None else str(row.default)
        table.add_row(row.field, row.kind, row.type, default, row.description)
    console().print(table, markup=False)


@main.command("doctor", short_help="Is this machine fit?")
@json_option
def doctor_command(as_json: bool) -> None:
    """Is this machine fit? Python, torch, GPU, bitsandbytes, Ray, disk, store, and what to do about each."""
    from raymsa.doctor import checks

    found = checks()
    if as_json:
        print_json([vars(check) for check in found])
    else:
        table = Table("check", "", "found", "what to do", box=None, pad_edge=False)
        for check in found:
            mark = {True: "ok", None: "note", False: "FAIL"}[check.ok]
            table.add_row(check.name, mark, check.found, check.advice)
        console().print(table, markup=False)
    if any(check.ok is False for check in found):
        raise RaymsaError("this machine is not fit yet: see the lines marked FAIL")
