"""How far a prepare is: lines for a log, a bar for a terminal."""

import os
import pty
import subprocess
import sys
from pathlib import Path

from raymsa.data import progress
from raymsa.data.progress import Count, Lines, Rate

SCRIPT = """
import time
from raymsa.data.progress import Count, shown
with shown(print) as (line, show):
    for count in (Count(0, 90, 0), Count(10, 90, 1), Count(20, 90, 2), Count(30, 90, 3)):
        show(count)
        time.sleep(0.15)
    line("a line with [brackets]")
"""


def shown_on(stderr, stdout=None):
    root = Path(__file__).parent.parent
    env = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    return subprocess.run([sys.executable, "-c", SCRIPT], stderr=stderr, stdout=stdout, cwd=root, env=env, check=True)


def test_a_terminal_shows_a_bar_with_the_rate_the_rejects_and_the_time_left():
    ours, theirs = pty.openpty()
    shown_on(theirs)
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # what Linux answers at the end
        pass
    said = text.decode()
    assert "30/90" in said and "clips/s" in said and "left" in said and "3 rejected" in said
    assert "a line with [brackets]" in said


def test_where_there_is_no_terminal_nothing_is_drawn():
    done = shown_on(subprocess.PIPE, subprocess.PIPE)
    assert done.stderr == b"" and done.stdout == b"a line with [brackets]\n"


def test_lines_come_at_intervals_that_grow(monkeypatch):
    now, said = [0.0], []
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = Lines(lambda line: said.append((now[0], line)))
    for half_seconds in range(1200):
        now[0] = half_seconds / 2
        lines(Count(half_seconds * 5, 10_000, 7))
    times = [at for at, _ in said]
    assert times[0] <= 2.5 and len(said) < 40 and times[-1] - times[-2] >= progress.MOST_S
    assert "of 10000 clips, 10.0 clips/s, 0:06:" in said[-1][1] and "7 rejected" in said[-1][1]


def test_the_rate_counts_from_the_first_clip_of_this_call(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    rate, seen = Rate(), []
    for at, clips in ((0, 500), (20, 500), (30, 501), (32, 521)):
        now[0] = at
        seen.append(rate(clips))
    assert seen == [None, None, None, 10.0]
