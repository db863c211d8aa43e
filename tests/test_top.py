"""The live view: what a frame says, on any terminal, and with the store away."""

import os
import pty
import re
import select
import signal
import subprocess
from pathlib import Path

import pytest
from click.testing import CliRunner

from raymsa import queue
from raymsa.cli import main
from raymsa.cli.watch import Watch, draw
from raymsa.report import top
from raymsa.store import Store, records
from tests.jobs import RAYMSA, environment, wait_for
from tests.stores import add_runs, entry, put


@pytest.fixture()
def store(tmp_path, monkeypatch):
    monkeypatch.setenv("RAYMSA_HOME", str(tmp_path / "home"))
    with Store.open(str(tmp_path / "home" / "store.db")) as opened:
        yield opened


def busy(store: Store) -> tuple[str, str, str]:
    """A job that runs, its run, and a job that waits."""
    job_id = put(store, "a_job_with_quite_a_long_name_for_a_narrow_terminal")
    task = queue.claim(store, "machine-with-a-long-name:12345", 60)
    queue.renew(store, task, 60, "seed 1111  " + "epoch 2/5  12.5 clips/s  " * 8)
    run_id = f"{job_id}-variant-1111"
    add_runs(store, job_id)
    row = {"id": run_id, "job_id": job_id, "task_id": task.id, "variant": "v", "seed": 1, "group_key": "g", "spec": {}}
    records.create_runs(store, [{**row, "spec_digest": "d"}])
    records.start_run(store, run_id, steps_total=1000)
    values = {"loss": 1.0, "clips_per_s": 12.5}
    records.record_steps(store, run_id, [entry(250, values)], left_s=600.0, place="machine-with-a-long-name GPU 0")
    return job_id, run_id, put(store, "next")


def lines(store: Store, most: int | None) -> list[str]:
    return [line for line, _ in draw(top.frame(store), "store", "", most)]


@pytest.mark.parametrize("most", [40, 80, 160, None])
def test_a_frame_fits_its_terminal_and_cuts_no_id(store, most) -> None:
    job_id, run_id, waiting = busy(store)
    shown = lines(store, most)
    text = "\n".join(shown)
    assert max(map(len, shown)) <= (most or 1000)
    for word in (job_id, run_id, waiting, "machine-with-a-long-name:12345", "250/1000", "12.5", "ends in 5"):
        assert word in text, text
    assert re.search(r"\b(10m00s|9m5\ds)", text)
    assert "tasks: 1 running, 1 queued" in text


def test_an_empty_queue_and_a_machine_without_a_gpu_say_so(store, monkeypatch) -> None:
    monkeypatch.setenv("PATH", "")
    text = "\n".join(lines(store, 80))
    assert "tasks: none" in text
    assert "running: nothing runs" in text
    assert "no nvidia-smi on this machine" in text


def test_a_driver_that_is_silent_is_told_apart(store) -> None:
    put(store)
    queue.claim(store, "gone:1", -30)
    assert re.search(r"gone:1 .*ended 3\ds ago: it is silent", "\n".join(lines(store, 160)))


@pytest.mark.parametrize(
    ("said", "code", "shown"),
    [
        ("0, NVIDIA H100 80GB HBM3, 97, 70123, 81559, 61, 512.34", 0, "NVIDIA H100 80GB HBM3  97      70123"),
        ("0, NVIDIA A100, [N/A], [N/A], 81920, 30, 60.1", 0, "[N/A]"),
        ("NVIDIA-SMI has failed", 9, "GPUs of this machine: nvidia-smi: NVIDIA-SMI has failed"),
    ],
)
def test_gpus_are_shown_as_nvidia_smi_says_them(store, tmp_path, monkeypatch, said: str, code: int, shown: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\necho '{said}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shown in "\n".join(lines(store, 160))


def test_without_a_terminal_one_frame_is_printed(store) -> None:
    _, run_id, _ = busy(store)
    result = CliRunner().invoke(main, ["top", "--store", store.secret_url()])
    assert result.exit_code == 0
    assert run_id in result.stdout
    assert "\x1b" not in result.stdout


class Terminal:
    """`raymsa top` in a real terminal of 100 x 50."""

    def __init__(self, home: Path) -> None:
        self.screen, inside = pty.openpty()
        env = {**environment(home), "TERM": "xterm", "COLUMNS": "100", "LINES": "50"}
        # As a terminal starts it: a shell without job control lets what it starts in the background ignore Ctrl-C.
        words = ["env", "--default-signal=INT", *RAYMSA, "top"]
        self.process = subprocess.Popen(words, stdin=inside, stdout=inside, stderr=inside, env=env)
        os.close(inside)
        self.text = ""

    def shows(self, word: str) -> bool:
        if select.select([self.screen], [], [], 0.1)[0]:
            self.text += os.read(self.screen, 65536).decode(errors="replace")
        return word in self.text

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        os.close(self.screen)


@pytest.fixture()
def terminal(tmp_path, store):
    opened = Terminal(tmp_path / "home")
    yield opened
    opened.close()


def test_a_store_that_goes_away_is_told_of_and_the_view_goes_on(store, tmp_path) -> None:
    busy(store)
    watch = Watch(store)
    watch.start()
    wait_for(lambda: watch.frame)
    hidden = [(path, tmp_path / path.name) for path in (tmp_path / "home").glob("store.db*")]
    for path, away in hidden:
        path.rename(away)
    (tmp_path / "home" / "store.db").mkdir()
    store.close()  # an open connection would go on reading the old file
    away = wait_for(lambda: watch.away)
    assert re.match(r"the store is away since \d\d:\d\d:\d\d, what follows is older: store .*unable to open", away)
    assert away in " ".join(line for line, _ in draw(watch.frame, "store", away, None))
    (tmp_path / "home" / "store.db").rmdir()
    for path, away in hidden:
        away.rename(path)
    wait_for(lambda: store.close() or not watch.away)  # it may have opened an empty file just before this one came back
    watch.stop()
    watch.join()


def test_q_ends_it(store, terminal) -> None:
    _, run_id, _ = busy(store)
    wait_for(lambda: terminal.shows(run_id))
    os.write(terminal.screen, b"q")
    assert terminal.process.wait(timeout=30) == 0


def test_ctrl_c_ends_it(store, terminal) -> None:
    busy(store)
    wait_for(lambda: terminal.shows("tasks:"))
    terminal.process.send_signal(signal.SIGINT)
    assert terminal.process.wait(timeout=30) == 0
