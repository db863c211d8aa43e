"""Commands on a cluster's head: sent with Ray's job API, run there on the head's own store, and what came of them.

The Ray job is only the messenger: it asks for no CPU and no GPU and is over in a second, because the queue and the
devices are raymsa's business. What crosses is the resolved job and the sender's name, never a store's URL or a key.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import shlex
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from raymsa.errors import NoSession, RaymsaError, SpecError, UsageError
from raymsa.place import ADDRESS
from raymsa.provenance import SENT_BY, who

JOB_FILE = "job.yaml"
CONNECT_S, ANSWER_S = 10.0, 60.0  # before an unreachable head, or one that says nothing, is given up
START_S = 120.0  # in which the head must begin the command; Ray itself would wait for 15 minutes
LOOK_S = 0.2
NO_COMMAND = 127  # a shell's exit code for a command that there is not
TALKERS = ("ray.dashboard.modules.dashboard_sdk", "ray._private.runtime_env.packaging")  # they tell what they upload
PATHS = ("dataset.raw", "dataset.shards", "model.path")

Write = Callable[[str], None]


def submit(url: str, job: Any, *words: str) -> tuple[int, str, str]:
    """`raymsa submit` on the head with a resolved job; exit code, stdout and stderr. Raises as `run`.

    Raises SpecError for a path that means nothing on another machine.
    """
    if found := list(path_problems(job)):
        raise SpecError("\n".join(found))
    out: list[str] = []
    err: list[str] = []
    files = {JOB_FILE: yaml.safe_dump(job.model_dump(mode="json"), sort_keys=False, allow_unicode=True)}
    code = run(url, ["submit", JOB_FILE, *words], out.append, err.append, files)
    return code, "".join(out), "".join(err)


def run(
    url: str,
    words: Sequence[str],
    out: Write,
    err: Write,
    files: dict[str, str] | None = None,
    live: bool = False,
) -> int:
    """`raymsa WORDS` on the head of the cluster whose dashboard is at `url`; returns its exit code.

    What it prints goes to `out` and `err`: at its end, or as it comes if `live`. Raises NoSession when there is no
    head to be had, RaymsaError when the head could not run it.
    """
    _check(url)
    mark = f"raymsa-{secrets.token_hex(8)}"
    said = Said(mark, out, err)
    with _errors(url), tempfile.TemporaryDirectory() as folder:
        client = _client(url)
        for name, text in (files or {}).items():
            (Path(folder) / name).write_text(text, encoding="utf-8")
        env: dict[str, Any] = {"env_vars": {SENT_BY: who()}, **({"working_dir": folder} if files else {})}
        sent = _send(client, entrypoint=_entrypoint(words, mark), runtime_env=env)
        try:
            code = _follow(url, client, sent, said, live)
        finally:
            _forget(client, sent)
    if code == NO_COMMAND:
        raise RaymsaError(f"{url}: the head knows no `raymsa`; start Ray there where raymsa is installed and on PATH")
    return code


def path_problems(job: Any) -> Iterator[str]:
    """One line for each path of a job that is relative: the head has other folders than the sender."""
    plain = job.model_dump(mode="json")
    variants = {f"variants.{name}.": over for name, over in plain["variants"].items()}
    for where, section in {"": plain, **variants}.items():
        for field in PATHS:
            given = _field(section, field)
            if isinstance(given, str) and _relative(given, field == "model.path"):
                yield (
                    f"{where}{field}: given '{given}'; on a cluster a path is the head's own: give an absolute one "
                    f"(/data/...) or an address (s3://...), for example with --set {where}{field}=..."
                )


def _relative(given: str, is_model: bool) -> bool:
    if ADDRESS.match(given) or given.startswith(("/", "~")):
        return False
    if not is_model:
        return True
    # A model may also be a hub id, which looks like a path; what is a folder here was meant as one.
    return given != "tiny" and (given.startswith(".") or Path(given).exists())


def _field(section: dict[str, Any], dotted: str) -> Any:
    """The value at a dotted name, written nested or not."""
    first, _, last = dotted.partition(".")
    inner = section.get(first)
    return section.get(dotted, inner.get(last) if isinstance(inner, dict) else None)


class Said:
    """Takes apart what Ray keeps as one log: lines before the command, its stdout, its stderr.

    The entrypoint writes a line with the mark between them, after a newline of its own, which is left out again. Ray
    writes the entrypoint itself there too, before them or among them.
    """

    def __init__(self, mark: str, out: Write, err: Write) -> None:
        self._mark, self._to, self._part = mark, (lambda line: None, out, err), 0
        self._rest = ""  # the beginning of a line
        self._held: str | None = None  # the last line: the newline at its end may be the entrypoint's

    def feed(self, text: str) -> None:
        """More of the log."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if line == self._mark:
                if self._held:
                    self._to[self._part](self._held + "\n")
                self._part, self._held = self._part + 1, None
                continue
            if self._mark in line:
                continue
            if self._held is not None:
                self._to[self._part](self._held + "\n")
            self._held = line

    def end(self) -> None:
        """The log is whole."""
        for line in (self._held, self._rest):
            if line:
                self._to[self._part](line + "\n")
        self._held, self._rest = None, ""


def _entrypoint(words: Sequence[str], mark: str) -> str:
    """The command, with its stderr kept aside: Ray's log has one stream."""
    said, command = f"printf '\\n%s\\n' {mark}", shlex.join(["raymsa", *words])
    return f'{said}; e=$(mktemp); {command} 2>"$e"; c=$?; {said}; cat "$e"; rm -f "$e"; exit $c'


def _send(client: Any, **job: Any) -> str:
    """The id of a new Ray job. A head that has just started asks to be asked again."""
    until = time.monotonic() + ANSWER_S
    while True:
        try:
            return str(client.submit_job(**job))
        except RuntimeError as error:
            if "try again later" not in str(error) or time.monotonic() > until:
                raise
        time.sleep(LOOK_S)


def _follow(url: str, client: Any, sent: str, said: Said, live: bool) -> int:
    """Wait for the end of a Ray job, and hand on its words; returns the command's exit code."""
    until = time.monotonic() + START_S
    while (info := client.get_job_info(sent)).status == "PENDING":
        if time.monotonic() > until:
            raise NoSession(f"{url}: the head did not begin the command within {START_S:.0f} s; see its `ray status`")
        time.sleep(LOOK_S)
    if live:
        asyncio.run(_tail(client, sent, said))
    while not (info := client.get_job_info(sent)).status.is_terminal():
        time.sleep(LOOK_S)
    if not live:
        said.feed(client.get_job_logs(sent))
    said.end()
    if info.driver_exit_code is None:
        raise RaymsaError(f"{url}: the head could not run the command: {_line(info.message or info.status)}")
    return int(info.driver_exit_code)


async def _tail(client: Any, sent: str, said: Said) -> None:
    async for text in client.tail_job_logs(sent):
        said.feed(text)


def _forget(client: Any, sent: str) -> None:
    """The messenger leaves nothing behind in `ray job list`; one that still runs is stopped."""
    with suppress(Exception):
        if not client.get_job_info(sent).status.is_terminal():
            client.stop_job(sent)
            return
        client.delete_job(sent)


def _check(url: str) -> None:
    """Raises UsageError for what is no head's URL, NoSession for a host where nobody answers."""
    parts = urlsplit(url)
    try:
        host, port = parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:  # a port that is no number
        host, port = None, 0
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"--cluster: given '{url}'; give the head's dashboard, http://HOST:8265")
    try:
        socket.create_connection((host, port), CONNECT_S).close()
    except OSError as error:
        raise NoSession(f"{url}: nobody answers there ({error.strerror or error}); is the head up?") from None


def _client(url: str) -> Any:
    from ray.job_submission import JobSubmissionClient

    for name in TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)

    class Client(JobSubmissionClient):  # type: ignore[misc]
        """Ray's own waits for ever for a head that says nothing."""

        def _do_request(self, *request: Any, **options: Any) -> Any:
            return super()._do_request(*request, **{"timeout": ANSWER_S, **options})

    return Client(url)


@contextmanager
def _errors(url: str) -> Iterator[None]:
    """Ray's errors in a line of ours."""
    try:
        yield
    except RaymsaError:
        raise
    except Exception as error:  # requests', aiohttp's and Ray's own have nothing in common
        raise NoSession(f"{url}: {_why(error)}") from None


def _why(error: Exception) -> str:
    from ray.exceptions import AuthenticationError

    token = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"  # noqa: S105 - where one is
    if isinstance(error, AuthenticationError):
        if "Authentication failed" in str(error):
            return f"the head does not know this token; give its own in {token}"
        return f"the head asks for a token; set RAY_AUTH_MODE=token and give it in {token}"
    if isinstance(error, RuntimeError):  # it answered, and said no
        return _line(error)
    if isinstance(error, OSError) and not isinstance(error, ValueError):
        return f"the connection was lost ({_line(error)}); `raymsa list --cluster ...` says what the head has"
    return f"this is no Ray dashboard ({_line(error)})"


def _line(text: Any) -> str:
    return " ".join(str(text).split())[:200]
