"""What the tests of faults share: a quick job on shards that are made without Ray, and what must hold after a fault."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymsa import queue
from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import manifest as manifests
from raymsa.data.folder import settings_of
from raymsa.datasets.table import Columns, Table
from raymsa.driver import Driver, submit
from raymsa.home import run_dir
from raymsa.spec import load_job
from raymsa.store import Store, queries
from raymsa.target import Labels
from raymsa.training import checkpoint
from tests.clips import clip
from tests.jobs import job_file, raymsa, wait_for

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


def of_home(home: Path) -> list[int]:
    """Every process that has this RAYMSA_HOME, which processes hand on, and is not over."""
    ours, found = f"RAYMSA_HOME={home}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with suppress(OSError):
            if ours in path.read_bytes().split(b"\0") and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
    return [pid for pid in found if not is_over(pid)]


def is_over(pid: int) -> bool:
    """There is no such process, or it only waits for its parent to notice."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def named(pids: list[int]) -> list[str]:
    """The processes, for a message."""
    lines = []
    for pid in pids:
        with suppress(OSError):
            lines.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_bytes().replace(bytes(1), b' ').decode()[:150]}")
    return lines


class Watched:
    """The one run of a job, as its store and its folder tell it."""

    def __init__(self, store: Store, job_id: str, home: Path) -> None:
        self.store, self.job_id, self.home = store, job_id, home

    @property
    def run(self) -> queries.RunRow:
        (run,) = queries.runs(self.store, self.job_id)
        return run

    @property
    def folder(self) -> Path:
        return self.home / "runs" / self.run.id

    def state(self) -> str:
        """The job's."""
        return queue.job_state(queries.tasks(self.store, self.job_id))

    def log(self) -> str:
        """What the run's workers wrote so far."""
        runs = queries.runs(self.store, self.job_id)
        path = self.home / "runs" / runs[0].id / "log.txt" if runs else None
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
        words = raymsa(self.home, "status", self.job_id, "--json", "--store", self.store.secret_url())
        assert words.returncode == 0, words.stderr
        told = json.loads(words.stdout)
        assert told["job"]["state"] == self.state()
        assert [run["state"] for run in told["runs"]] == [run.state for run in queries.runs(self.store, self.job_id)]
        return dict(told)


@contextmanager
def served(store: Store, job: Path, home: Path, **options: Any) -> Iterator[Watched]:
    """A job, and a driver in a thread of this process that serves it to its end; the job must be over at the end."""
    watched = Watched(store, submit(store, load_job(job, [])), home)
    said: list[str] = []
    over = ("done", "failed", "cancelled", "paused")
    driver = Driver(store, said.append, **options)
    thread = threading.Thread(target=driver.serve, args=(lambda: watched.state() in over,), daemon=True)
    thread.start()
    try:
        yield watched
        wait_for(lambda: not thread.is_alive(), 120)
    except BaseException as error:
        error.add_note("\n".join([*said[-30:], watched.log()[-3000:]]))
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
