"""Prepare when things go wrong: poisoned files, kills, stops, two at once."""

import csv
import fcntl
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from raymsa.data.prepare import prepare
from raymsa.data.shardfile import PARTS
from raymsa.datasets.base import MediaSettings
from raymsa.datasets.table import Columns, Table
from raymsa.errors import Cancelled
from tests.faults_outside import Faults, decoders
from tests.media_files import grey_ramp, poisoned, slow_clip, tone, write_media

pytestmark = pytest.mark.ray
PAIRS = Table(name="pairs", columns=Columns(media="file"), media=MediaSettings(max_pixels=2_000_000))
PLAIN = Table(name="plain", columns=Columns(media="file"))
CLIPS = 8 * max(2, len(os.sched_getaffinity(0)))  # planned with 2 to a shard: every core writes four of them


def label_file(folder, files):
    with (folder / "clips.csv").open("w", newline="") as file:
        rows = [(name, "words", i % 3, "train", name) for i, name in enumerate(files)]
        csv.writer(file).writerows([("id", "text", "score", "split", "file"), *rows])


def files_in(out):
    return {path.name: path.read_bytes() for path in out.iterdir() if path.is_file() and path.name != ".lock"}


def ids_in(out):
    return Counter(i for path in out.glob("*.parquet") for i in pq.read_table(path, columns=["id"])["id"].to_pylist())


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    """Clips that take a moment each."""
    folder = tmp_path_factory.mktemp("raw")
    slow_clip(folder / "0.mpg")
    for i in range(1, CLIPS):
        os.link(folder / "0.mpg", folder / f"{i}.mpg")
    label_file(folder, [f"{i}.mpg" for i in range(CLIPS)])
    return folder


@pytest.fixture(scope="module")
def undisturbed(raw, ray_session, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    prepare(PAIRS, raw, out, lambda line: None)
    return files_in(out)


def test_every_poisoned_file_costs_itself_only_and_is_named(tmp_path, ray_session, monkeypatch):
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    kinds = poisoned(raw)
    good = [f"good{i}.mp4" for i in range(6)]
    for name in good:
        write_media(raw / name, grey_ramp(8), tone(0.5))
    label_file(raw, [*good[:3], *kinds, *good[3:]])
    monkeypatch.setenv("RAYMSA_DECODE_LIMIT_S", "5")
    with Faults(raw, {"hangs.mpg": signal.SIGSTOP, "crashes.mpg": signal.SIGSEGV}) as faults:
        manifest = prepare(PLAIN, raw, out, lambda line: None)
    assert faults.sent == {"hangs.mpg": 1, "crashes.mpg": 1}
    with (out / "rejects.csv").open() as left_out, (out / "notes.csv").open() as with_less:
        rejects = {row["id"]: row["reason"] for row in csv.DictReader(left_out)}
        notes = {row["id"]: row["note"] for row in csv.DictReader(with_less)}
    assert not rejects.keys() & notes.keys()
    for name, words in kinds.items():
        assert words in {**rejects, **notes}.get(name, ""), name
        assert bool(words) == (name in {**rejects, **notes}), name
    assert ids_in(out) == Counter([*good, *kinds.keys() - rejects.keys()])
    assert manifest.rejects == len(rejects) == 7 and manifest.damaged == 0 and manifest.cut_sound == 1


def command(raw, out):
    """`raymsa prepare` as a process of its own."""
    config = out.parent / "pairs.yaml"
    config.write_text("kind: table\nname: pairs\ncolumns: {media: file}\nmedia: {max_pixels: 2000000}\n")
    source = "from raymsa.cli import main; main()"
    words = [sys.executable, "-c", source, "prepare", config, "--raw", raw, "--out", out]
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, cwd=Path(__file__).parent.parent)


def shards_done(out):
    return len(list((out / PARTS).glob("*.parquet.json")))


def interrupt_after(process, out, shards, number, delay_s):
    """Send a signal some time after so many shards are done; what it said, and how it ended."""
    while shards_done(out) < shards and process.poll() is None:
        time.sleep(0.02)
    time.sleep(delay_s)
    process.send_signal(number)
    said = process.communicate()[1]
    return process.returncode, said


@pytest.mark.slow
def test_killed_at_any_moment_and_run_again_it_makes_the_same_bytes(raw, undisturbed, tmp_path):
    out, rng = tmp_path / "out", random.Random(3)
    for shards in (0, 1, 2):
        process = command(raw, out)
        code, _ = interrupt_after(process, out, shards, signal.SIGKILL, rng.uniform(0, 0.3))
        assert code == -signal.SIGKILL and not (out / "manifest.json").exists()
    wait_until(lambda: not decoders())  # writers outlive a killed driver for a moment, and may finish a shard
    kept = {path.name: path.stat().st_mtime_ns for path in out.glob("*.parquet")}
    done = shards_done(out)
    code, said = interrupt_after(command(raw, out), out, done + 1, signal.SIGINT, 0)
    assert code == 103 and "shards; they are kept" in said and "Traceback" not in said, said
    process = command(raw, out)
    said = process.communicate()[1]
    assert process.returncode == 0 and "shards are there already" in said, said
    assert files_in(out) == undisturbed
    assert sum((out / name).stat().st_mtime_ns == changed for name, changed in kept.items()) >= done


@contextmanager
def prepared_meanwhile(raw, out):
    """A prepare in a thread: what it said, how to stop it, and how it ended once the block is left."""
    said, ended, stop = [], [], threading.Event()

    def work():
        try:
            ended.append(prepare(PAIRS, raw, out, said.append, stop.is_set))
        except Cancelled as error:
            ended.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield said, stop, ended
    finally:
        thread.join()


def wait_until(is_so):
    deadline = time.monotonic() + 120
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_a_stop_takes_effect_in_the_middle_of_a_shard(raw, undisturbed, tmp_path, ray_session):
    out, hang = tmp_path / "out", {"9.mpg": signal.SIGSTOP}
    with Faults(raw, hang) as faults, prepared_meanwhile(raw, out) as (_, stop, ended):
        wait_until(lambda: faults.sent)
        stop.set()
        asked = time.monotonic()
        wait_until(lambda: ended)
        assert time.monotonic() - asked < 15  # two seconds, and more on a busy machine; the decoder's limit is 60
    assert isinstance(ended[0], Cancelled) and "shards; they are kept" in str(ended[0])
    wait_until(lambda: not decoders())
    assert not list((out / PARTS).glob("*.part"))
    prepare(PAIRS, raw, out, lambda line: None)
    assert files_in(out) == undisturbed


def test_a_second_prepare_into_a_folder_waits_for_the_first(raw, undisturbed, tmp_path, ray_session):
    out = tmp_path / "out"
    out.mkdir()
    with (out / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with prepared_meanwhile(raw, out) as (said, stop, ended):
            wait_until(lambda: len(said) > 1)
            stop.set()
        assert isinstance(ended[0], Cancelled) and "waiting for it" in said[-1]
        with prepared_meanwhile(raw, out) as (said, _, ended):
            wait_until(lambda: len(said) > 1)
            fcntl.flock(lock, fcntl.LOCK_UN)
    assert sum("waiting for it" in line for line in said) == 1
    assert ended[0].counts["train"] == CLIPS and files_in(out) == undisturbed


@pytest.mark.slow
def test_a_ray_worker_that_dies_costs_time_only(raw, undisturbed, tmp_path, ray_session):
    out = tmp_path / "out"
    with prepared_meanwhile(raw, out) as (_, _, ended):
        wait_until(lambda: shards_done(out) > 1)
        os.kill(parent_of(decoders()[0]), signal.SIGKILL)
    assert ended[0].counts["train"] == CLIPS and files_in(out) == undisturbed


def parent_of(pid):
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
