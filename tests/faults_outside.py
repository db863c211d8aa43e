"""Faults that reach a decoder from outside, as the kernel's would: it is stopped or killed while it has a file open."""

import os
import signal
import threading
from collections import Counter
from pathlib import Path

from raymsa.data import decoder


def decoders() -> list[int]:
    """Every decoder process of these tests: they have a home of their own, which processes hand on."""
    found, ours = [], f"RAYMSA_HOME={os.environ.get('RAYMSA_HOME', '')}".encode()
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            ran_as = path.read_bytes().split(b"\0")
            if decoder.__name__.encode() in ran_as and ours in path.with_name("environ").read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def open_files(pid: int) -> list[str]:
    """Paths that a process has open."""
    try:
        return [str(link.readlink()) for link in Path(f"/proc/{pid}/fd").iterdir()]
    except OSError:
        return []


class Faults:
    """While it is entered, a decoder that opens a file under `folder` of one of these names gets the signal."""

    def __init__(self, folder: Path, signals: dict[str, signal.Signals]) -> None:
        self.folder, self.signals = str(folder), signals
        self.sent: Counter[str] = Counter()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Faults":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        hit: set[tuple[int, str]] = set()
        pids, looks = [], 0
        while not self._over.wait(0.005):
            if looks % 40 == 0:  # seldom: it goes through all processes of the machine
                pids = decoders()
            looks += 1
            for pid in pids:
                for path in open_files(pid):
                    name = Path(path).name
                    if name in self.signals and path.startswith(self.folder) and (pid, path) not in hit:
                        hit.add((pid, path))
                        self.sent[name] += 1
                        os.kill(pid, self.signals[name])
