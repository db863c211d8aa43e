"""Commands that look at the whole queue from outside: top, metrics."""

from __future__ import annotations

import select
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import click

from raymsa.cli.base import main, open_store, store_option
from raymsa.cli.columns import columns, sentence, width
from raymsa.errors import StoreError

if TYPE_CHECKING:
    from raymsa.report.top import Frame
    from raymsa.store import Store

EVERY_S = 1.0
WIDE = 120  # columns from which on there is room for bars
Lines = list[tuple[str, str]]  # (text, style)


@main.command("metrics", short_help="The queue as Prometheus text.")
@store_option
def metrics_command(url: str | None) -> None:
    """Print tasks, jobs, running trainings, waiting and device time in Prometheus' text format."""
    from raymsa.gauges import text

    click.echo(text(open_store(url)).decode(), nl=False)


@main.command("top", short_help="A live view of the queue and the GPUs.")
@click.option("--once", is_flag=True, help="Print one frame and end; so without a terminal.")
@store_option
def top_command(once: bool, url: str | None) -> None:
    """The queue, what runs where, drivers and this machine's GPUs, every second; q or Ctrl-C ends."""
    from raymsa.report.top import frame

    store = open_store(url)
    if once or not sys.stdout.isatty():
        click.echo("\n".join(line for line, _ in draw(frame(store), str(store), "", width())))
        return
    try:
        _live(store)
    except KeyboardInterrupt:
        return


def draw(found: Frame, store: str, away: str, most: int | None) -> Lines:
    """One frame as lines of at most `most` columns; no id is cut."""
    from raymsa.report import rows

    lines: Lines = [(line, "bold") for line in sentence(f"raymsa top  {time.strftime('%H:%M:%S')}  {store}", most)]
    lines += [(line, "bold red") for line in sentence(away, most)] if away else []
    for noun, counted in (("tasks", found.tasks), ("jobs", found.jobs)):
        lines += [(line, "") for line in sentence(f"{noun}: {rows.counts(counted)}", most)]
    lines += _table("running", rows.running(found), most, "nothing runs")
    if found.runs:
        lines += _table("runs", rows.training(found, bar=most is None or most >= WIDE), most, "")
    lines += _table("next", rows.next_tasks(found), most, "nothing is ready to start")
    lines += _table("drivers", rows.drivers(found), most, rows.no_driver(found))
    lines += _table("GPUs of this machine", [rows.GPU_HEADING, *found.gpus], most, found.no_gpus)
    return lines


def _table(title: str, table: list[tuple[str, ...]], most: int | None, empty: str) -> Lines:
    if len(table) == 1:
        return [("", ""), *((line, "") for line in sentence(f"{title}: {empty}", most))]
    made = columns(table, most)
    return [("", ""), (title, "bold"), *((line, "dim" if n == 0 else "") for n, line in enumerate(made))]


class Watch(threading.Thread):
    """Looks at the store every second, beside the screen: a store that does not answer must not stop the keys."""

    def __init__(self, store: Store) -> None:
        super().__init__(daemon=True, name="raymsa-top")
        self._store = store
        self._over = threading.Event()
        self.frame: Frame | None = None
        self.away = ""

    def run(self) -> None:
        """Until `stop`."""
        from raymsa.report.top import frame

        since = ""
        while not self._over.is_set():
            try:
                self.frame = frame(self._store)
                since = self.away = ""
            except StoreError as error:
                since = since or time.strftime("%H:%M:%S")
                self.away = f"the store is away since {since}, what follows is older: {error}"
            self._over.wait(EVERY_S)

    def stop(self) -> None:
        """Look no more; a look that waits for the store is left behind."""
        self._over.set()


def _live(store: Store) -> None:
    from rich.console import Console
    from rich.live import Live
    from rich.text import Text

    watch = Watch(store)
    watch.start()
    with Live(console=Console(highlight=False), screen=True, auto_refresh=False) as screen, _keys() as pressed:
        while True:
            size = shutil.get_terminal_size()
            if watch.frame is not None:
                lines = draw(watch.frame, str(store), watch.away, size.columns)
            else:
                lines = [(watch.away or f"looking at {store}", "")]
            shown = Text("\n").join(Text(line, style) for line, style in _as_tall(lines, size.lines - 1))
            screen.update(shown, refresh=True)
            if pressed(EVERY_S) in ("q", "Q"):
                return


def _as_tall(lines: Lines, most: int) -> Lines:
    if len(lines) <= most:
        return lines
    return [*lines[: most - 1], (f"({len(lines) - most + 1} more lines; a taller window shows them)", "dim")]


@contextmanager
def _keys() -> Iterator[Callable[[float], str]]:
    """Gives `pressed(seconds)`: the key that was pressed meanwhile, or an empty text."""
    if not sys.stdin.isatty():
        yield _no_key
        return
    import termios
    import tty

    before = termios.tcgetattr(sys.stdin)
    try:
        tty.setcbreak(sys.stdin)
        yield _key
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _key(seconds: float) -> str:
    ready, _, _ = select.select([sys.stdin], [], [], seconds)
    return sys.stdin.read(1) if ready else ""


def _no_key(seconds: float) -> str:
    time.sleep(seconds)
    return ""
