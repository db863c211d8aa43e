"""Decoding in a process of its own: a file that hangs the decoder, crashes it or eats its memory costs only itself.

The parent sends a path, the child answers with a line of JSON; frames and sound lie in memory that both have mapped.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import IO, Any, NamedTuple

import numpy as np

from raymsa.clip import SAMPLE_RATE
from raymsa.data.media import Media, decode
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError

LIMIT_S = 60.0  # for a small file; nearly all clips take far less than one second
LIMIT_S_PER_MB = 1.0  # of a file, on top: the slowest disk that is worth waiting for, and long films
START_S = 300.0  # until a new child answers: it imports torch, on a machine where every core is busy
END_S = 5.0  # after it was killed; one that waits for a dead network disk cannot even be killed, and is left behind
LOOK_S = 0.25  # how often `waiting` is called
MEMORY_BYTES = 6 * 2**30  # a child may take so much; 8K video needs about 2 GiB
KILLED_TWICE = 2  # SIGKILL may be the machine's fault (no memory left); the second time it is taken for the clip's


class Decoder:
    """One child process, started when it is first needed, and again after it was lost.

    `waiting` is called about four times a second while a file is decoded; what it raises ends the child.
    """

    def __init__(self, settings: MediaSettings, limit_s: float = LIMIT_S) -> None:
        self._settings, self._limit_s = settings, limit_s
        self._child: _Child | None = None

    @property
    def pid(self) -> int | None:
        """Of the child that is there now."""
        return self._child.process.pid if self._child else None

    def decode(self, path: Path, waiting: Callable[[], None] = lambda: None) -> Media:
        """As media.decode; the arrays are valid until the next call. Raises MediaError for whatever goes wrong."""
        for attempt in range(1, KILLED_TWICE + 1):
            try:
                return self._decode(path, waiting)
            except _Died as death:
                if death.code != -signal.SIGKILL:
                    raise MediaError(f"the decoder crashed ({_named(death.code)})") from None
                if attempt == KILLED_TWICE:
                    raise MediaError(
                        f"the decoder was killed {KILLED_TWICE} times while it read this file (out of memory?)"
                    ) from None
        raise AssertionError("the last attempt returns or raises")

    def close(self) -> None:
        """End the child."""
        if self._child:
            self._child.end()
        self._child = None

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _decode(self, path: Path, waiting: Callable[[], None]) -> Media:
        limit_s = self._limit_s + LIMIT_S_PER_MB * _megabytes(path)
        try:
            child = self._child = self._child or _start(self._settings, waiting)
            child.pipe.send_bytes(os.fsencode(path))
            answer = child.answer(limit_s, waiting)
        except (EOFError, ConnectionError):
            raise _Died(self._lost()) from None
        except TimeoutError:
            self.close()
            raise MediaError(f"decoding took longer than {limit_s:.0f} s") from None
        except BaseException:
            self.close()
            raise
        if "error" in answer:
            raise MediaError(answer["error"])
        return child.arena.media(answer)

    def _lost(self) -> int:
        """The exit status of a child that closed its pipe."""
        assert self._child is not None
        code = self._child.end()
        self._child = None
        return code


class _Died(Exception):
    def __init__(self, code: int) -> None:
        self.code = code


class _Child(NamedTuple):
    process: subprocess.Popen[bytes]
    pipe: Connection
    arena: _Arena

    def answer(self, limit_s: float, waiting: Callable[[], None]) -> Any:
        """What the child says next. Raises TimeoutError, and EOFError when it has died."""
        deadline = time.monotonic() + limit_s
        while not self.pipe.poll(max(0.0, min(LOOK_S, deadline - time.monotonic()))):
            waiting()
            if time.monotonic() > deadline:
                raise TimeoutError
        return json.loads(self.pipe.recv_bytes())

    def end(self) -> int:
        """Kill it, unless it has ended by itself; its exit status."""
        self.pipe.close()
        code = self._wait(0.5)  # a process that has just crashed takes a moment to be gone
        if code is None:
            self.process.kill()
            code = self._wait(END_S)
        self.arena.close()
        return -signal.SIGKILL if code is None else code

    def _wait(self, seconds: float) -> int | None:
        with contextlib.suppress(subprocess.TimeoutExpired):
            return self.process.wait(seconds)
        return None


class _Arena:
    """Memory shared with the child, as large as one decoded clip can be."""

    def __init__(self, settings: MediaSettings, fd: int) -> None:
        self.frame_bytes = settings.max_frames * settings.max_pixels * 3
        self._map = mmap.mmap(fd, _arena_bytes(settings))
        self._bytes = np.frombuffer(self._map, np.uint8)

    def put(self, media: Media) -> None:
        """Called by the child."""
        for at, array in ((0, media.frames_FHWC), (self.frame_bytes, media.audio_S)):
            if array is not None:
                self._bytes[at : at + array.nbytes] = array.reshape(-1).view(np.uint8)

    def media(self, answer: dict[str, Any]) -> Media:
        """What the child has put, as views."""
        shape, samples = answer["frames"], answer["audio"]
        frames = None if shape is None else self._bytes[: int(np.prod(shape))].reshape(shape)
        audio = None
        if samples is not None:
            audio = self._bytes[self.frame_bytes : self.frame_bytes + 2 * samples].view(np.int16)
        return Media(answer["seconds"], frames, audio, answer["truncated"], tuple(answer["notes"]))

    def close(self) -> None:
        del self._bytes  # the map itself goes with the last view of it


def _start(settings: MediaSettings, waiting: Callable[[], None]) -> _Child:
    ours, theirs = socketpair()
    with _memory(_arena_bytes(settings)) as file, theirs:
        arena = _Arena(settings, file.fileno())
        fds = (theirs.fileno(), file.fileno())
        command = [sys.executable, "-m", "raymsa.data.decoder", *map(str, fds), settings.model_dump_json()]
        here = os.pathsep.join(path for path in sys.path if path)  # Ray may have put us where nobody else would look
        env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": here}
        process = subprocess.Popen(command, pass_fds=fds, stdin=subprocess.DEVNULL, env=env)  # noqa: S603 - our own
    child = _Child(process, Connection(ours.detach()), arena)
    try:
        child.answer(START_S, waiting)
    except (EOFError, ConnectionError, TimeoutError):
        raise ChildProcessError(f"the decoder does not start ({_named(child.end())})") from None
    except BaseException:
        child.end()
        raise
    return child


def _arena_bytes(settings: MediaSettings) -> int:
    return settings.max_frames * settings.max_pixels * 3 + 2 * int(settings.max_audio_s * SAMPLE_RATE)


def _memory(size: int) -> IO[bytes]:
    """A nameless file in memory, or on disk where that is full, with its pages reserved: a write into a page that
    cannot be had would end the child (SIGBUS), and the clip would be blamed. Raises OSError when neither has room."""
    for folder in ("/dev/shm", None):  # noqa: S108 - a container may have 64 MB there
        with contextlib.suppress(FileNotFoundError):
            file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - the caller closes it
            try:
                os.posix_fallocate(file.fileno(), 0, size)
                return file
            except OSError:
                file.close()
                if folder is None:
                    raise
    raise AssertionError("the temporary folder is there")


def _megabytes(path: Path) -> float:
    try:
        return path.stat().st_size / 1e6
    except OSError:
        return 0.0


def _named(code: int) -> str:
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"signal {-code}, {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def serve(pipe: Connection, arena: _Arena, settings: MediaSettings) -> None:
    """What the child does until the parent is gone."""
    import torch

    torch.set_num_threads(1)  # the parallelism is one child per core
    pipe.send_bytes(b"{}")
    while True:
        try:
            path = Path(os.fsdecode(pipe.recv_bytes()))
        except (EOFError, ConnectionError):
            return
        pipe.send_bytes(json.dumps(_answer(path, arena, settings)).encode())


def _answer(path: Path, arena: _Arena, settings: MediaSettings) -> dict[str, Any]:
    try:
        media = decode(path, settings)
    except MediaError as error:
        return {"error": str(error)}
    except MemoryError:
        return {"error": f"decoding it needs more than {MEMORY_BYTES / 2**30:.0f} GiB of memory"}
    except Exception as error:  # a decoder's own bug must not end a job of hours; the reason names it
        return {"error": f"the decoder failed: {type(error).__name__}: {' '.join(str(error).split())[:200]}"}
    arena.put(media)
    return {
        "frames": None if media.frames_FHWC is None else media.frames_FHWC.shape,
        "audio": None if media.audio_S is None else len(media.audio_S),
        "seconds": media.seconds,
        "truncated": media.truncated,
        "notes": media.notes,
    }


def _behave() -> None:
    """End with the parent however that ends, leave Ctrl-C to it, and be the first to go when memory is short."""
    import ctypes
    import resource

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
        resource.setrlimit(resource.RLIMIT_DATA, (MEMORY_BYTES, MEMORY_BYTES))
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _behave()
    _settings = MediaSettings.model_validate_json(sys.argv[3])
    serve(Connection(int(sys.argv[1])), _Arena(_settings, int(sys.argv[2])), _settings)
