"""The store as the page looks at it: it may be away, and come back, while the page stays."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from raymsa.errors import NotFound, StoreAway
from raymsa.store import Store
from raymsa.store.engine import shown

T = TypeVar("T")


class Source:
    """Opens the store when somebody looks, only to read."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._lock = threading.Lock()
        self._store: Store | None = None
        self._file: tuple[int, int] | None = None

    @property
    def words(self) -> str:
        """Which store it is, without a password."""
        return shown(self.url)

    def store(self) -> Store:
        """The open store. Raises StoreError, StoreAway also when there is none yet or none any more."""
        with self._lock:
            if self._store is not None and self._file != _file(self._store):  # removed, or another in its place
                self._store.close()
                self._store = None
            if self._store is None:
                try:
                    self._store = Store.open(self.url, create=False)
                except NotFound as error:
                    raise StoreAway(str(error)) from None
                self._store.only_read()
                self._file = _file(self._store)
            return self._store


def _file(store: Store) -> tuple[int, int] | None:
    """Which file this is; an open one can be read long after it was removed. None of a server."""
    if store.engine.dialect.name != "sqlite":
        return None
    try:
        found = Path(str(store.engine.url.database)).stat()
    except OSError:
        return (0, 0)
    return found.st_dev, found.st_ino


async def in_thread(work: Callable[[], T]) -> T:
    """What `work` gives, in a thread that ends with the process: one that waits for a store must not hold us up."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():  # nobody waits for it any more
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def run() -> None:
        result, error = None, None
        try:
            result = work()
        except BaseException as raised:
            error = raised
        with suppress(RuntimeError):  # the loop is closed: the page has ended
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=run, daemon=True, name="raymsa-ui").start()
    return await future
