"""Who may see the page: those with the token, under a name that is this machine's, and only to read.

The token comes in the address once and stays as a cookie that no script reads and no other site sends. A page of
another site can make a browser ask us under a name of its own (DNS rebinding): so the name that was asked for is
checked; an address in numbers cannot be rebound.
"""

from __future__ import annotations

import ipaddress
import secrets
from collections.abc import Mapping
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, urlencode

from starlette.responses import HTMLResponse, RedirectResponse, Response

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

TOKEN_BYTES = 32
QUERY = "token"  # its name in the address
READS = ("GET", "HEAD")
PAGE = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
# A report brings its own style and pictures, and gets no script at all.
REPORT = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; media-src 'self' data:; "
    "font-src 'self' data:; form-action 'none'; base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": PAGE,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}
REFUSED = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>raymsa ui</title></head><body><main>
<h1>{heading}</h1><p>{words}</p></main></body></html>
"""


class Door:
    """The token, and codes that open once (for a browser that we start: others can see the words of its command)."""

    def __init__(self) -> None:
        self.token = secrets.token_urlsafe(TOKEN_BYTES)
        self._codes: set[str] = set()

    def code(self) -> str:
        """A new code that may stand for the token once."""
        made = secrets.token_urlsafe(TOKEN_BYTES)
        self._codes.add(made)
        return made

    def opens(self, given: str) -> bool:
        """Whether this is the token, or a code that nobody has used."""
        code = next((code for code in self._codes if same(given, code)), None)
        self._codes.discard(code or "")
        return code is not None or same(given, self.token)


def same(given: str, right: str) -> bool:
    """In a time that does not tell how much of it is right."""
    return secrets.compare_digest(given.encode(errors="replace"), right.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there."""
    return host == "localhost" or _address_is(host, "is_loopback")


def known_name(host_header: str, names: frozenset[str], anywhere: bool) -> bool:
    """Whether a request was meant for us: by our own names, or by an address: any, or this machine's own alone."""
    name = _without_port(host_header).lower()
    return name in names or _address_is(name, "is_loopback") or (anywhere and _address_is(name))


class Guard:
    """In front of the application: names, methods, the token, and headers on every answer."""

    def __init__(self, app: ASGIApp, door: Door, cookie: str, names: frozenset[str], anywhere: bool) -> None:
        self._app, self._door, self._cookie, self._names, self._anywhere = app, door, cookie, names, anywhere

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":  # no WebSocket is spoken here
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = _with_headers(message["headers"])
            await send(message)

        await (self._refusal(scope) or self._app)(scope, receive, answer)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        if not known_name(headers.get("host", ""), self._names, self._anywhere):
            return _refused(421, "Not this name", "Open the address that `raymsa ui` printed.")
        if scope["method"] not in READS:
            return _refused(405, "Only to read", "This page changes nothing.", {"Allow": ", ".join(READS)})
        query = parse_qsl(scope["query_string"].decode("latin-1"), keep_blank_values=True)
        given = [value for name, value in query if name == QUERY]
        if given:
            rest = [(name, value) for name, value in query if name != QUERY]
            return self._enter(scope["path"], rest) if self._door.opens(given[-1]) else _no_token()
        return None if same(_cookie(headers, self._cookie), self._door.token) else _no_token()

    def _enter(self, path: str, query: list[tuple[str, str]]) -> Response:
        """The token goes from the address into the cookie."""
        # Two slashes at the beginning would name another machine. The path was unquoted: a ? in it is no query.
        where = quote("/" + path.lstrip("/\\")) + (f"?{urlencode(query)}" if query else "")
        response = RedirectResponse(where, status_code=303)
        response.set_cookie(self._cookie, self._door.token, path="/", httponly=True, samesite="strict")
        return response


def _no_token() -> Response:
    words = (
        "Open the address that <code>raymsa ui</code> printed, with its token. If you have just done that from "
        'another page, <a href="/">go on</a>.'
    )
    return _refused(401, "This page needs its token", words)


def _refused(status: int, heading: str, words: str, headers: Mapping[str, str] | None = None) -> Response:
    return HTMLResponse(REFUSED.format(heading=heading, words=words), status, dict(headers or {}))


def _with_headers(given: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Ours, where the answer has none of that name, and without who we are."""
    there = {name.lower() for name, _ in given}
    more = [(name.lower().encode(), value.encode()) for name, value in HEADERS.items()]
    return [*given, *((name, value) for name, value in more if name not in there)]


def _cookie(headers: Mapping[str, str], name: str) -> str:
    try:
        found = SimpleCookie(headers.get("cookie", "")).get(name)
    except CookieError:
        return ""
    return found.value if found is not None else ""


def _without_port(host: str) -> str:
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] or host if host.count(":") == 1 else host


def _address_is(name: str, what: str = "version") -> bool:
    try:
        return bool(getattr(ipaddress.ip_address(name), what))
    except ValueError:
        return False
