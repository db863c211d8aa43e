"""Telling somebody that a job has ended: a real server, real commands."""

import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner

from raymsa import notify, queue
from raymsa.cli import main
from raymsa.driver import Driver
from raymsa.errors import UsageError
from raymsa.jobfile import load_job
from raymsa.store import Store, queries, tables
from raymsa.supervise import NOTIFY, Options, Supervisor
from tests.faults import is_over
from tests.jobs import job_file, wait_for
from tests.made_up_runs import confirmed_search
from tests.stores import put
from tests.test_report import enter, finish, submit


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.got: list[tuple[str, dict[str, str], dict]] = []
        self.code, self.wait_s = 200, 0.0


class Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.got.append((self.path, dict(self.headers), body))
        time.sleep(self.server.wait_s)
        self.send_response(self.server.code)
        self.send_header("Location", "/elsewhere")
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_POST

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture()
def server():
    with Server() as made:
        thread = threading.Thread(target=made.serve_forever)
        thread.start()
        yield made
        made.shutdown()
        thread.join()


@pytest.fixture()
def store(tmp_path):
    with Store.open(str(tmp_path / "store.db")) as opened:
        yield opened


def failed_job(store: Store) -> str:
    job_id = put(store, "mosi")
    queue.fail(store, queue.claim(store, "d", 60), "the raw folder is empty", "user")
    return job_id


def tell(store: Store, job_id: str, target: str) -> list[str]:
    """What was said of it."""
    said: list[str] = []
    notices = notify.Notices(store, notify.target(target), lambda _, line: said.append(line))
    notices(job_id)
    notices.close()
    return said


def test_a_url_gets_one_post_of_json(store, server) -> None:
    job_id = failed_job(store)
    said = tell(store, job_id, f"http://ada:s3cret@127.0.0.1:{server.server_port}/hook/t0ken?key=k3y#part")
    ((path, headers, message),) = server.got
    assert path == "/hook/t0ken?key=k3y"
    assert headers["Authorization"] == "Basic YWRhOnMzY3JldA=="
    assert headers["Content-Type"] == "application/json"
    assert message["seconds"] >= 0
    del message["seconds"]
    told = {"job": job_id, "name": "mosi", "state": "failed", "error": "the raw folder is empty", "best": None}
    assert message == told
    assert said == [f"http://127.0.0.1:{server.server_port} was notified"]


@pytest.mark.parametrize("code", [302, 404, 500])
def test_an_answer_that_is_no_success_is_one_line_without_the_secret(store, server, code: int) -> None:
    server.code = code
    address = f"http://ada:s3cret@127.0.0.1:{server.server_port}"
    (line,) = tell(store, failed_job(store), f"{address}/t0ken?key=k3y")
    assert line == f"http://127.0.0.1:{server.server_port} was not notified: it answered {code}"
    assert len(server.got) == 1  # a redirect is not followed


def test_nobody_there_and_no_answer_are_one_line_each(store, server, monkeypatch) -> None:
    monkeypatch.setattr(notify, "URL_S", 0.3)
    server.wait_s = 1.0
    address = f"http://127.0.0.1:{server.server_port}/t0ken"
    assert tell(store, failed_job(store), address)[0].endswith("was not notified: no answer in 0.3 s")
    server.shutdown()
    server.server_close()
    (line,) = tell(store, failed_job(store), address)
    assert "Connection refused" in line
    assert "t0ken" not in line


def test_a_command_gets_the_json_on_stdin_and_the_job_in_its_environment(store, tmp_path: Path) -> None:
    job_id, out = failed_job(store), tmp_path / "out"
    said = tell(store, job_id, f"""sh -c 'cat > {out}; echo "$RAYMSA_JOB $RAYMSA_STATE" > {out}.env'""")
    assert json.loads(out.read_text())["job"] == job_id
    assert Path(f"{out}.env").read_text() == f"{job_id} failed\n"
    assert said == ["sh was notified"]


def test_no_shell_reads_a_command(store, tmp_path: Path) -> None:
    tell(store, failed_job(store), f'{sys.executable} -c \'open("{tmp_path}/ran", "w")\' ; touch {tmp_path}/shell')
    assert (tmp_path / "ran").exists()
    assert not (tmp_path / "shell").exists()


def test_a_command_that_fails_says_its_last_line_without_its_urls(store) -> None:
    said = tell(store, failed_job(store), "sh -c 'echo cannot reach $0 >&2; exit 3' https://host/t0ken")
    assert said == ["sh was not notified: exit code 3: cannot reach ***"]


def test_a_command_that_hangs_is_ended_with_its_children(store, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(notify, "COMMAND_S", 3.0)
    pid = tmp_path / "pid"
    (line,) = tell(store, failed_job(store), f"sh -c 'sleep 100 & echo $! > {pid}; wait'")
    assert "and was ended" in line
    wait_for(lambda: is_over(int(pid.read_text())), 20)


def test_the_best_row_is_that_of_valid_with_its_heading(store) -> None:
    job_id = submit(store, [1], {"a": {}, "b": {}})
    finish(store, enter(store, job_id, "a", 1), 0.1, 0.9)
    finish(store, enter(store, job_id, "b", 1), 0.5, 0.4)
    told = notify.message(store, job_id)["best"]
    assert "mean ± sd over seeds" in told
    first = [line.split()[0] for line in told.splitlines() if line]
    assert "b" in first and "a" not in first
    assert " 0.500 " in told and " 0.100 " not in told


def test_the_best_row_of_a_search_by_correlation_is_the_highest(store) -> None:
    job_id, *_ = confirmed_search(store)
    with store.write() as connection:
        group = tables.runs.update().where(tables.runs.c.id == f"{job_id}-t1-3")
        connection.execute(group.values(group_key="f" * 16, variant="t2"))
        valid = tables.finals.update().where(tables.finals.c.run_id == f"{job_id}-t1-3", tables.finals.c.name == "corr")
        connection.execute(valid.values(value=0.99))
    told = notify.message(store, job_id)["best"]
    assert "best on valid (corr) first" in told
    assert {line.split()[0] for line in told.splitlines() if line.lstrip().startswith("t")} == {"t2"}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("ftp://host/x", "give an http(s)://host/path URL, or a command"),
        ("http://", "give an http(s)://host/path URL"),
        ("http://host:port/t0ken", "the URL's host or port is wrong"),
        ("no-such-program x", "'no-such-program' is no program here"),
        ("", "nothing was given"),
        ("sh 'open", "No closing quotation"),
    ],
)
def test_a_target_that_cannot_be_is_refused_at_once(given: str, said: str) -> None:
    with pytest.raises(UsageError) as error:
        notify.target(given)
    assert said in str(error.value)
    assert "t0ken" not in str(error.value)
    assert str(error.value).startswith("--notify: ")


def test_with_detach_it_is_refused_and_nothing_is_queued(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    result = CliRunner().invoke(main, ["submit", str(job_file(tmp_path)), "--detach", "--notify", "http://h/x"])
    assert result.exit_code == 2
    assert "give it to `raymsa work --notify`" in result.stderr
    assert not (tmp_path / "home").exists()


def test_the_drivers_command_does_not_show_the_target(store) -> None:
    supervisor = Supervisor(store, Options(job_id="x"), print, "http://host/t0ken")
    assert "t0ken" not in json.dumps(supervisor._options._asdict())
    assert NOTIFY not in os.environ


def test_a_job_that_ends_is_told_of_and_a_broken_target_harms_nothing(
    store, server, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr("raymsa.driver.ended_part", lambda: "")
    spec = load_job(job_file(tmp_path, queue={"retries": 0})).model_dump(mode="json")
    jobs = [
        queue.put(store, "odd", spec, [queue.NewTask("odd", {})], submitted_by="ada", folder="/", git_commit=None)
        for _ in range(2)
    ]
    said: list[str] = []
    server.code = 500
    to = notify.target(f"http://127.0.0.1:{server.server_port}/t0ken")
    notices = notify.Notices(store, to, lambda _, line: said.append(line))
    driver = Driver(store, said.append, ended=notices, _ray_is_up=True)
    driver.serve(lambda: not queries.something_to_do(store))
    notices.close()
    assert sorted(message["job"] for _, _, message in server.got) == sorted(jobs)
    assert {message["state"] for _, _, message in server.got} == {"failed"}
    assert [queries.tasks(store, job_id)[0].cause for job_id in jobs] == ["fault", "fault"]
    assert sum("was not notified: it answered 500" in line for line in said) == 2


def test_what_a_driver_ended_and_did_not_tell_of_is_told_by_the_next_one(store, server) -> None:
    """Both have one watcher, whose suffix their names end with."""
    mine, others = Options(suffix="ada").name(7), Options(suffix="eve").name(7)
    lost, told, given_up = put(store, "lost"), put(store, "told"), put(store, "given up", max_attempts=1)
    to = notify.target(f"http://127.0.0.1:{server.server_port}/t0ken")
    queue.finish(store, queue.claim(store, mine, 60, lost))
    queue.finish(store, queue.claim(store, mine, 60, told))
    first = notify.Notices(store, to, lambda *_: None, mine)
    first(told)
    first.close()
    queue.claim(store, mine, 60, given_up)
    queue.gone(store, mine, "it was killed")  # nobody could have told of this
    queue.finish(store, queue.claim(store, others, 60, put(store, "another's")))
    queue.finish(store, queue.claim(store, mine, 60, put(store, "half done", tasks=2)))
    server.got.clear()
    for _ in range(2):
        second = notify.Notices(store, to, lambda *_: None, Options(suffix="ada").name(8))
        second.catch_up("-ada")
        second.close()
    assert sorted(message["job"] for _, _, message in server.got) == sorted([lost, given_up])
    last = queries.events(store, lost)[-1]
    assert (last.what, last.detail) == ("notified", f"http://127.0.0.1:{server.server_port}")


def test_a_driver_that_starts_again_tells_of_what_the_last_one_ended(store, tmp_path: Path) -> None:
    options = Options(until_empty=True, suffix="ada")
    job_id, out = put(store), tmp_path / "out"
    queue.finish(store, queue.claim(store, options.name(7), 60))
    environment = {**os.environ, "RAYMSA_STORE": store.secret_url(), NOTIFY: f"sh -c 'cat > {out}'"}
    words = [sys.executable, "-m", "raymsa.serve", json.dumps(options._asdict())]
    assert subprocess.run(words, env={**environment, "RAYMSA_HOME": str(tmp_path)}, timeout=120).returncode == 0
    assert json.loads(out.read_text())["job"] == job_id
