"""Ctrl-C and SIGTERM, which both ask for an end in order."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def on_stop(act: Callable[[], None]) -> Iterator[None]:
    """Calls `act` for every Ctrl-C and SIGTERM inside the block."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    old = {number: signal.signal(number, lambda *_: act()) for number in numbers}
    try:
        yield
    finally:
        for number, previous in old.items():
            signal.signal(number, previous)


@contextmanager
def on_ctrl_c(act: Callable[[], None]) -> Iterator[None]:
    """The first one calls `act`; a second one is Python's own KeyboardInterrupt."""
    asked: list[bool] = []

    def first_or_second() -> None:
        if asked:
            raise KeyboardInterrupt
        asked.append(True)
        act()

    with on_stop(first_or_second):
        yield
