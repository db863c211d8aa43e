"""How fast clips come out of shards, on both ways, against a bare pyarrow scan of the same row groups.

    python -m tests.benchmarks.bench_stream [--rows 120] [--rounds 3] [--epochs 3]

Makes its own shards: 16 frames of 252 x 336 pixels and 5 s of sound a clip, 4.2 MB. The ways take turns; medians.
Memory is what the processes of the Ray session and this one hold more than when the session was fresh: their own, and
the object store once. Processor time is that of all of them, and tells the cost on a busy machine too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.clip import SHARD_SCHEMA, Clip, from_row, to_row
from raymsa.data.groups import Plan, RowGroup, clips_of, count, row_groups, shuffled, table
from raymsa.data.shards import stream
from raymsa.data.shared import free, places, share, take

GROUP_ROWS, FILE_GROUPS = 15, 4  # as prepare makes them of clips of this size
TEN_TIMES = 10
MANY_GROUPS, MANY_EPOCHS = 570, 10

Figures = dict[str, list[float]]


def main() -> None:
    """Measure and print."""
    asked = argparse.ArgumentParser()
    asked.add_argument("--rows", type=int, default=120)
    asked.add_argument("--rounds", type=int, default=3)
    asked.add_argument("--epochs", type=int, default=3)
    args = asked.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        groups = row_groups(Path(folder), write_shards(Path(folder), args.rows))
        show(groups, measure(groups, args.rounds, args.epochs, Path(folder) / "wanted"))


def write_shards(folder: Path, rows: int) -> list[str]:
    """Shards of clips that compress about as well as decoded video does."""
    random, names = np.random.default_rng(0), []
    for number, start in enumerate(range(0, rows, GROUP_ROWS * FILE_GROUPS)):
        names.append(f"train-{number:05d}.parquet")
        with pq.ParquetWriter(folder / names[-1], SHARD_SCHEMA, compression="zstd", use_dictionary=False) as writer:
            for first in range(start, min(rows, start + GROUP_ROWS * FILE_GROUPS), GROUP_ROWS):
                made = [to_row(noise(random, i)) for i in range(first, min(rows, first + GROUP_ROWS))]
                writer.write_table(pa.Table.from_pylist(made, SHARD_SCHEMA))
    return names


def noise(random: np.random.Generator, number: int) -> Clip:
    """Coarse patches under fine noise."""
    coarse = random.integers(0, 128, (1, 18, 24, 3), dtype=np.uint8).repeat(14, 1).repeat(14, 2)
    frames = coarse + random.integers(0, 16, (16, 252, 336, 3), dtype=np.uint8)
    sound = random.normal(0, 3000, 5 * 16_000).astype(np.int16)
    return Clip(f"c{number:06d}", "v", "words " * 20, 1.0, "train", 5.0, frames, sound)


def measure(groups: list[RowGroup], rounds: int, epochs: int, mark: Path) -> dict[str, Figures]:
    """Two Ray sessions, because an object store never gives back to the machine what it once filled."""
    from raymsa.cluster import session

    once = [shuffled(groups, 1, epoch) for epoch in range(epochs)]
    ten = [TEN_TIMES * passing for passing in once[:2]]
    many = [(groups * MANY_GROUPS)[:MANY_GROUPS] for _ in range(MANY_EPOCHS)]
    found: dict[str, Figures] = defaultdict(lambda: defaultdict(list))

    def streamed(plan: Plan) -> Any:
        return stream(plan, mark)

    with session(None):
        fresh = held_mib()
        through(streamed, once, found["stream, first in its session"], fresh)
        for _ in range(rounds):
            scan(once[0], found["bare pyarrow scan"])
            through(streamed, once, found["stream"], fresh)
        for _ in range(rounds):
            scan(once[0], found["bare pyarrow scan"])
            through(streamed, ten, found[f"stream, {TEN_TIMES}x the data"], fresh)
        for _ in range(rounds):
            start_only(streamed, many, found[f"stream, {MANY_EPOCHS} x {MANY_GROUPS} row groups"])
            clips_in_memory(once[0][0], found)
    with session(None):
        fresh = held_mib()
        for _ in range(rounds):
            scan(once[0], found["bare pyarrow scan"])
            through(sharing(groups), once, found["shared"], fresh)
    return found


def scan(groups: list[RowGroup], kept: Figures) -> None:
    """The same row groups with pyarrow alone."""
    begun, busy = time.monotonic(), cpu_s()
    files = {group.path: pq.ParquetFile(group.path) for group in groups}
    rows = sum(files[group.path].read_row_group(group.number).num_rows for group in groups)
    kept["rows/s"].append(rows / (time.monotonic() - begun))
    kept["cpu ms/clip"].append((cpu_s() - busy) / rows * 1000)


def clips_in_memory(group: RowGroup, found: dict[str, Figures]) -> None:
    """Clips of a table that is read already: with every byte copied through Python, and as views."""
    rows = table(group)
    ways: dict[str, Callable[[], list[Clip]]] = {
        "clips of a table, copied through Python": lambda: [
            from_row(rows.slice(i, 1).to_pylist()[0]) for i in range(rows.num_rows)
        ],
        "clips of a table, copied (the stream)": lambda: list(clips_of(rows, copy=True)),
        "clips of a table, views (shared)": lambda: list(clips_of(rows)),
    }
    for name, make in ways.items():
        begun = time.monotonic()
        made = sum(len(make()) for _ in range(5))
        found[name]["rows/s"].append(made / (time.monotonic() - begun))


def sharing(groups: list[RowGroup]) -> Callable[[Plan], Any]:
    """A reader of shared clips; sharing them is part of its start-up, once per job."""

    def begin(plan: Plan) -> Any:
        shared, why = share(groups)
        if shared is None:
            raise SystemExit(f"the clips do not fit: {why}; take fewer --rows")
        clips = take(plan, places(shared.name) or {})
        clips.close = lambda: free(shared)  # type: ignore[method-assign]
        return clips

    return begin


def through(begin: Callable[[Plan], Any], plan: Plan, kept: Figures, fresh_mib: float) -> None:
    """All passes of a plan, one clip after another."""
    with Memory(fresh_mib) as memory, closing(begin(plan)) as clips:
        begun, busy = memory.begun, 0.0
        first = gone = 0.0
        for number in range(len(plan)):
            for clip in clips.of(number):
                if gone:
                    kept["s between epochs"].append(time.monotonic() - gone)
                    gone = 0.0
                first, busy = first or time.monotonic(), busy or cpu_s()
                del clip
            gone = time.monotonic()
        rows = sum(map(count, plan)) - 1
        kept["cpu ms/clip"].append((cpu_s() - busy) / rows * 1000)
    kept["start-up s"].append(first - begun)
    kept["rows/s"].append(rows / (gone - first))
    kept["peak MiB"].append(memory.peak_mib)


def start_only(begin: Callable[[Plan], Any], plan: Plan, kept: Figures) -> None:
    """Until the first clip."""
    begun = time.monotonic()
    with closing(begin(plan)) as clips:
        next(clips.of(0))
        kept["start-up s"].append(time.monotonic() - begun)


class Memory:
    """The most that this process and its descendants hold during a block, above what they held with a fresh session."""

    def __init__(self, fresh_mib: float) -> None:
        self.begun = time.monotonic()
        self.peak_mib = 0.0
        self._before = fresh_mib
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(0.1):
            self.peak_mib = max(self.peak_mib, held_mib() - self._before)


def held_mib() -> float:
    """Memory of their own of this process and its descendants, and the largest shared part (the object store's)."""
    own, common = 0, 0
    for pid in family(os.getpid()):
        with suppress(OSError, ValueError, KeyError):
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
            facts = {line.split(":")[0]: line.split()[1] for line in lines if line.startswith("Rss")}
            own += int(facts["RssAnon"])
            common = max(common, int(facts["RssShmem"]))
    return (own + common) / 1024


def cpu_s() -> float:
    """Processor time of this process and its descendants: what the work costs, also on a busy machine."""
    total = 0
    for pid in family(os.getpid()):
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += int(fields[11]) + int(fields[12])
    return total / os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all that it started."""
    children: list[int] = []
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            children += [int(child) for child in (thread / "children").read_text().split()]
    return [pid, *(one for child in children for one in family(child))]


def show(groups: list[RowGroup], found: dict[str, Figures]) -> None:
    """One table of medians."""
    columns = ("rows/s", "of the scan", "cpu ms/clip", "start-up s", "s between epochs", "peak MiB")
    scanned = statistics.median(found["bare pyarrow scan"]["rows/s"])
    size = sum(group.bytes for group in groups) / 2**20
    print(f"{count(groups)} clips, {size:,.0f} MiB in {len(groups)} row groups; {os.cpu_count()} cores; medians")
    print(f"{'':42}" + "".join(f"{name:>18}" for name in columns))
    for way, figures in found.items():
        medians = {name: statistics.median(values) for name, values in figures.items() if values}
        if "rows/s" in medians and not way.startswith("clips of"):
            medians["of the scan"] = medians["rows/s"] / scanned
        shown = [f"{medians[c]:.2f}" if c in medians else "" for c in columns]
        print(f"{way:42}" + "".join(f"{value:>18}" for value in shown))


if __name__ == "__main__":
    main()
