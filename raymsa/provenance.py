"""What a result depends on beside its spec and data: versions, the code's commit, who asked."""

from __future__ import annotations

import getpass
import os
import socket
import subprocess
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

SENT_BY = "RAYMSA_SENT_BY"  # who sent this command to the head of a cluster; set by raymsa/remote.py


def versions() -> dict[str, str]:
    """Versions of the packages that decide a result."""
    names = ("raymsa", "torch", "transformers", "peft", "bitsandbytes", "ray", "numpy", "av")
    return {name: version(name) for name in names}


def who() -> str:
    """The person at the keyboard, as user@host; for a command that was sent here, the one who sent it."""
    if sender := os.environ.get(SENT_BY):
        return sender
    with suppress(KeyError, OSError):
        return f"{getpass.getuser()}@{socket.gethostname()}"
    return socket.gethostname()


def git_commit(folder: Path) -> str | None:
    """Commit of the working folder, with `+changes` when files differ from it; None outside a repository."""
    try:
        shown = subprocess.run(  # noqa: S603 - fixed arguments
            ["git", "-C", str(folder), "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"],  # noqa: S607
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return shown.stdout.strip() or None if shown.returncode == 0 else None
