"""Doing the next piece of work in a thread while this one is used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
END = object()


def ahead(source: Iterator[T], depth: int = 2) -> Iterator[T]:
    """The same items in the same order, made up to `depth` in advance; errors of the source arrive in their place."""
    made: queue.Queue[object] = queue.Queue(maxsize=depth)
    stop = threading.Event()

    def put(item: object) -> None:
        while not stop.is_set():
            with suppress(queue.Full):
                made.put(item, timeout=0.1)
                return

    def work() -> None:
        try:
            for item in source:
                put(item)
                if stop.is_set():
                    return
            put(END)
        except BaseException as error:
            put(error)

    threading.Thread(target=work, daemon=True, name="raymsa-ahead").start()
    try:
        while (item := made.get()) is not END:
            if isinstance(item, BaseException):
                raise item
            yield item  # type: ignore[misc]
    finally:
        stop.set()
