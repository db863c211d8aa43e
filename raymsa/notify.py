"""Telling somebody that a job has ended: a POST to a URL, or a command. Nothing is sent unless it was asked for.

A URL is often a secret: it goes from process to process in the environment, and only its host is ever told.
"""

from __future__ import annotations

import base64
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple
from urllib.error import HTTPError, URLError
from urllib.parse import unquote, urlsplit
from urllib.request import HTTPRedirectHandler, Request, build_opener

from raymsa.errors import RaymsaError, StoreError, UsageError
from raymsa.store import Store, queries, records
from raymsa.store.states import state_of
from raymsa.words import for_json

URL_S, COMMAND_S = 10.0, 60.0
TOLD, NOT_TOLD = "notified", "not notified"  # events
COLUMNS = 160  # of the table in the message


class Target(NamedTuple):
    """Whom to tell; `shown` is what may be printed."""

    shown: str
    tell: Callable[[dict[str, Any]], None]


def target(text: str) -> Target:
    """An http(s) URL, or a command and its arguments. Raises UsageError."""
    if "://" in text.split(" ")[0]:
        return _url(text)
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--notify: {error}; give a URL, or a command with its quotes closed") from None
    if not words or shutil.which(words[0]) is None:
        shown = f"'{words[0]}' is no program here" if words else "nothing was given"
        raise UsageError(f"--notify: {shown}; give an http(s) URL, or a command (no shell: sh -c '...' is one)")
    return Target(words[0], lambda message: _run(words, message))


def message(store: Store, job_id: str) -> dict[str, Any]:
    """What is told of a job that has ended."""
    job, tasks = queries.job(store, job_id), queries.tasks(store, job_id)
    begun = [task.started_at for task in tasks if task.started_at is not None]
    ended = [task.finished_at for task in tasks if task.finished_at is not None]
    errors = "; ".join(task.error for task in tasks if task.error)
    return {
        "job": job.id,
        "name": job.name,
        "state": state_of(task.state for task in tasks),
        "error": errors or None,
        "seconds": max(ended) - min(begun) if begun and ended else 0.0,
        "best": _best(store, job_id),
    }


def best_row(store: Store, job_id: str) -> str | None:
    """The row of the job's table that is best on valid, with its heading, as text; None without a finished run."""
    from dataclasses import replace

    from rich.console import Console

    from raymsa.report.group_sheets import sheets
    from raymsa.report.groups import group_tables
    from raymsa.report.screen import render_sheet

    tables = group_tables(store, [job_id])
    own = [group for group in tables[0].groups if group.valid is not None and not group.rivals] if tables else []
    if not own:
        return None
    (best,) = sheets([replace(tables[0], groups=tuple(own[:1]))])
    page = io.StringIO()
    render_sheet(best, Console(file=page, width=COLUMNS, highlight=False))
    return "\n".join(line.rstrip() for line in page.getvalue().splitlines() if line.strip())


def _best(store: Store, job_id: str) -> str | None:
    """A job without a finished run has no table, and one whose table cannot be made is told of all the same."""
    if not any(run.state == "done" for run in queries.runs(store, job_id)):
        return None
    with suppress(Exception):
        return best_row(store, job_id)
    return None


class Notices:
    """Tells of jobs that end, each in a thread of its own: nobody waits for it, and what goes wrong is one line.

    That it was told, or could not be, is an event of the job, so that who comes after a driver that died tells of what
    that one ended. `who` is the driver's name.
    """

    def __init__(self, store: Store, to: Target, say: Callable[[str, str], None], who: str = "") -> None:
        self._store, self._to, self._say, self._who = store, to, say, who
        self._threads: list[threading.Thread] = []

    def __call__(self, job_id: str) -> None:
        """A job has ended."""
        thread = threading.Thread(target=self._tell, args=(job_id,), daemon=True, name=f"raymsa-notify-{job_id}")
        self._threads.append(thread)
        thread.start()

    def catch_up(self, drivers: str) -> None:
        """Tell of what drivers with this end of their name have ended, and did not tell of."""
        for job_id in queries.untold(self._store, drivers, (TOLD, NOT_TOLD)):
            self(job_id)

    def close(self) -> None:
        """Wait for those that are on their way, as long as they may take."""
        until = time.monotonic() + COMMAND_S + URL_S
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _tell(self, job_id: str) -> None:
        try:
            self._to.tell(for_json(message(self._store, job_id)))
            self._end(job_id, TOLD, "")
        except RaymsaError as error:
            self._end(job_id, NOT_TOLD, f": {error}")
        except Exception as error:  # a notification must never harm a job; no text of it: that may hold the URL
            self._end(job_id, NOT_TOLD, f": {type(error).__name__}")

    def _end(self, job_id: str, what: str, why: str) -> None:
        self._say(job_id, f"{self._to.shown} was {what}{why}")
        with suppress(StoreError):
            records.add_event(self._store, what, job_id=job_id, detail=f"{self._to.shown}{why}", who=self._who)


class _Stay(HTTPRedirectHandler):
    """A redirect would turn the POST into a GET of another address: it is an error."""

    def redirect_request(self, *_: Any) -> None:
        return None


def _url(text: str) -> Target:
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise UsageError("--notify: the URL's host or port is wrong; give http(s)://host/path") from None
    if parts.scheme not in ("http", "https") or not host or any(char.isspace() for char in text):
        raise UsageError("--notify: give an http(s)://host/path URL, or a command")
    place = f"[{host}]" if ":" in host else host
    place += f":{port}" if port else ""
    headers = {"Content-Type": "application/json", "User-Agent": "raymsa"}
    if parts.username is not None:  # urllib would take it for a part of the host
        user = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        headers["Authorization"] = "Basic " + base64.b64encode(user.encode()).decode()
    address = parts._replace(netloc=place, fragment="").geturl()
    return Target(f"{parts.scheme}://{place}", lambda message: _post(address, headers, message))


def _post(address: str, headers: dict[str, str], message: dict[str, Any]) -> None:
    request = Request(address, json.dumps(message).encode(), headers, method="POST")  # noqa: S310 (http or https)
    try:
        with build_opener(_Stay).open(request, timeout=URL_S):
            return
    except HTTPError as error:
        error.close()
        raise RaymsaError(f"it answered {error.code}") from None
    except URLError as error:
        raise RaymsaError(str(getattr(error.reason, "strerror", None) or error.reason)) from None
    except TimeoutError:
        raise RaymsaError(f"no answer in {URL_S:g} s") from None


def _run(words: list[str], message: dict[str, Any]) -> None:
    about = {"RAYMSA_JOB": message["job"], "RAYMSA_STATE": message["state"]}
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as given:
        given.write(json.dumps(message).encode())
        given.seek(0)
        # Files, not pipes: a program that it leaves behind would keep a pipe open.
        process = subprocess.Popen(  # noqa: S603 (the user's own command)
            words,
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=said,
            env={**os.environ, **about},
            start_new_session=True,
        )
        try:
            code = process.wait(COMMAND_S)
        except subprocess.TimeoutExpired:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise RaymsaError(f"it took longer than {COMMAND_S:g} s and was ended") from None
        if code:
            said.seek(0)
            lines = said.read().decode(errors="replace").split("\n")
            last = next((line.strip() for line in reversed(lines) if line.strip()), "")
            for word in words[1:]:  # it may say its URL
                last = last.replace(word, "***") if "://" in word else last
            raise RaymsaError(f"exit code {code}" + (f": {last[:200]}" if last else ""))
