"""Doing the next piece of work in a thread while this one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from typing import TypeVar

T = TypeVar("T")
END = object()


def ahead(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, `depth` of them made in advance; errors of the source arrive in their place."""
    made: queue.Queue[object] = queue.Queue()
    room = threading.Semaphore(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            while room.acquire() and not stop.is_set():
                made.put(next(source, END))
        except BaseException as error:
            made.put(error)

    threading.Thread(target=work, daemon=True, name="raymsa-ahead").start()
    try:
        while (item := made.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            room.release()
            yield item  # type: ignore[misc]
            del item  # it may be large, and the next one is already being waited for
    finally:
        stop.set()
        room.release()
