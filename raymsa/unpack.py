"""Taking a parcel in: rows into the store, files under RAYMSA_HOME/runs; all of it, or nothing.

Files are copied and checked under another name. The rows come in one transaction, and the folders get their names at
its end: killed before it, the store knows no run, and the next import finds its own folders and goes on from there.
"""

from __future__ import annotations

import fcntl
import filecmp
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import select

from raymsa.errors import RaymsaError, UsageError
from raymsa.home import home, run_dir
from raymsa.parcel import ROWS, Parcel, copy, read
from raymsa.store import Store
from raymsa.store.imports import import_
from raymsa.store.jsonl import read as read_rows
from raymsa.store.tables import runs

PART = ".import-"  # of the folder that files are copied to; no run has such an id
SAME = ("spec_digest", "data_digest", "finished_at")  # two rows that agree in these are one run


class Taken(NamedTuple):
    """Runs by id: taken in, given the folder they lacked, there already; and how many tasks are paused now."""

    runs: list[str]
    files: list[str]
    there: list[str]
    paused: int


def take_in(store: Store, folder: Path, who: str, most_bytes: float) -> Taken:
    """Take in what `raymsa export --to raymsa` or `raymsa push` wrote; a run that is there stays as it is.

    Raises NotFound, UsageError when the parcel is not as it was packed or too large, RaymsaError, StoreError.
    """
    try:
        with _staging() as part:
            room = shutil.disk_usage(part).free
            parcel = read(folder, min(most_bytes, room))
            for item, to in [*parcel.left, (parcel.rows, Path(ROWS))]:
                copy(parcel, item, part / to)
            return _settle(store, parcel, part, who)
    except OSError as error:
        raise RaymsaError(f"{home() / 'runs'}: cannot be written: {error.strerror or error}") from None


def _settle(store: Store, parcel: Parcel, part: Path, who: str) -> Taken:
    """Decide for each run, then do it in one transaction."""
    known, theirs = _known(store, parcel.contents.runs), _rows(parcel, part)
    new = [run_id for run_id in parcel.contents.runs if run_id not in known]
    lacking = [run_id for run_id in known if (part / run_id).exists() and not run_dir(run_id).exists()]
    lacking = [run_id for run_id in lacking if all(known[run_id][name] == theirs[run_id][name] for name in SAME)]
    moves = [run_id for run_id in (*new, *lacking) if (part / run_id).exists() and not _is_in_place(part, run_id)]
    moved: list[Path] = []

    def move() -> None:
        for run_id in moves:
            (part / run_id).rename(run_dir(run_id))
            moved.append(run_dir(run_id))
        _sync(home() / "runs")

    try:
        paused = import_(store, part / ROWS, who, join=True, then=move).paused
    except BaseException:
        for path in moved:
            shutil.rmtree(path)
        raise
    return Taken(new, lacking, [run_id for run_id in known if run_id not in lacking], paused)


def _known(store: Store, run_ids: tuple[str, ...]) -> dict[str, Any]:
    """Those of the runs that the store has."""
    with store.read() as connection:
        columns = [runs.c[name] for name in ("id", *SAME)]
        found = {row["id"]: row for row in connection.execute(select(*columns)).mappings()}
    return {run_id: found[run_id] for run_id in run_ids if run_id in found}


def _rows(parcel: Parcel, part: Path) -> dict[str, dict[str, Any]]:
    found = {one.row["id"]: one.row for one in read_rows(part / ROWS) if one.table is runs}
    if set(found) != set(parcel.contents.runs):
        raise UsageError(f"{parcel.folder}: its rows are of other runs than its files")
    return found


def _is_in_place(part: Path, run_id: str) -> bool:
    """Whether an import that was killed has put the run's folder in place. Raises UsageError for any other folder."""
    there = run_dir(run_id)
    if not there.exists():
        return False
    ours, theirs = _files(part / run_id), _files(there)
    if ours != theirs or not all(filecmp.cmp(part / run_id / name, there / name, shallow=False) for name in ours):
        raise UsageError(f"{there}: is there already, and the store knows no such run: move it away first")
    return True


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir()}


@contextmanager
def _staging() -> Iterator[Path]:
    """A new folder beside those of runs, for one import at a time; what a killed one left is removed."""
    folder = home() / "runs"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".import.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for left in folder.glob(f"{PART}*"):
            shutil.rmtree(left)
        part = Path(tempfile.mkdtemp(prefix=PART, dir=folder))
        try:
            yield part
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _sync(folder: Path) -> None:
    """New names to the disk, before the rows that speak of them."""
    at = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(at)
    finally:
        os.close(at)
