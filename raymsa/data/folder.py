"""The folder that shards are written to: whose it is, who writes there now, and what was left by a call before."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from raymsa.clip import SPLITS
from raymsa.data import manifest as manifests
from raymsa.data.manifest import ROWS, Manifest, differences, shaping
from raymsa.data.plan import row_changes
from raymsa.data.shardfile import PARTS
from raymsa.datasets.base import Layout
from raymsa.errors import Cancelled, DataError
from raymsa.place import is_local, lock, names, remove, write_at_once

SHARD_NAME = re.compile(rf"({'|'.join(SPLITS)})-\d{{5}}\.parquet")
WAIT_S = 0.5
Digests = list[tuple[str, str]]


def finished(dataset: Layout, out: Path) -> Manifest | None:
    """The manifest of a prepare that came to its end. Raises DataError when its settings were others."""
    if manifests.FILE not in names(out):
        return None
    there = manifests.read(out)
    differs = differences(shaping(there.settings), shaping(settings_of(dataset)))
    if differs:
        raise DataError(f"{out}: holds clips prepared with other settings ({differs}); give another --out DIR")
    remove(out / PARTS)  # of a call that was killed after its manifest
    return there


def check_rows(out: Path, there: Manifest, now: Digests, gone: set[str]) -> None:
    """Raises DataError when the label file, or the files of its clips, are not those the shards were made from.

    Clips whose file is `gone` are not compared: deleting what is in the shards already is no change.
    """
    if not there.rows or there.rows == manifests.digest_of_rows(now):
        return
    text = (out / ROWS).read_text(encoding="utf-8") if ROWS in names(out) else ""
    rows = [(row[0], row[1]) for row in csv.reader(io.StringIO(text, newline="")) if len(row) == 2][1:]
    before, after = ([row for row in some if row[0] not in gone] for some in (rows, now))
    changes = row_changes(before, after)
    if rows and not changes:
        return
    raise DataError(
        f"{out}: was prepared from other rows ({changes or 'they differ'}); "
        "give another --out DIR, or delete the folder to prepare again"
    )


def claim(dataset: Layout, out: Path) -> None:
    """Mark `out` as ours, with the settings. Raises DataError when it holds somebody else's shards."""
    path = out / PARTS / "settings.json"
    settings = shaping(settings_of(dataset))
    if path.name in names(path.parent):
        differs = differences(json.loads(path.read_text(encoding="utf-8")), settings)
        if differs:
            raise DataError(
                f"{out}: holds an unfinished prepare with other settings ({differs}); "
                "delete it or give another --out DIR"
            )
        return
    if any(SHARD_NAME.fullmatch(name) for name in names(out)):
        raise DataError(f"{out}: holds shards without a manifest; delete it or give another --out DIR")
    if is_local(out):
        path.parent.mkdir(exist_ok=True)
    write_at_once(path, json.dumps(settings))


@contextlib.contextmanager
def locked(out: Path, say: Callable[[str], None], stop: Callable[[], bool], who: str = "prepare") -> Iterator[None]:
    """One prepare per folder, or whatever `who` is: a second one waits, and says so.

    Raises Cancelled when `stop` is asked for meanwhile. The lock goes with the process, however that ends. An address
    has none.
    """
    if not is_local(out):
        yield
        return
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".lock").open("a") as file:
        waiting = False
        while not lock(file):
            if not waiting:
                say(f"{out}: another {who} is writing there; waiting for it")
            waiting = True
            if stop():
                raise Cancelled(f"{out}: stopped while waiting for another {who}")
            time.sleep(WAIT_S)
        yield


def drop_parts(out: Path) -> None:
    """Remove what tasks that were ended in the middle left: it may be what fills the disk."""
    if is_local(out):
        for part in (out / PARTS).glob("*.part"):
            part.unlink(missing_ok=True)


def drop_strays(out: Path, made: Manifest) -> None:
    """Shards of an interrupted call whose raw folder had other rows; `claim` has seen that they are ours."""
    kept = {file.name for file in made.files}
    for name in names(out):
        if SHARD_NAME.fullmatch(name) and name not in kept:
            (out / name).unlink()


def settings_of(dataset: Layout) -> dict[str, Any]:
    """What the manifest keeps of the dataset's config: not where it lies."""
    return dataset.model_dump(mode="json", exclude={"raw", "shards"})


def as_csv(header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """The text of a CSV file."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue()


def disk_line(error: OSError, out: Path) -> str:
    """One line for a disk that is full, or a file that cannot be read or written."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{out}: no space left on the disk; free some and run again: finished shards are kept"
    return f"{error.filename or out}: {error.strerror or error}"
