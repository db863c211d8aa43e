"""How far a prepare is: a bar on a terminal, lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

FIRST_LINE_S, MOST_S = 2.0, 30.0  # between lines: often at first, seldom in a job of hours


class Count(NamedTuple):
    """Clips done, of how many, and how many of the done ones were rejected."""

    clips: int
    total: int
    rejects: int


Say = Callable[[str], None]
Progress = Callable[[Count], None]


class Rate:
    """Clips per second, from the first clip that was seen to be done: starting up says nothing about the rate."""

    def __init__(self) -> None:
        self._began: tuple[float, int] | None = None
        self._before: int | None = None

    def __call__(self, clips: int) -> float | None:
        """None as long as there is nothing to go by."""
        now = time.monotonic()
        if self._before is None:
            self._before = clips  # of an earlier call
        if self._began is None:
            self._began = (now, clips) if clips > self._before else None
            return None
        since, first = self._began
        return (clips - first) / (now - since) if clips > first else None


class Lines:
    """Progress as lines, through `say`."""

    def __init__(self, say: Say) -> None:
        self._say, self._rate, self._wait_s = say, Rate(), FIRST_LINE_S
        self._said = time.monotonic()

    def __call__(self, count: Count) -> None:
        rate = self._rate(count.clips)
        if time.monotonic() - self._said < self._wait_s or count.clips == count.total:
            return
        self._said, self._wait_s = time.monotonic(), min(MOST_S, self._wait_s * 1.25)
        speed = f", {rate:.1f} clips/s, {_left((count.total - count.clips) / rate)} left" if rate else ""
        self._say(f"{count.clips} of {count.total} clips{speed}, {count.rejects} rejected")


@contextmanager
def shown(say: Say) -> Iterator[tuple[Say, Progress]]:
    """How to say a line and how to show progress: a bar when stderr is a terminal, else `say` for both."""
    if not sys.stderr.isatty():
        yield say, Lines(say)
        return
    with _bar() as bar:
        task = bar.add_task("", total=None, visible=False, speed="", rejects=0)
        rate = Rate()

        def show(count: Count) -> None:
            now = rate(count.clips)
            bar.update(
                task, completed=count.clips, total=count.total, visible=True, rejects=count.rejects,
                speed=f"{now:.1f} clips/s, {_left((count.total - count.clips) / now)} left" if now else "starting",
            )  # fmt: skip

        yield lambda line: bar.console.print(line, markup=False, highlight=False, soft_wrap=True), show


def _bar() -> Any:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[speed]}, {task.fields[rejects]} rejected"))
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _left(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
