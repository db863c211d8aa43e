"""What takes longer to make than a page may wait for: made in the background, and kept until it would be another."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Hashable
from contextlib import suppress
from threading import Lock, Thread
from typing import Generic, TypeVar

from raymsa.errors import NotFound, StoreError

T = TypeVar("T")
PATIENCE_S = 0.3  # a page is not kept waiting longer
MOST = 8  # kept


class Kept(Generic[T]):
    """Things by key, each of a version; one is made at a time. What could not be made is what `failed` says of it."""

    def __init__(self, failed: Callable[[Exception], T]) -> None:
        self._failed = failed
        self._made: OrderedDict[Hashable, tuple[Hashable, T]] = OrderedDict()
        self._making = Lock()

    def of(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> T | None:
        """The thing; while it is being made, that of an earlier version, or None."""
        made = self._made.get(key)
        if (made is None or made[0] != version) and self._making.acquire(blocking=False):  # else the next look asks
            thread = Thread(target=self._make, args=(key, version, make), daemon=True, name="raymsa-ui-making")
            thread.start()
            thread.join(PATIENCE_S)
            made = self._made.get(key)
        return None if made is None else made[1]

    def _make(self, key: Hashable, version: Hashable, make: Callable[[], T]) -> None:
        try:
            with suppress(StoreError, NotFound):  # the next look asks again
                self._made[key] = (version, self._made_or_failed(make))
                self._made.move_to_end(key)
            while len(self._made) > MOST:
                self._made.popitem(last=False)
        finally:
            self._making.release()

    def _made_or_failed(self, make: Callable[[], T]) -> T:
        """A fault of ours is said, and not tried again until there is another version: it would be the same one."""
        try:
            return make()
        except (StoreError, NotFound):
            raise
        except Exception as error:
            logging.getLogger(__name__).exception("a part of a page cannot be made")
            return self._failed(error)
