"""The driver's process and who watches it, with a queue that is empty: no Ray is started."""

import fcntl
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from raymsa import supervise
from raymsa.driver import Driver
from raymsa.home import driver_lock
from raymsa.store import Store
from raymsa.supervise import Options, Supervisor
from tests.faults import driver_of, is_over, started
from tests.jobs import raymsa, wait_for


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    with Store.open(f"sqlite:///{tmp_path}/home/store.db") as opened:
        yield opened


def serve_alone(store: Store, options: Options, **more: str) -> "subprocess.Popen[str]":
    """The driver's process, with nobody who watches it."""
    command = [sys.executable, "-m", "raymsa.serve", json.dumps(options._asdict())]
    environment = {**os.environ, "RAYMSA_STORE": store.secret_url(), **more}
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True)


def test_a_driver_whose_watcher_is_killed_ends_in_order_and_the_next_one_starts(tmp_path: Path) -> None:
    home = tmp_path / "home"
    with started(home, "work") as process:
        (driver,) = wait_for(lambda: driver_of(process), 60, process)
        environ = Path(f"/proc/{driver}/status")  # it listens once it has handlers of its own for SIGTERM (bit 14)
        wait_for(lambda: int(environ.read_text().partition("SigCgt:")[2].split()[0], 16) >> 14 & 1, 60, process)
        process.kill()
        process.wait(10)
        wait_for(lambda: is_over(driver), 30)
    assert "Traceback" not in process.words.read_text()
    ended = raymsa(home, "work", "--until-empty")
    assert (ended.returncode, ended.stderr) == (0, "the queue is empty\n")


def test_a_driver_whose_watcher_died_before_it_could_be_told_ends_at_once(store: Store) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    driver = serve_alone(store, Options(watcher=gone.pid))
    assert driver.communicate(timeout=60) == (None, "") and driver.returncode == 0


def test_a_driver_whose_store_is_broken_ends_with_one_line(store: Store) -> None:
    path = Path(str(store.engine.url.database))
    store.close()
    path.write_text("no database" * 100)
    driver = serve_alone(store, Options(until_empty=True))
    _, said = driver.communicate(timeout=60)
    assert (driver.returncode, said.count("\n")) == (supervise.BROKEN, 1) and "this file is something else" in said


def test_the_machines_lock_takes_no_file_from_who_watches(store: Store) -> None:
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(12)]  # file descriptors of somebody else
    before = {number: os.fstat(number) for number in held}
    Supervisor(store, Options(until_empty=True), print).serve()
    assert {number: os.fstat(number) for number in before} == before
    with driver_lock().open() as file:  # given back when it has served, not when the process ends
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for number in held:
        os.close(number)


def test_a_stop_while_the_driver_is_started_reaches_it(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    supervisor = Supervisor(store, Options(), print)
    start = subprocess.Popen

    def interrupted(*words, **options):
        process = start(*words, **options)
        supervisor.stop()
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    guard = threading.Timer(60, lambda: supervisor._child.kill())
    guard.start()
    begun = time.monotonic()
    supervisor.serve()
    guard.cancel()
    assert time.monotonic() - begun < 60


def test_two_drivers_never_have_one_name(store: Store) -> None:
    made = [Supervisor(store, Options(), print)._options.name(7) for _ in range(2)]
    made += [Driver(store, print).name, Driver(store, print).name]
    assert len(set(made)) == 4 and len({name.partition(":")[0] for name in made}) == 1
