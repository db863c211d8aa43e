"""`raymsa estimate`: would a job's runs fit into a card, and what would make them fit."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.table import Table

from raymsa.cli.base import json_option, main, print_json, say
from raymsa.cli.show import console
from raymsa.errors import NoRoom, UsageError

if TYPE_CHECKING:
    from raymsa.advice import Change
    from raymsa.estimate import Estimate, Estimator

GIB = 2**30


@main.command("estimate", short_help="Would it fit into a card?")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--gpu-memory", "gib", type=float, metavar="GIB", help="Memory of the card; says what would fit into it.")
@click.option("--set", "overrides", multiple=True, metavar="FIELD=VALUE", help="Change a field, e.g. lora.rank=16.")
@json_option
def estimate_command(file: Path, gib: float | None, overrides: tuple[str, ...], as_json: bool) -> None:
    """Predict the memory that each variant of a job needs, from its spec alone; nothing is loaded or downloaded.

    Exit code 104 when it does not fit into --gpu-memory.
    """
    if gib is not None and not 0 < gib < float("inf"):
        raise UsageError(f"--gpu-memory: given {gib:g}; give the card's memory in GiB, e.g. 12")
    from raymsa.advice import changes
    from raymsa.estimate import CONTEXT_BYTES, Estimator
    from raymsa.jobfile import load_job
    from raymsa.spec import runs

    job = load_job(file, list(overrides))
    specs = {run.variant: run.spec for run in runs(job) if run.seed == job.seeds[0]}
    estimators = {name: Estimator(spec) for name, spec in specs.items()}
    found = {name: estimators[name](spec) for name, spec in specs.items()}
    context = CONTEXT_BYTES if job.resources.gpus else 0
    room = None if gib is None else int(gib * GIB) - context
    tight = [] if room is None else [name for name, each in found.items() if each.peak > room]
    made: dict[str, list[Change]] = {}
    if not as_json:
        _show(estimators, found, context)
    for name in tight:
        assert room is not None
        say(f"{name}: estimating what would make it fit ...")
        made[name] = list(changes(specs[name], found[name], estimators[name], room))
        if not as_json:
            _show_changes(name, made[name], room, context)
    if as_json:
        print_json(_plain(estimators, found, made, context, room))
    if tight:
        raise NoRoom(_line(found[tight[0]], tight[0], made[tight[0]], context, room or 0))
    if gib is not None:
        say(f"fits into {gib:g} GiB")


def _show(estimators: dict[str, Estimator], found: dict[str, Estimate], context: int) -> None:
    table = Table("GiB", box=None, pad_edge=False)
    for name in found:
        table.add_column(name, justify="right")
    for part in dict.fromkeys(part for each in found.values() for part in each.lasting):
        _row(table, part, [each.lasting.get(part, 0) for each in found.values()])
    table.add_section()
    for what in dict.fromkeys(what for each in found.values() for what in each.peaks):
        _row(table, f"peak of {what}", [each.peaks[what].bytes if what in each.peaks else 0 for each in found.values()])
    _row(table, "peak", [each.peak for each in found.values()])
    if context:
        _row(table, "CUDA itself, not counted above: about", [context] * len(found))
    screen = console()
    screen.print(table)
    for name, each in found.items():
        where = max(each.peaks.values()).where
        passes = ", ".join(f"{what} {each.clips[what]} clips of {each.tokens[what]} tokens" for what in each.clips)
        screen.print(f"{name}: highest in the {where}; largest pass: {passes}", markup=False)
    for line in dict.fromkeys(line for each in estimators.values() for line in each.about):
        screen.print(line, markup=False)


def _row(table: Table, name: str, sizes: list[int]) -> None:
    if any(sizes):
        table.add_row(name, *(f"{size / GIB:.2f}" for size in sizes))


def _show_changes(name: str, made: list[Change], room: int, context: int) -> None:
    table = Table(f"{name} with", "GiB in all", "fits", box=None, pad_edge=False)
    for change in made:
        fits = "yes" if change.bytes <= room else "no"
        table.add_row(_written(change.settings), f"{(change.bytes + context) / GIB:.2f}", fits)
    console().print(table, markup=False)


def _written(settings: dict[str, Any]) -> str:
    return " ".join(f"--set {field}={_value(value)}" for field, value in settings.items())


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{','.join(value)}]" if isinstance(value, list) else str(value)


def _line(found: Estimate, name: str, made: list[Change], context: int, room: int) -> str:
    fitting = next((change for change in made if change.bytes <= room), None)
    way = f"it would with {_written(fitting.settings)}" if fitting else "nor would any of the settings tried"
    needs, has = (found.peak + context) / GIB, (room + context) / GIB
    return f"{name} needs {needs:.2f} GiB and does not fit into {has:g} GiB; {way}"


def _plain(
    estimators: dict[str, Estimator],
    found: dict[str, Estimate],
    made: dict[str, list[Change]],
    context: int,
    room: int | None,
) -> dict[str, Any]:
    return {
        "context_bytes": context,
        "variants": {
            name: {
                "peak_bytes": each.peak,
                "fits": None if room is None else each.peak <= room,
                "lasting_bytes": each.lasting,
                "peaks": {what: peak._asdict() for what, peak in each.peaks.items()},
                "largest_pass_clips": each.clips,
                "largest_pass_tokens": each.tokens,
                "assumed": estimators[name].about,
                "changes": [
                    {"settings": change.settings, "peak_bytes": change.bytes, "fits": change.bytes <= (room or 0)}
                    for change in made.get(name, [])
                ],
            }
            for name, each in found.items()
        },
    }
