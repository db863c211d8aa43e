"""What is left of a process that led a session, and what must be left alone."""

import subprocess
import sys

import pytest

from raymsa import leftovers
from tests.jobs import wait_for

# Its children are in groups of their own, as Ray's workers are, and do not end when they are asked to.
LEADER = """
import subprocess, sys, time
deaf = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", deaf], process_group=0, stdout=subprocess.PIPE) for _ in range(2)]
[child.stdout.readline() for child in children]
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def leader():
    process = subprocess.Popen([sys.executable, "-c", LEADER], start_new_session=True, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    yield process
    leftovers.end(process.pid)
    process.wait(10)


def test_what_a_killed_leader_leaves_is_found_and_ended(leader, tmp_path):
    leftovers.note(tmp_path / "note", leader.pid, "host:1")
    leader.kill()
    leader.wait(10)
    left = leftovers.members(leader.pid)
    assert len(left) == 2
    assert leftovers.noted(tmp_path / "note") == ("host:1", leader.pid)
    assert leftovers.end(leader.pid, 10) == 0 and not leftovers.members(leader.pid)
    wait_for(lambda: not any(alive(pid) for pid in left), 10)


def test_a_number_that_another_process_has_by_now_is_left_alone(leader, tmp_path):
    leftovers.note(tmp_path / "note", leader.pid, "host:1")
    text = (tmp_path / "note").read_text()
    begun = leftovers._stat(leader.pid).begun
    (tmp_path / "note").write_text(text.replace(str(begun), str(begun - 1)))
    assert leftovers.noted(tmp_path / "note") == ("host:1", None)
    (tmp_path / "note").write_text(text.replace('"machine": "', '"machine": "another'))
    assert leftovers.noted(tmp_path / "note") == ("host:1", None)
    (tmp_path / "note").write_text(text[:20])  # of a process that was killed
    assert leftovers.noted(tmp_path / "note") is None


def alive(pid: int) -> bool:
    stat = leftovers._stat(pid)
    return stat is not None and not stat.over
