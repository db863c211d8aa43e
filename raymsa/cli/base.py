"""The command group, and what commands share: options, printing, exit codes."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raymsa import __version__
from raymsa.errors import RaymsaError
from raymsa.home import store_url
from raymsa.words import for_json

if TYPE_CHECKING:
    from raymsa.store import Store

F = TypeVar("F", bound=Callable[..., Any])

COMMANDS = {  # name -> module of raymsa.cli; the order is that of the help page
    "submit": "jobs",
    "work": "jobs",
    "list": "show",
    "status": "show",
    "top": "watch",
    "logs": "show",
    "results": "show",
    "search": "search",
    "wait": "orders",
    "cancel": "orders",
    "pause": "orders",
    "resume": "jobs",
    "retry": "orders",
    "rm": "orders",
    "prepare": "data",
    "data": "look",
    "predict": "data",
    "store": "keep",
    "metrics": "watch",
    "kinds": "about",
    "doctor": "about",
}


class Commands(click.Group):
    """Commands imported when they are used; errors of ours end in one line and their exit code."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        import importlib

        module = importlib.import_module(f"raymsa.cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError:
            import difflib

            close = difflib.get_close_matches(args[0], COMMANDS, n=1)
            meant = f"; did you mean '{close[0]}'?" if close else f" (known: {', '.join(COMMANDS)})"
            raise click.UsageError(f"no such command '{args[0]}'{meant}", ctx) from None

    def invoke(self, ctx: click.Context) -> Any:
        warnings.filterwarnings("ignore")  # of libraries, about themselves; ours are words on stderr
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        try:
            return super().invoke(ctx)
        except RaymsaError as error:
            for line in str(error).splitlines():
                say(f"error: {line}")
            sys.exit(error.exit_code)
        except BrokenPipeError:  # `raymsa logs | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="raymsa")
def main() -> None:
    """Multimodal sentiment experiments with an omni-modal LLM, as job files."""


def store_option(command: F) -> F:
    """`--store URL`; the command gets `store_url`."""
    return click.option(
        "--store",
        "url",
        default=None,
        help="SQLAlchemy URL of the experiment store [default: RAYMSA_STORE, or store.db under RAYMSA_HOME].",
    )(command)


def json_option(command: F) -> F:
    """`--json`; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")(command)


def open_store(url: str | None, create: bool = False) -> Store:
    """The store a command reads or writes."""
    from raymsa.store import Store  # SQLAlchemy: most of the time that a quick command takes

    return Store.open(url or store_url(), create=create)


def say(line: str) -> None:
    """Words for a person, on stderr."""
    click.echo(line, err=True)


def print_json(value: Any) -> None:
    """Data for a program, on stdout; NaN is null, because JSON has none."""
    click.echo(json.dumps(for_json(value), indent=2, ensure_ascii=False, allow_nan=False, default=str))
