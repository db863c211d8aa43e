"""What changes on a page, sent to all who watch it. However many they are, the store is asked once for each look.

A look gives a page as named pieces of HTML. A feed keeps them with the number of the look in which each last changed,
so what is sent is what a browser does not have yet, and nothing waits in a queue for one that is slow.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from raymsa.errors import NotFound, RaymsaError, StoreError, UsageError
from raymsa.ui.source import in_thread

EVERY_S = 1.0  # between two looks
SHARE = 4.0  # a look that takes t seconds is followed by a rest of SHARE * t: a large job takes no whole core
PATIENCE_S = 3.0  # then the page says that the store does not answer
HEARTBEAT_S = 15.0  # a line for whoever holds the connection in between
DIGITS = 16  # of a version at most
FEEDS = 32  # kept although nobody watches
AWAY = "away"  # the piece that says why a page is older than it should be
STORE, GONE, BROKEN = "The store is away.", "It is not there.", "This page cannot be made."


@dataclass(frozen=True)
class Seen:
    """A page at one moment: `facts` for its frame, pieces by the id of their element, rows of tables by their own."""

    title: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, Mapping[str, str]] = field(default_factory=dict)


Look = Callable[[], Seen]


class Feed:
    """One page, looked at while somebody watches."""

    def __init__(self, look: Look, words_away: Callable[[str, str], str]) -> None:
        self._look, self._words_away = look, words_away
        self.seen: Seen | None = None
        self.error: RaymsaError | None = None  # there is no such job or run, or several fit
        self.away = ""  # HTML
        self.watchers = 0
        self._name = secrets.token_hex(4)  # versions of an earlier process are not ours
        self._version = 0
        self._pieces: dict[tuple[str, str], tuple[int, str]] = {}
        self._changed = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._polling: asyncio.Task[None] | None = None
        self._looked_at = -1e9
        self._took = 0.0
        self._since = ""

    @property
    def version(self) -> str:
        """What a browser that got the page now has seen."""
        return f"{self._name}.{self._version}"

    async def fresh(self) -> None:
        """A look, unless there was one just now; not waited for longer than PATIENCE_S."""
        if time.monotonic() - self._looked_at > EVERY_S:
            await self._try()

    async def changes(self, since: str) -> AsyncIterator[str]:
        """Server-sent events from a version on, for ever."""
        name, _, number = since.partition(".")
        version = int(number) if name == self._name and number.isdecimal() and len(number) < DIGITS else 0
        self.watchers += 1
        if self._polling is None:
            self._polling = asyncio.create_task(self._poll())
        try:
            yield "retry: 2000\n\n"
            while True:
                changed = self._changed
                if self._version > version:
                    event, version = self._event(version), self._version  # before it waits for a slow one
                    yield event
                try:
                    await asyncio.wait_for(changed.wait(), HEARTBEAT_S)
                except TimeoutError:
                    yield ": still here\n\n"
        finally:
            self.watchers -= 1

    async def _poll(self) -> None:
        try:
            while self.watchers:
                await self._try()
                if self._looking is not None:  # it waits for the store, and so do we
                    await asyncio.wait({self._looking})
                await asyncio.sleep(max(EVERY_S, SHARE * self._took))
        finally:
            self._polling = None

    async def _try(self) -> None:
        if self._looking is None:
            self._looking = asyncio.create_task(self._look_once())
        await asyncio.wait({self._looking}, timeout=PATIENCE_S)
        if self._looking is not None:
            self._say_away(STORE, "it has not answered yet")

    async def _look_once(self) -> None:
        begun = time.monotonic()
        try:
            self._take(await in_thread(self._look))
        except (NotFound, UsageError) as error:
            self.error = error
            self._say_away(GONE, str(error))
        except StoreError as error:
            self._say_away(STORE, str(error))
        except Exception as error:
            self._say_away(BROKEN, f"{type(error).__name__}: {error}")
            raise  # to be logged: it is a fault of ours
        finally:
            self._looked_at = time.monotonic()
            self._took = 0.0 if self.away else self._looked_at - begun  # what was waited for a store is no work
            self._looking = None

    def _take(self, seen: Seen) -> None:
        self.away = self._since = ""
        self.error = None
        pieces = {("parts", name): html for name, html in {**seen.parts, AWAY: ""}.items()}
        for table, rows in seen.tables.items():
            pieces |= {("rows", f"{table}.{name}"): html for name, html in rows.items()}
            pieces["order", table] = json.dumps([f"{table}.{name}" for name in rows])
        self.seen = seen
        self._put(pieces)

    def _say_away(self, lead: str, why: str) -> None:
        self._since = self._since or time.strftime("%H:%M:%S")
        self.away = self._words_away(lead, f"Since {self._since}: {why}")
        self._put({**self._kept(), ("parts", AWAY): self.away})

    def _kept(self) -> dict[tuple[str, str], str]:
        return {name: html for name, (_, html) in self._pieces.items()}

    def _put(self, pieces: Mapping[tuple[str, str], str]) -> None:
        before = self._pieces
        changed = any(name not in before or before[name][1] != html for name, html in pieces.items())
        if not changed and len(before) == len(pieces):
            return
        self._version += 1
        self._pieces = {
            name: before[name] if name in before and before[name][1] == html else (self._version, html)
            for name, html in pieces.items()
        }
        self._changed.set()
        self._changed = asyncio.Event()

    def _event(self, since: int) -> str:
        """All that changed after a version, as one event."""
        news: dict[str, dict[str, Any]] = {}
        for (kind, name), (version, html) in self._pieces.items():
            if version > since:
                news.setdefault(kind, {})[name] = json.loads(html) if kind == "order" else html
        return f"id: {self.version}\ndata: {json.dumps({'ready': self.seen is not None, **news})}\n\n"


class Hub:
    """The feeds of all pages that somebody has open, one for each address."""

    def __init__(self, words_away: Callable[[str, str], str]) -> None:
        self._words_away = words_away
        self._feeds: OrderedDict[str, Feed] = OrderedDict()

    def feed(self, address: str, look: Look) -> Feed:
        """The feed of an address; those that nobody watches are forgotten, the oldest first."""
        found = self._feeds.get(address) or Feed(look, self._words_away)
        self._feeds[address] = found
        self._feeds.move_to_end(address)
        idle = [key for key, feed in self._feeds.items() if not feed.watchers and feed is not found]
        for key in idle[: max(0, len(self._feeds) - FEEDS)]:
            del self._feeds[key]
        return found

    def __len__(self) -> int:
        return len(self._feeds)
