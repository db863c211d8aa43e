"""What the tests of faults share: a quick job on shards that are made without Ray, and what must hold after a fault."""

import json
import os
import re
import shutil
import signal
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raymsa import leftovers
from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.data.folder import settings_of
from raymsa.datasets.table import Columns, Table
from raymsa.driver import Driver
from raymsa.errors import StoreError
from raymsa.jobfile import load_job
from raymsa.store import Store, queries
from raymsa.submit import submit
from raymsa.target import Labels
from raymsa.training import checkpoint
from tests.clips import clip
from tests.jobs import job_file, raymsa, start_raymsa, wait_for

DATASET = Table(name="words", columns=Columns(media="file"))
COUNTS = {"train": 40, "valid": 8, "test": 8}
SLOW_TO_SCORE = {**COUNTS, "test": 4000}
FOR_EVER = {"epochs": 100_000, "patience": 100_000}


def make_shards(folder: Path, counts: dict[str, int], words: int = 1) -> Path:
    """A prepared dataset of words alone, 1 to 4 times `words` in a clip."""
    folder.mkdir(parents=True)
    files = []
    for split, count in counts.items():
        path = folder / f"{split}-00000.parquet"
        made = [clip(f"{split}{i}", "good " * (words * (1 + i % 4)), 0, 0.0, label=i % 7 - 3.0) for i in range(count)]
        rows = [to_row(replace(one, split=split)) for one in made]
        pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), path, row_group_size=256)
        size = path.stat().st_size
        files.append(manifests.ShardFile(name=path.name, split=split, rows=count, bytes=size, sha256=""))
    none = dict.fromkeys(counts, 0)
    made = manifests.Manifest(
        name=DATASET.name,
        digest=f"words{sum(counts.values())}",
        counts=counts,
        without_sound=none,
        without_picture=none,
        cut_sound=0,
        damaged=0,
        rejects=0,
        labels=Labels(mean=0.0, sd=2.0, median=0.0),
        settings=settings_of(DATASET),
        versions={},
        files=tuple(files),
    )
    manifests.write(folder, made)
    return folder


def fault_job(folder: Path, shards: Path, name: str = "fault", **sections: Any) -> Path:
    """A job file of one run: 10 steps an epoch; what is tried again is tried at once."""
    train = {"batch_clips": 4, "lora_lr": 1e-3, "checkpointing": False, **sections.pop("train", {})}
    dataset = {"kind": "table", "name": DATASET.name, "columns": {"media": "file"}, "shards": str(shards)}
    common = {"dataset": dataset, "train": train, "queue": {"backoff_s": 0, **sections.pop("queue", {})}}
    inputs = {"prompt": "{text}", "system": "Score.", "modalities": ["text"]}
    lora = {"rank": 2, "alpha": 4}
    return job_file(folder, name, **{"inputs": inputs, "lora": lora, **common, **sections})


def is_over(pid: int) -> bool:
    """There is no such process, or it only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


class Watched:
    """The one run of a job, as its store and its folder tell it."""

    def __init__(self, store: Store, job_id: str, *homes: Path) -> None:
        self.store, self.job_id, self.homes = store, job_id, homes

    @property
    def run(self) -> queries.RunRow:
        (run,) = queries.runs(self.store, self.job_id)
        return run

    @property
    def folder(self) -> Path:
        folders = [home / "runs" / self.run.id for home in self.homes]
        return next((folder for folder in folders if folder.exists()), folders[0])

    def state(self) -> str:
        """The job's."""
        return queries.state(self.store, self.job_id)

    def log(self) -> str:
        """What the run's workers wrote so far."""
        path = self.folder / "log.txt" if queries.runs(self.store, self.job_id) else None
        return path.read_text() if path and path.exists() else ""

    def workers(self) -> list[int]:
        """Process ids of the run's workers, one per attempt."""
        return [int(pid) for pid in re.findall(r"worker process (\d+)", self.log())]

    def starts(self) -> list[int]:
        """At which step each attempt began."""
        return [int(step) for step in re.findall(r"(?:starts|goes on) at step (\d+)", self.log())]

    def step(self) -> int:
        """The last step that the run has done, from its own file."""
        path = self.folder / "steps.jsonl" if queries.runs(self.store, self.job_id) else None
        lines = path.read_text().splitlines() if path and path.exists() else []
        return max((json.loads(line)["step"] for line in lines if line.endswith("}}")), default=0)

    def trains(self, attempt: int, steps: int = 15) -> bool:
        """That attempt (from 1) has done some steps."""
        starts = self.starts()
        return len(starts) >= attempt and self.step() >= starts[attempt - 1] + steps

    def saved(self) -> int:
        """The step of the newest checkpoint; -1 when there is none."""
        found = checkpoint.find(self.folder, "last")
        return checkpoint.position_of(found).step if found else -1

    def events(self) -> list[queries.Event]:
        return queries.events(self.store, self.job_id)

    def is_whole(self, epochs: int, clips: int = 16) -> None:
        """It is done, and every step, every clip and its end are recorded once."""
        run, recorded = self.run, queries.steps(self.store, self.run.id)
        assert (self.state(), run.state, run.error, run.cause) == ("done", "done", None, None)
        assert run.step == run.steps_total == 10 * epochs
        losses = [s.step for s in recorded if s.name == "loss"]
        assert losses == list(range(1, 10 * epochs + 1))
        scored = Counter((p.split, p.clip_id) for p in queries.predictions(self.store, run.id))
        assert len(scored) == clips and set(scored.values()) == {1}
        assert Counter(e.what for e in self.events() if e.run_id)["done"] == 1
        starts = self.starts()
        assert starts == sorted(starts) and run.attempts == len(starts) == len(set(self.workers()))

    def told(self) -> dict[str, Any]:
        """What `raymsa status --json` says, which must be what the store holds."""
        words = raymsa(self.homes[0], "status", self.job_id, "--json", "--store", self.store.secret_url())
        assert words.returncode == 0, words.stderr
        told = json.loads(words.stdout)
        assert told["job"]["state"] == self.state()
        assert [run["state"] for run in told["runs"]] == [run.state for run in queries.runs(self.store, self.job_id)]
        return dict(told)


@contextmanager
def served(store: Store, job: Path | Watched, home: Path, **options: Any) -> Iterator[Watched]:
    """A job, new or known, and a driver in a thread of this process that serves it until it is over or paused."""
    watched = job if isinstance(job, Watched) else Watched(store, submit(store, load_job(job, [])), home)
    said: list[str] = []
    over = ("done", "failed", "cancelled", "paused")
    driver = Driver(store, said.append, **options)
    thread = threading.Thread(target=driver.serve, args=(lambda: watched.state() in over,), daemon=True)
    thread.start()
    try:
        yield watched
        wait_for(lambda: not thread.is_alive(), 300)
    except BaseException as error:
        error.add_note("\n".join(said[-30:]))
        with suppress(StoreError):
            error.add_note(watched.log()[-3000:])
        raise
    finally:
        driver.stop()
        thread.join(90)
        assert not thread.is_alive()
    nothing_is_left(watched)


def nothing_is_left(watched: Watched) -> None:
    """No worker lives, and no placement group, of which stopped trials leave some behind."""
    from ray.util import placement_group_table

    wait_for(lambda: all(is_over(pid) for pid in watched.workers()), 20)
    wait_for(lambda: all(group["state"] == "REMOVED" for group in placement_group_table().values()), 20)


def home_with_models(folder: Path, models: Path) -> Path:
    """A RAYMSA_HOME that has the models of another: they are made once."""
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(models)
    return folder


@contextmanager
def started(home: Path, *words: str, **more: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A raymsa command in a process of its own, killed with its driver at the end if it still runs."""
    process = start_raymsa(home, *words, **more)
    try:
        yield process
    except BaseException as error:
        error.add_note(process.words.read_text()[-3000:])  # type: ignore[attr-defined]
        raise
    finally:
        if process.poll() is None:
            for pid in (process.pid, *driver_of(process)):
                os.kill(pid, signal.SIGKILL)
            process.wait(10)


def driver_of(process: "subprocess.Popen[bytes]") -> list[int]:
    """The driver's process, which the command watches; empty before it was started."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(path.read_text().rpartition(")")[2].split()[1])
            if parent == process.pid and b"raymsa.serve" in path.with_name("cmdline").read_bytes():
                found.append(int(path.parent.name))
    return found


def raylet_of(driver: int) -> int:
    """The raylet of a driver's Ray session."""
    named = [(pid, Path(f"/proc/{pid}/cmdline").read_bytes()) for pid in leftovers.members(driver)]
    return next(pid for pid, line in named if line.split(bytes(1))[0].endswith(b"/raylet"))


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A folder that is a disk of 16 MiB; skips the test where none can be mounted."""
    folder.mkdir(parents=True)
    mount = ["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(folder)]
    ended = subprocess.run(mount, capture_output=True, text=True) if shutil.which("mount") else None
    if ended is None or ended.returncode:
        pytest.skip(f"no small disk can be mounted here: {ended.stderr.strip() if ended else 'there is no mount'}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> None:
    """Leave not a byte."""
    block = 2**20
    with (disk / "filler").open("ab", buffering=0) as file:
        while block:
            try:
                file.write(b"0" * block)
            except OSError:
                block //= 2


def make_space(disk: Path) -> None:
    """What `fill` wrote goes."""
    (disk / "filler").unlink()
