"""The command itself: its address, its end, its store."""

import http.client
import re
import signal
import socket
import time
import urllib.parse
from contextlib import closing

import pytest

from raymsa.store import Store
from tests.jobs import raymsa, start_raymsa, wait_for
from tests.stores import put
from tests.ui_site import add_job, own_home, served  # noqa: F401 (fixtures)


def entered(address: str) -> tuple[http.client.HTTPConnection, dict[str, str]]:
    """A connection, and the headers of one who came in."""
    parts = urllib.parse.urlsplit(address)
    connection = http.client.HTTPConnection(parts.hostname, parts.port, timeout=30)
    connection.request("GET", f"/?{parts.query}")
    answer = connection.getresponse()
    answer.read()
    assert answer.status == 303
    return connection, {"Cookie": answer.headers["Set-Cookie"].partition(";")[0]}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_it_ends_at_once_also_while_pages_are_open(home, number) -> None:
    with Store.open(str(home / "store.db")) as store:
        job_id = put(store)
    with served(home) as (address, process):
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/\?token=[\w-]{43}", address)
        listeners = []
        for path in ("/live/", "/live/jobs", f"/live/jobs/{job_id}"):
            connection, headers = entered(address)
            connection.request("GET", path, headers=headers)
            answer = connection.getresponse()
            assert answer.headers["Content-Type"].startswith("text/event-stream")
            assert answer.readline().startswith(b"retry")
            listeners.append((connection, answer))
        begun = time.monotonic()
        process.send_signal(number)
        assert process.wait(30) == 0
        assert time.monotonic() - begun < 15  # a page that held it up would do so for ever
    words = process.words.read_text()
    assert words.splitlines()[-1] == "stopped"
    assert "Traceback" not in words
    assert "ERROR" not in words


def test_it_ends_at_once_while_the_store_does_not_answer(home) -> None:
    """A server that takes a connection and says nothing."""
    with closing(socket.create_server(("127.0.0.1", 0))) as silent:
        url = f"postgresql://me:secret@127.0.0.1:{silent.getsockname()[1]}/store"
        with served(home, "--store", url) as (address, process):
            connection, headers = entered(address)
            connection.request("GET", "/jobs", headers=headers)
            answer = connection.getresponse()
            page = answer.read().decode()
            assert answer.status == 503
            assert "The store is away." in page
            assert "secret" not in page + process.words.read_text()
            process.send_signal(signal.SIGINT)
            begun = time.monotonic()
            assert process.wait(30) == 0
            assert time.monotonic() - begun < 9  # it would wait for the store for 10 s


def test_the_token_is_said_once_and_is_another_one_each_time(home) -> None:
    tokens = set()
    for _ in range(2):
        with served(home) as (address, process):
            token = address.partition("token=")[2]
            connection, headers = entered(address)
            connection.request("GET", "/", headers=headers)
            connection.getresponse().read()
            assert process.words.read_text().count(token) == 1
            tokens.add(token)
    assert len(tokens) == 2


def test_listening_to_others_is_warned_of(home) -> None:
    with served(home, "--host", "0.0.0.0") as (_, process):
        words = process.words.read_text()
    assert "warning: 0.0.0.0 can be reached from other machines" in words
    with served(home) as (_, process):
        assert "warning" not in process.words.read_text()


def test_what_cannot_be_served_is_one_line_and_exit_code_2(home, tmp_path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        ended = raymsa(home, "ui", "--port", str(taken.getsockname()[1]))
        assert (ended.returncode, ended.stderr.count("error:")) == (2, 1)
        assert "--port 0 takes a free one" in ended.stderr
    assert "--reports" in raymsa(home, "ui", "--reports", str(tmp_path / "none")).stderr
    assert raymsa(home, "ui", "--host", "no.such.name.invalid").returncode == 2
    assert raymsa(home, "ui", "--port", "99999").returncode == 2
    assert raymsa(home, "ui", "--store", "mysql://x/y").returncode == 1


def test_a_page_says_that_the_store_is_away_and_goes_on_when_it_is_back(home) -> None:
    with served(home) as (address, process):
        connection, headers = entered(address)
        connection.request("GET", "/live/jobs", headers=headers)
        news = connection.getresponse()
        first = _event(news)
        assert b"nothing was submitted yet" in first
        assert b'"ready": false' in first
        with Store.open(str(home / "store.db")) as store:
            job_id = add_job(store)
        while job_id.encode() not in (event := _event(news)):
            pass
        assert b'"ready": true' in event
        assert b'"away": ""' in event
        assert process.poll() is None


def _event(answer: http.client.HTTPResponse) -> bytes:
    while not (line := answer.readline()).startswith(b"data: "):
        assert line, "the server hung up"
    return line


def test_a_browser_gets_a_code_that_opens_once_and_not_the_token(home, tmp_path, monkeypatch) -> None:
    """BROWSER names a program; what it was given is what others can see of its command line."""
    told = tmp_path / "told"
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > {told}\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", f"{browser} %s")
    process = start_raymsa(home, "ui", "--port", "0", "--open")
    try:
        wait_for(lambda: told.exists() and told.read_text().endswith("\n"), 60, process)
        token = re.search(r"token=(\S+)", process.words.read_text())[1]
        given = told.read_text().strip()
        assert token not in given
        assert entered(given)
        with pytest.raises(AssertionError):
            entered(given)
    finally:
        process.terminate()
        process.wait(30)
