"""A decoder process: what it answers, and that a file which hangs or crashes it costs itself only."""

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from raymsa.data import media
from raymsa.data.decoder import Decoder, _memory
from raymsa.datasets.base import MediaSettings
from raymsa.errors import MediaError
from tests.faults_outside import Faults, open_files
from tests.jobs import wait_for
from tests.media_files import grey_ramp, slow_clip, tone, write_media

LIMIT_S = 5.0


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_media(folder / "good.mp4", grey_ramp(20), tone(2.0))
    write_media(folder / "silent.mp4", grey_ramp(5))
    slow_clip(folder / "slow.mpg")
    return folder


@pytest.fixture(scope="module")
def decoder():
    with Decoder(MediaSettings(), limit_s=LIMIT_S) as there:
        yield there


def test_it_decodes_as_this_process_does(decoder, files):
    for name in ("good.mp4", "silent.mp4", "good.mp4"):
        here, there = media.decode(files / name, MediaSettings()), decoder.decode(files / name)
        assert np.array_equal(here.frames_FHWC, there.frames_FHWC) and here.seconds == there.seconds
        assert here.audio_S is there.audio_S is None or np.array_equal(here.audio_S, there.audio_S)


def test_memory_for_a_clip_is_reserved_before_it_is_written_to():
    """A page that cannot be had would end the child in the middle of a good clip."""
    with _memory(5_000_000) as file:
        assert os.fstat(file.fileno()).st_blocks * 512 >= 5_000_000


def test_a_picture_that_needs_more_memory_than_allowed_is_not_left_out_in_silence(tmp_path):
    path = write_media(tmp_path / "large.mp4", [np.zeros((2160, 3840, 3), np.uint8)] * 2, tone(0.5))
    code = """
import resource, sys
from pathlib import Path
from raymsa.data.media import decode
from raymsa.datasets.base import MediaSettings
import torch
used = int(next(l for l in open("/proc/self/status") if l.startswith("VmData")).split()[1]) * 1024
resource.setrlimit(resource.RLIMIT_DATA, (used + 12_000_000,) * 2)
try:
    decode(Path(sys.argv[1]), MediaSettings())
except MemoryError:
    print("no memory")
"""
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert done.stdout == "no memory\n", done.stderr[-500:]


def test_the_same_process_decodes_one_file_after_the_other(decoder, files):
    decoder.decode(files / "good.mp4")
    pid = decoder.pid
    with pytest.raises(MediaError, match="missing file"):
        decoder.decode(files / "no.mp4")
    decoder.decode(files / "silent.mp4")
    assert decoder.pid == pid


def test_a_file_that_hangs_it_is_given_up_after_the_limit(decoder, files):
    decoder.decode(files / "good.mp4")
    pid, began = decoder.pid, time.monotonic()
    with Faults(files, {"slow.mpg": signal.SIGSTOP}), pytest.raises(MediaError, match="decoding took longer than"):
        decoder.decode(files / "slow.mpg")
    size_mb = (files / "slow.mpg").stat().st_size / 1e6
    assert LIMIT_S <= time.monotonic() - began - size_mb < LIMIT_S + 20
    assert not os.path.exists(f"/proc/{pid}")  # noqa: PTH110
    assert decoder.decode(files / "slow.mpg").seconds > 0


def test_a_file_that_crashes_it_is_named_with_the_signal(decoder, files):
    crashed = pytest.raises(MediaError, match=r"the decoder crashed \(signal 11, SIGSEGV\)")
    with Faults(files, {"slow.mpg": signal.SIGSEGV}) as faults, crashed:
        decoder.decode(files / "slow.mpg")
    assert faults.sent["slow.mpg"] == 1
    assert decoder.decode(files / "good.mp4").audio_S is not None


def test_a_file_that_gets_it_killed_is_tried_twice(decoder, files):
    killed = pytest.raises(MediaError, match=r"the decoder was killed 2 times .*out of memory")
    with Faults(files, {"slow.mpg": signal.SIGKILL}) as faults, killed:
        decoder.decode(files / "slow.mpg")
    assert faults.sent["slow.mpg"] == 2


def test_one_that_is_killed_between_two_files_is_started_again(decoder, files):
    decoder.decode(files / "good.mp4")
    os.kill(decoder.pid, signal.SIGKILL)
    assert decoder.decode(files / "good.mp4").frames_FHWC is not None


def test_what_waiting_raises_ends_it_at_once(decoder, files):
    class Enough(Exception):
        pass

    def enough():
        if any(path.endswith("slow.mpg") for path in open_files(decoder.pid)):
            raise Enough

    decoder.decode(files / "good.mp4")
    began = time.monotonic()
    with Faults(files, {"slow.mpg": signal.SIGSTOP}), pytest.raises(Enough):
        decoder.decode(files / "slow.mpg", enough)
    assert time.monotonic() - began < LIMIT_S and decoder.pid is None


def test_it_ends_with_its_parent(files):
    code = """
import os, signal, sys
from pathlib import Path
from raymsa.data.decoder import Decoder
from raymsa.datasets.base import MediaSettings
there = Decoder(MediaSettings())
there.decode(Path(sys.argv[1]))
print(there.pid, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    words = [sys.executable, "-c", code, str(files / "good.mp4")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
    wait_for(lambda: not open_files(child), 30)
