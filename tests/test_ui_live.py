"""News: one look for all who watch, only what changed, and a store that goes and comes."""

import asyncio
import json
import threading
import time

import pytest

from raymsa.errors import NotFound, StoreAway
from raymsa.store import Store
from raymsa.ui import live
from raymsa.ui.live import Feed, Hub, Seen
from raymsa.ui.source import Source, in_thread
from tests.stores import NO_POSTGRESQL, put
from tests.ui_site import HOSTILE


@pytest.fixture(autouse=True)
def quick(monkeypatch) -> None:
    monkeypatch.setattr(live, "EVERY_S", 0.02)
    monkeypatch.setattr(live, "PATIENCE_S", 60)  # a busy machine is no store that is away
    monkeypatch.setattr(live, "SHARE", 0.0)


class Page:
    """A page that shows a number, and counts who looks."""

    def __init__(self) -> None:
        self.value, self.looks, self.error = "1", 0, None
        self.rows = {"a": "A"}
        self.free = threading.Event()
        self.free.set()

    def __call__(self) -> Seen:
        self.looks += 1
        self.free.wait(20)
        if self.error is not None:
            raise self.error
        return Seen("page", {}, {"value": self.value, "same": "x"}, {"table": dict(self.rows)})


def feed(page: Page) -> Feed:
    return Feed(page, lambda lead, words: f"{lead} {words}")


async def news(events, limit_s: float = 10) -> dict:
    """The next event that says something."""
    while True:
        event = await asyncio.wait_for(anext(events), limit_s)
        if "data: " in event:
            return {"id": event.split("id: ")[1].split("\n")[0], **json.loads(event.split("data: ")[1])}


def test_many_watchers_are_one_look_and_get_the_same() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        watchers = [shared.changes("") for _ in range(50)]
        first = await asyncio.gather(*map(news, watchers))
        assert all(one["parts"] == {"value": "1", "same": "x", "away": ""} for one in first)
        begun, looks = time.monotonic(), page.looks
        page.value = "2"
        second = await asyncio.gather(*map(news, watchers))
        assert all(one["parts"] == {"value": "2"} for one in second)
        assert page.looks - looks <= (time.monotonic() - begun) / live.EVERY_S + 2
        await asyncio.gather(*(watcher.aclose() for watcher in watchers))

    asyncio.run(main())


def test_nobody_looks_when_nobody_watches() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        events = shared.changes("")
        await news(events)
        await events.aclose()
        assert shared.watchers == 0
        while shared._polling is not None:
            await asyncio.sleep(0.01)
        looks = page.looks
        await asyncio.sleep(0.3)
        assert page.looks == looks
        page.value = "later"
        again = shared.changes("")
        while (await news(again))["parts"].get("value") != "later":
            pass
        await again.aclose()

    asyncio.run(main())


def test_a_page_that_was_just_made_hears_only_what_is_new_and_one_of_another_process_all() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        await shared.fresh()
        known, other = shared.changes(shared.version), shared.changes("other.7")
        assert set((await news(other))["parts"]) == {"value", "same", "away"}
        page.value = "2"
        assert (await news(known))["parts"] == {"value": "2"}
        await known.aclose()
        await other.aclose()

    asyncio.run(main())


def test_one_who_was_slow_gets_everything_since_in_one_event() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        slow, quick = shared.changes(""), shared.changes("")
        await news(slow)
        await news(quick)
        page.value = "2"
        await news(quick)
        page.rows = {"b": "B", "a": "A"}
        await news(quick)
        page.value = "3"
        await news(quick)
        got = await news(slow)
        assert got["parts"] == {"value": "3"}
        assert got["rows"] == {"table.b": "B"}
        assert got["order"] == {"table": ["table.b", "table.a"]}
        await slow.aclose()
        await quick.aclose()

    asyncio.run(main())


def test_rows_that_are_gone_are_missing_in_the_order() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        events = shared.changes("")
        await news(events)
        page.rows = {}
        got = await news(events)
        assert got["order"] == {"table": []}
        assert "rows" not in got
        await events.aclose()

    asyncio.run(main())


def test_a_store_that_is_away_is_said_and_what_was_seen_stays() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        events = shared.changes("")
        await news(events)
        page.error = StoreAway("the server is down")
        got = await news(events)
        assert got["parts"]["away"].startswith("The store is away. Since ")
        assert got["parts"]["away"].endswith("the server is down")
        assert shared.seen is not None
        page.error, page.value = None, "back"
        assert (await news(events))["parts"] == {"value": "back", "away": ""}
        await events.aclose()

    asyncio.run(main())


def test_a_store_that_does_not_answer_is_said_soon_and_asked_once(monkeypatch) -> None:
    monkeypatch.setattr(live, "PATIENCE_S", 0.2)

    async def main() -> None:
        page = Page()
        page.free.clear()
        shared = feed(page)
        begun = time.monotonic()
        await asyncio.gather(*(shared.fresh() for _ in range(20)))
        assert time.monotonic() - begun < 5
        assert "not answered" in shared.away
        events = shared.changes("")
        assert (await news(events))["ready"] is False
        assert page.looks == 1
        page.free.set()
        got = await news(events)
        assert got["ready"] is True
        assert got["parts"]["away"] == ""
        await events.aclose()

    asyncio.run(main())


def test_a_job_that_was_removed_and_a_page_that_breaks_end_nothing() -> None:
    async def main() -> None:
        page = Page()
        shared = feed(page)
        events = shared.changes("")
        await news(events)
        page.error = NotFound("it was removed")
        assert "it was removed" in (await news(events))["parts"]["away"]
        page.error = None
        await news(events)
        assert shared.error is None
        await events.aclose()

    asyncio.run(main())


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
def test_hostile_text_never_ends_an_event(text) -> None:
    async def main() -> None:
        page = Page()
        page.value = text
        events = feed(page).changes("")
        while "data: " not in (event := await anext(events)):
            pass
        head, data, *end = event.split("\n")
        assert head.startswith("id: ")
        assert end == ["", ""]
        assert "\r" not in event
        assert json.loads(data.removeprefix("data: "))["parts"]["value"] == text
        await events.aclose()

    asyncio.run(main())


def test_a_hub_keeps_a_bounded_number_of_pages_and_those_that_are_watched(monkeypatch) -> None:
    monkeypatch.setattr(live, "FEEDS", 3)

    async def main() -> None:
        hub = Hub(lambda lead, words: words)
        first = hub.feed("/watched", Page())
        events = first.changes("")
        await news(events)
        for number in range(20):
            hub.feed(f"/{number}", Page())
        assert len(hub) <= 4
        assert hub.feed("/watched", Page()) is first
        await events.aclose()

    asyncio.run(main())


def test_work_in_a_thread_gives_its_result_or_its_error_and_holds_nobody_up() -> None:
    async def main() -> None:
        assert await in_thread(lambda: 5) == 5
        with pytest.raises(StoreAway):
            await in_thread(lambda: (_ for _ in ()).throw(StoreAway("x")))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(in_thread(lambda: time.sleep(30)), 0.05)

    begun = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - begun < 10


def test_a_store_that_is_removed_and_made_anew_is_opened_anew(tmp_path) -> None:
    path = tmp_path / "store.db"
    source = Source(f"sqlite:///{path}")
    with pytest.raises(StoreAway, match="nothing was submitted"):
        source.store()
    for _ in range(2):
        with Store.open(str(path)) as store:
            job_id = put(store)
        from raymsa.store import queries

        assert [job.id for job in queries.jobs(source.store())] == [job_id]
        for leftover in tmp_path.glob("store.db*"):
            leftover.unlink()
        with pytest.raises(StoreAway):
            source.store()


@pytest.mark.skipif(bool(NO_POSTGRESQL), reason=NO_POSTGRESQL)
def test_a_postgresql_server_that_goes_and_comes_is_followed() -> None:
    from raymsa.store import queries
    from tests import postgres

    with postgres.server() as server, postgres.database(server.url()) as url:
        with Store.open(url) as store:
            job_id = put(store)
        source = Source(url)

        def look() -> Seen:
            return Seen("jobs", {}, {"jobs": ",".join(job.id for job in queries.jobs(source.store()))})

        async def main() -> None:
            events = Feed(look, lambda lead, words: words).changes("")
            assert (await news(events, 60))["parts"]["jobs"] == job_id
            server.stop()
            assert "Since" in (await news(events, 60))["parts"]["away"]
            server.start()
            while (await news(events, 60))["parts"].get("away") != "":
                pass
            await events.aclose()

        asyncio.run(main())
        source.store().close()
