"""What crosses to a cluster's head, and what comes back; the head itself is in test_cluster.py."""

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from raymsa import remote
from raymsa.cli import main
from raymsa.errors import Lost, NoSession, UsageError
from raymsa.jobfile import load_job
from raymsa.training import worker
from tests.jobs import job_file, raymsa

MARK = "raymsa-0123"
START = f"INFO a line of Ray's\nRunning entrypoint for job x: printf {MARK}\n\n{MARK}\n"


def said(*parts):
    out, err = [], []
    words = remote.Said(MARK, out.append, err.append)
    for part in parts:
        words.feed(part)
    words.end()
    return "".join(out), "".join(err)


def test_stdout_and_stderr_come_back_apart_and_unchanged():
    log = f"{START}[1,\n\n2]\n\n{MARK}\nerror: a\nerror: b\n"
    assert said(log) == ("[1,\n\n2]\n", "error: a\nerror: b\n")
    assert said(*log) == ("[1,\n\n2]\n", "error: a\nerror: b\n")


def test_a_command_that_says_nothing_or_ends_without_a_newline_is_told_too():
    assert said(f"{START}\n{MARK}\n") == ("", "")
    assert said(f"{START}abc\n{MARK}\n") == ("abc\n", "")


def test_the_line_in_which_ray_tells_the_entrypoint_is_left_out_wherever_it_stands():
    late = f"\n{MARK}\nRunning entrypoint for job x: printf {MARK}; raymsa list\nno jobs\n\n{MARK}\n"
    assert said(late) == ("no jobs\n", "")


@pytest.mark.parametrize(
    ("field", "given"),
    [("dataset.raw", "data/MOSI"), ("dataset.shards", "./shards"), ("model.path", "./thinker"), ("model.path", "here")],
)
def test_a_relative_path_is_refused_because_the_head_has_other_folders(field, given, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    job = load_job(job_file(tmp_path), [f"{field}={given}"])
    (line,) = remote.path_problems(job)
    assert line.startswith(f"{field}: given '{given}'; on a cluster a path is the head's own")


@pytest.mark.parametrize("given", ["/data/MOSI", "~/MOSI", "s3://bucket/MOSI"])
def test_absolute_paths_and_addresses_are_the_heads_and_cross_as_they_are(given, tmp_path):
    job = load_job(job_file(tmp_path), [f"dataset.raw={given}", "model.path=Qwen/Qwen2.5-Omni-7B"])
    assert not list(remote.path_problems(job))


def test_a_variants_model_is_looked_at_too(tmp_path):
    job = load_job(job_file(tmp_path, variants={"a": {"model.path": "./b"}, "c": {"model": {"path": "tiny"}}}))
    (line,) = remote.path_problems(job)
    assert line.startswith("variants.a.model.path: given './b'")


@pytest.mark.parametrize("url", ["10.0.0.1:8265", "ray://head:10001", "http://", "http://head:port"])
def test_what_is_no_url_of_a_head_is_refused(url):
    with pytest.raises(UsageError, match="http://HOST:8265"):
        remote.run(url, ["list"], print, print)


def test_a_url_where_nobody_answers_is_told_in_one_line():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(NoSession, match="nobody answers there"):
        remote.run(f"http://127.0.0.1:{port}", ["list"], print, print)


@pytest.fixture
def other_server():
    """A web server that is no Ray dashboard."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_another_web_server_is_told_from_a_head(other_server):
    with pytest.raises(NoSession, match="no Ray dashboard"):
        remote.run(other_server, ["list"], print, print)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["list", "--store", "sqlite:///x.db"], "--cluster and --store exclude each other"),
        (["search", "a", "--plot", "plots"], "--cluster and --plot exclude each other"),
        (["submit", "jobs/demo.yaml", "--notify", "http://h/x"], "--cluster and --notify exclude each other"),
        (["resume", "a", "--notify", "http://h/x"], "--cluster and --notify exclude each other"),
        (["rm", "a"], "nobody can be asked on the head; say --yes"),
        (["resume", "a", "--address", "127.0.0.1:1"], "--cluster and --address exclude each other"),
    ],
)
def test_options_that_contradict_cluster_are_refused(words, says, tmp_path):
    ended = raymsa(tmp_path / "home", *words, "--cluster", "http://127.0.0.1:1")
    assert (ended.returncode, says in ended.stderr) == (2, True), ended.stderr


def test_whatever_reads_a_job_or_gives_an_order_can_be_said_to_a_head():
    commands = {name: main.get_command(None, name) for name in main.list_commands(None)}
    options = {name: {option.name for option in command.params} for name, command in commands.items()}
    of_a_job = {name for name, known in options.items() if known & {"job", "job_or_run"}}
    of_a_job.remove("report")  # its files would lie on the head
    assert len(of_a_job) > 8 and not [name for name in of_a_job if "cluster" not in options[name]]


def test_a_worker_whose_run_another_one_took_over_ends_without_a_checkpoint(tmp_path, monkeypatch):
    monkeypatch.setattr(worker, "STOP_EVERY_S", 0.0)
    first = worker._Asked(tmp_path / "stop", tmp_path / "worker")
    assert not first()
    second = worker._Asked(tmp_path / "stop", tmp_path / "worker")
    with pytest.raises(Lost, match="another worker has the run"):
        first()
    assert not second()
