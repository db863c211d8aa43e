"""The command group, and what commands share: options, printing, exit codes."""

from __future__ import annotations

import functools
import logging
import math
import os
import sys
import time
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import click

from raymsa import __version__
from raymsa.errors import RaymsaError, StoreAway, UsageError
from raymsa.home import store_url
from raymsa.words import json_text, visible

if TYPE_CHECKING:
    from raymsa.store import Store

F = TypeVar("F", bound=Callable[..., Any])
T = TypeVar("T")
LOOK_S = 0.5  # between two looks at the store
WORDS = "raymsa.words"  # in click's context: the command line as it was typed

COMMANDS = {  # name -> module of raymsa.cli; the order is that of the help page
    "submit": "jobs",
    "work": "jobs",
    "list": "show",
    "status": "show",
    "top": "watch",
    "ui": "ui",
    "logs": "show",
    "results": "results",
    "compare": "compare",
    "search": "search",
    "report": "report",
    "wait": "orders",
    "cancel": "orders",
    "pause": "orders",
    "resume": "jobs",
    "retry": "orders",
    "rm": "orders",
    "estimate": "estimate",
    "prepare": "data",
    "data": "look",
    "predict": "data",
    "analyse": "analyse",
    "bench": "bench",
    "export": "elsewhere",
    "push": "elsewhere",
    "import": "elsewhere",
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

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[WORDS] = list(args)
        return super().parse_args(ctx, args)

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
            for line in str(error).split("\n"):
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


NOT_WITH_CLUSTER = {  # a command's parameter -> the option, and why not
    "url": ("--store", "the head has its own"),
    "address": ("--address", "the head has its own"),
    "notify": ("--notify", "give it to the `raymsa work` there, which sees the job end"),
    "plot": ("--plot", "the files would lie on the head"),
    "export": ("--export", "the file would lie on the head"),
    "literature": ("--literature", "the file would be looked for on the head"),
}
CLUSTER = click.option(
    "--cluster",
    metavar="URL",
    help="Do it on the head of a Ray cluster, in its store: http://HEAD:8265, its dashboard.",
)


def cluster_option(*always: str) -> Callable[[F], F]:
    """`--cluster URL`: the same words, and those of `always`, are said on a cluster's head instead of here."""

    def decorate(command: F) -> F:
        @functools.wraps(command)
        def here_or_there(*arguments: Any, cluster: str | None, **options: Any) -> Any:
            if cluster is None:
                return command(*arguments, **options)
            check_cluster(options)
            from raymsa import remote

            words = _without_cluster(click.get_current_context().meta[WORDS])
            live = bool(options.get("follow"))
            sys.exit(remote.run(cluster, [*words, *(w for w in always if w not in words)], out, complain, live=live))

        return CLUSTER(here_or_there)  # type: ignore[return-value]

    return decorate


def check_cluster(options: dict[str, Any]) -> None:
    """Raises UsageError for options that `--cluster` leaves no room for."""
    for name, (option, why) in NOT_WITH_CLUSTER.items():
        if options.get(name) is not None:
            raise UsageError(f"--cluster and {option} exclude each other: {why}")
    if options.get("yes") is False:
        raise UsageError("--cluster: nobody can be asked on the head; say --yes")


def _without_cluster(words: list[str]) -> list[str]:
    left = list(words)
    for at, word in enumerate(words):
        if word == "--cluster":
            return left[:at] + left[at + 2 :]
        if word.startswith("--cluster="):
            return left[:at] + left[at + 1 :]
    return left


def out(text: str) -> None:
    """What a command on a head printed, as it is."""
    click.echo(text, nl=False)


def complain(text: str) -> None:
    """The same of its stderr."""
    click.echo(text, nl=False, err=True)


def shards_option(command: F) -> F:
    """`--shards FOLDER`; the command gets `shards`."""
    return click.option(
        "--shards", metavar="FOLDER", help="Where the clips are, if not under RAYMSA_HOME; may be an address."
    )(command)


def json_option(command: F) -> F:
    """`--json`; the command gets `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print data as JSON on stdout.")(command)


def answered(ask: Callable[[], T], until: float = math.inf) -> T:
    """What the store says; one that does not answer is waited for, with a line, until a moment (monotonic clock).

    Raises StoreAway after that.
    """
    told = False
    while True:
        try:
            return ask()
        except StoreAway as error:
            if time.monotonic() > until:
                raise
            if not told:
                say(f"{error}; waiting for it")
            told = True
            time.sleep(LOOK_S)


def open_store(url: str | None, create: bool = False) -> Store:
    """The store a command reads or writes."""
    from raymsa.store import Store  # SQLAlchemy: most of the time that a quick command takes

    return Store.open(url or store_url(), create=create)


def say(line: str) -> None:
    """Words for a person, on stderr; those of others in it are text."""
    click.echo(visible(line), err=True)


def print_json(value: Any) -> None:
    """Data for a program, on stdout; NaN is null, because JSON has none."""
    click.echo(json_text(value))
