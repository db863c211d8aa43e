"""The application: addresses and what answers there, and the server around it until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp

from raymsa.errors import NotFound, RaymsaError, UsageError
from raymsa.signals import on_stop
from raymsa.store import Store, queries
from raymsa.ui import compare, groups, logs, pages, reports
from raymsa.ui.live import AWAY, Feed, Hub, Look, Seen
from raymsa.ui.security import REPORT, Door, Guard, is_loopback
from raymsa.ui.source import Source, in_thread
from raymsa.ui.words import HERE, as_html, page, piece

Ask = Callable[[Request], Callable[[Store], Seen]]
LIVE = "/live"  # before the address of a page: its news
EVENTS = "text/event-stream"
ANYWHERE = ("0.0.0.0", "::", "")  # noqa: S104 (what listens everywhere)


class Site:
    """The pages over one store."""

    def __init__(self, url: str, reports: Path) -> None:
        self.source = Source(url)
        self.known = pages.Known(reports)
        self.hub = Hub(lambda lead, words: piece("away.html", "away", lead, words))

    def app(self) -> Starlette:
        """Every address there is; all of them only read."""
        shown: list[tuple[str, str, str, Ask]] = [
            ("/", "queue.html", "queue", lambda request: pages.queue),
            ("/jobs", "jobs.html", "jobs", self._jobs),
            ("/jobs/{name}", "job.html", "jobs", self._one(pages.job)),
            ("/runs/{name:path}", "run.html", "jobs", self._one(pages.run)),
            ("/groups", "groups.html", "groups", lambda request: self._groups),
            ("/compare", "compare.html", "groups", self._compare),
            ("/logs/{kind}/{name:path}", "log.html", "jobs", self._log),
        ]
        routes: list[Any] = [Route("/reports/{job}/{path:path}", self._report)]
        for path, template, section, ask in shown:
            routes.append(Route(LIVE + path, partial(self._news, ask)))
            routes.append(Route(path, partial(self._page, template, section, ask)))
        routes.append(Route("/favicon.ico", self._icon))  # a browser asks for it on a page that names none: a report
        routes.append(Mount("/static", StaticFiles(directory=HERE / "static")))
        routes.append(Route("/{path:path}", self._nothing))
        return Starlette(routes=routes)

    async def _page(self, template: str, section: str, ask: Ask, request: Request) -> Response:
        if request.path_params.get("kind") and request.query_params.get("whole"):
            return await self._whole_log(request)
        feed = self._feed(ask, request)
        await feed.fresh()
        if feed.error is not None:
            return self._message(404, "There is no such thing", str(feed.error))
        seen = feed.seen
        if seen is None:
            parts = {AWAY: feed.away}
            return self._message(503, "The store is away", "", again=True, parts=parts, live_at=_live_at(request))
        parts = {name: as_html(html) for name, html in {**seen.parts, AWAY: feed.away}.items()}
        tables = {name: {k: as_html(v) for k, v in rows.items()} for name, rows in seen.tables.items()}
        live = {"live_at": _live_at(request), "version": feed.version, "section": section}
        shown = {"title": seen.title, "facts": seen.facts, "parts": parts, "tables": tables}
        return HTMLResponse(page(template, store=self._words(), **live, **shown))

    async def _news(self, ask: Ask, request: Request) -> Response:
        if request.method == "HEAD":  # it has no end
            return Response(media_type=EVENTS)
        feed = self._feed(ask, request)
        since = request.headers.get("last-event-id") or request.query_params.get("since", "")
        return StreamingResponse(_until_gone(feed, since, request), media_type=EVENTS)

    def _feed(self, ask: Ask, request: Request) -> Feed:
        look = ask(request)
        query = "&".join(f"{k}={v}" for k, v in sorted(request.query_params.multi_items()) if k != "since")
        address = f"{request.url.path.removeprefix(LIVE) or '/'}?{query}"
        return self.hub.feed(address, self._looking(look))

    def _looking(self, look: Callable[[Store], Seen]) -> Look:
        return lambda: look(self.source.store())

    def _jobs(self, request: Request) -> Callable[[Store], Seen]:
        name, owner, state = (request.query_params.get(key, "").strip() for key in ("name", "owner", "state"))
        number = request.query_params.get("page", "1")
        at = int(number) if number.isascii() and number.isdecimal() and len(number) < 7 else 1
        return partial(pages.jobs, name=name, owner=owner, state=state, number=max(1, at))

    def _one(self, look: Callable[[Store, str, pages.Known], Seen]) -> Ask:
        return lambda request: partial(look, name=request.path_params["name"], known=self.known)  # type: ignore[call-arg]

    def _groups(self, store: Store) -> Seen:
        return groups.groups(store, self.known.groups)

    def _compare(self, request: Request) -> Callable[[Store], Seen]:
        runs, groups = (tuple(request.query_params.getlist(name)) for name in ("run", "group"))
        return partial(compare.compare, runs=runs, groups=groups, known=self.known)

    def _log(self, request: Request) -> Callable[[Store], Seen]:
        return partial(logs.log, kind=request.path_params["kind"], name=request.path_params["name"])

    async def _whole_log(self, request: Request) -> Response:
        asked = request.path_params

        def found() -> Path:
            return logs.log_of(self.source.store(), asked["kind"], asked["name"])[1]

        path = await self._asked(found)
        if isinstance(path, Response):
            return path
        if not logs.is_ours(path) or not path.is_file():
            return self._message(404, "There is no such thing", "Nothing was logged here.")
        return FileResponse(path, media_type="text/plain; charset=utf-8")

    async def _report(self, request: Request) -> Response:
        asked = request.path_params

        def found() -> Path | None:
            return reports.folder_of(self.known.reports, queries.job(self.source.store(), asked["job"]))

        folder = await self._asked(found)
        if isinstance(folder, Response):
            return folder
        path = None if folder is None or "\0" in asked["path"] else (folder / asked["path"]).resolve()
        if folder is None or path is None or not path.is_relative_to(folder.resolve()) or not path.is_file():
            return self._message(404, "There is no such thing", "No report of this job has this file.")
        return FileResponse(path, headers={"Content-Security-Policy": REPORT})

    async def _asked(self, ask: Callable[[], Any]) -> Any:
        """What the store says, or the answer that says why not."""
        try:
            return await in_thread(ask)
        except (NotFound, UsageError) as error:
            return self._message(404, "There is no such thing", str(error))
        except RaymsaError as error:
            return self._message(503, "The store is away", str(error))

    async def _icon(self, request: Request) -> Response:
        return FileResponse(HERE / "static" / "icon.svg")

    async def _nothing(self, request: Request) -> Response:
        return self._message(404, "There is no such page", f"{request.url.path} is no address of this site.")

    def _message(self, status: int, heading: str, words: str, again: bool = False, **more: Any) -> Response:
        facts = {"heading": heading, "words": words, "again": again}
        values = {"parts": {AWAY: ""}, "tables": {}, "live_at": "", "version": "", "section": "", **more}
        values["parts"] = {name: as_html(html) for name, html in values["parts"].items()}
        return HTMLResponse(page("message.html", title=heading, facts=facts, store=self._words(), **values), status)

    def _words(self) -> str:
        return self.source.words


async def _until_gone(feed: Feed, since: str, request: Request) -> AsyncIterator[str]:
    async for event in feed.changes(since):
        if await request.is_disconnected():
            return
        yield event


def _live_at(request: Request) -> str:
    query = request.url.query
    return LIVE + request.url.path + (f"?{query}" if query else "")


def names_of(host: str) -> frozenset[str]:
    """The names under which a browser may ask for us."""
    own = {socket.gethostname().lower(), socket.getfqdn().lower()} if not is_loopback(host) else set()
    return frozenset({"localhost", host.lower(), *own} - {*ANYWHERE})


def guarded(app: ASGIApp, door: Door, host: str, port: int) -> Guard:
    """The application behind its door. Cookies know no ports, so the port is in the cookie's name."""
    return Guard(app, door, f"raymsa-ui-{port}", names_of(host), not is_loopback(host))


class _Server(uvicorn.Server):
    """Signals are ours: `on_stop` ends it also while pages are open."""

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        with nullcontext():
            yield

    def end(self) -> None:
        """Now, whoever listens."""
        self.should_exit = self.force_exit = True


def _is_trouble(record: logging.LogRecord) -> bool:
    """That those who listened were cut off at our end is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def listening(host: str, port: int) -> socket.socket:
    """A socket at an address. Raises UsageError when it cannot be had."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
        bound.listen()
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UsageError(f"--port {port}: {host}:{port} cannot be served: {why}; --port 0 takes a free one") from None
    return bound


def serve(app: ASGIApp, bound: socket.socket, begun: Callable[[], None]) -> None:
    """Answer until Ctrl-C or SIGTERM; `begun` is called once the socket is ours to answer."""
    quiet = {"log_level": "error", "access_log": False, "server_header": False}
    config = uvicorn.Config(app, lifespan="off", ws="none", proxy_headers=False, **quiet)  # type: ignore[arg-type]
    logging.getLogger("uvicorn.error").addFilter(_is_trouble)
    server = _Server(config)
    with on_stop(server.end):
        begun()
        asyncio.run(server.serve(sockets=[bound]))


def reports_folder(given: str | None) -> Path:
    """Where reports lie: a folder for each job. Raises UsageError."""
    from raymsa.home import reports_dir

    folder = reports_dir() if given is None else Path(given).expanduser().absolute()
    if given is not None and not folder.is_dir():
        raise UsageError(f"--reports {given}: no such folder; give one that holds a folder for each job")
    return folder


def port_of(bound: socket.socket) -> int:
    """The port that was given, or was free."""
    return int(bound.getsockname()[1])


def address_of(host: str, port: int) -> str:
    """What is typed into a browser on this machine, or on another when we listen everywhere."""
    name = socket.gethostname() if host in ANYWHERE else host
    return f"http://{f'[{name}]' if ':' in name else name}:{port}/"


def may_open(asked: bool | None) -> bool:
    """Whether to start a browser: as asked, else where there is a screen."""
    return asked if asked is not None else any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
