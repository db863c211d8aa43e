"""Ports for servers that tests start and start again."""

import random
import socket
from contextlib import suppress

# Above Ray's workers, below the ports of outgoing connections; shuffled, because two processes test at once.
_LEFT = random.SystemRandom().sample(range(20_000, 32_000), 12_000)


def free_port() -> int:
    """A port that nobody has now and that was not given before; nobody gets it who does not ask for this one."""
    while True:
        port = _LEFT.pop()
        with suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            return port
