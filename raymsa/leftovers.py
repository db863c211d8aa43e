"""What a dead driver leaves on its machine: processes that hold memory and GPUs, and tasks nobody works on.

A driver is the leader of a session (setsid), which everything that Ray starts belongs to, whatever becomes of its
parents. Linux gives a session's number to nobody else while a member lives.
"""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

END_S = 30.0  # a process in the middle of a call into a driver of the kernel's (a GPU's) ends after that call


class Stat(NamedTuple):
    """A process, as /proc/PID/stat tells it."""

    pid: int
    session: int
    begun: int  # ticks since the machine was started
    over: bool  # it has ended, and only its parent has not asked how


def note(path: Path, pid: int, name: str) -> None:
    """Write down which driver lives here, for whoever comes after it."""
    stat = _stat(pid)
    about = {"driver": name, "session": pid, "begun": stat.begun if stat else None, "machine": _machine()}
    with suppress(OSError):  # a full disk: then the lease ends by itself
        path.write_text(json.dumps(about), encoding="utf-8")


def noted(path: Path) -> tuple[str, int | None] | None:
    """The last driver's name, and its session if that may still be there; None when none was written down."""
    try:
        about = json.loads(path.read_text(encoding="utf-8"))
        leader = _stat(about["session"])
        other = leader is not None and leader.begun != about["begun"]  # the number is somebody else's by now
        mine = about["machine"] == _machine() and not other
        return str(about["driver"]), int(about["session"]) if mine else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def end(session: int, limit_s: float = END_S) -> int:
    """Kill all that is left of a session; returns how many processes did not end in time."""
    until = time.monotonic() + limit_s
    while (left := members(session)) and time.monotonic() < until:
        for pid in left:
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.05)
    return len(left)


def members(session: int) -> list[int]:
    """The living processes of a session."""
    pids = (int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit())
    return [stat.pid for pid in pids if (stat := _stat(pid)) and stat.session == session and not stat.over]


def _stat(pid: int) -> Stat | None:
    try:  # the second field is the name in brackets, which may hold anything
        fields = Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return None
    return Stat(pid, int(fields[3]), int(fields[19]), fields[0] in "ZX")


def _machine() -> str:
    """This start of the machine, and this container of it: elsewhere the numbers mean other processes."""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return ""
