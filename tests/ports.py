"""Ports for servers that tests start and start again."""

import secrets
import socket
from contextlib import suppress

FIRST, COUNT = 20_000, 12_000  # above Ray's workers, below those that the kernel gives to outgoing connections


def free_port() -> int:
    """A port that nobody has now, and that nobody gets who does not ask for this one."""
    while True:
        port = FIRST + secrets.randbelow(COUNT)
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
