"""Are a folder's shards as they were written? Digests first; in a shard that differs, the clips that are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.data import manifest as manifests
from raymsa.data.manifest import NOTES, REJECTS, ROWS, Manifest, ShardFile

READERS = 4  # threads that digest: hashlib lets the others run, and some of them wait for the disk
KNOWN = (manifests.FILE, REJECTS, NOTES, ROWS)  # beside the shards
BROKEN = (pa.ArrowException, OSError, EOFError, ValueError, MemoryError)  # what pyarrow raises on damaged bytes
Group = dict[str, Any]


@dataclass(frozen=True)
class Finding:
    """One file that is not as it was written. `damage` has its damaged row groups, where they can be told.

    Of each: `rows` (first and last, counted from 0), `clips` (their ids), `columns` (those that cannot be read).
    """

    file: str
    problem: str
    damage: list[Group] = field(default_factory=list)

    @property
    def clips(self) -> list[str]:
        """Ids of the clips in damaged row groups."""
        return [name for group in self.damage for name in group["clips"]]


@dataclass(frozen=True)
class Verified:
    """What was looked at, and what was found."""

    folder: str
    files: int
    clips: int
    bytes: int
    findings: list[Finding]


def verify(folder: Path) -> Verified:
    """Every file against the manifest's sha256; a shard that differs is read again, page by page, for its clips.

    The manifest is held against its own digest.

    Raises DataError when there is no manifest that can be read. Holds one column of one row group at most.
    """
    manifest, as_written = manifests.parse_and_compare(folder)
    with ThreadPoolExecutor(READERS) as pool:
        found = [finding for finding in pool.map(lambda file: _compared(folder, file), manifest.files) if finding]
    found += _beside(folder, manifest, as_written)
    names = {file.name for file in manifest.files}
    found += [Finding(name, f"{manifests.FILE} does not know it") for name in _surplus(folder, names)]
    return Verified(
        folder=str(folder),
        files=len(manifest.files),
        clips=sum(file.rows for file in manifest.files),
        bytes=sum(file.bytes for file in manifest.files),
        findings=found,
    )


def _compared(folder: Path, file: ShardFile) -> Finding | None:
    path = folder / file.name
    try:
        size = path.stat().st_size
        if size != file.bytes:
            return Finding(file.name, f"has {size:,} bytes, {file.bytes:,} were written ({file.rows} clips)")
        with path.open("rb") as shard:
            if hashlib.file_digest(shard, "sha256").hexdigest() == file.sha256:
                return None
    except FileNotFoundError:
        return Finding(file.name, f"is missing ({file.rows} clips)")
    except OSError as error:
        return Finding(file.name, f"cannot be read: {error.strerror or error} ({file.rows} clips)")
    damage = list(_damage(path))
    where = "" if damage else f"; which of its {file.rows} clips are damaged cannot be told"
    return Finding(file.name, f"holds other bytes than were written{where}", damage)


def _beside(folder: Path, manifest: Manifest, as_written: bool) -> Iterator[Finding]:
    """The manifest itself, and the csv files beside the shards."""
    made = manifests.digest_of(manifest.files, manifests.shaping(manifest.settings))
    if not as_written:
        yield Finding(manifests.FILE, "says other things than were written")
    elif made != manifest.digest:
        yield Finding(manifests.FILE, f"says data {manifest.digest}, but its files and settings are data {made}")
    for name, sha256 in manifest.beside.items():
        try:
            if hashlib.sha256((folder / name).read_bytes()).hexdigest() != sha256:
                yield Finding(name, "holds other bytes than were written")
        except FileNotFoundError:
            yield Finding(name, "is missing")
        except OSError as error:
            yield Finding(name, f"cannot be read: {error.strerror or error}")


def _surplus(folder: Path, names: set[str]) -> list[str]:
    there = sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))
    return [name for name in there if name not in names and name not in KNOWN]


def _damage(path: Path) -> Iterator[Group]:
    """The row groups of a shard that cannot be read: pages written with a checksum are held against it."""
    try:
        with path.open("rb") as opened:
            shard = pq.ParquetFile(opened, page_checksum_verification=True)
            first = 0
            for number in range(shard.num_row_groups):
                rows = shard.metadata.row_group(number).num_rows
                broken = [name for name in shard.schema_arrow.names if not _reads(shard, number, name)]
                if broken:
                    yield {"rows": [first, first + rows - 1], "clips": _ids(shard, number, broken), "columns": broken}
                first += rows
    except BROKEN:  # its end, where the places of all others are written down
        return


def _reads(shard: Any, number: int, column: str) -> bool:
    try:
        shard.read_row_group(number, columns=[column])
    except BROKEN:
        return False
    return True


def _ids(shard: Any, number: int, broken: list[str]) -> list[str]:
    if "id" in broken:
        return []
    ids: list[str] = shard.read_row_group(number, columns=["id"])["id"].to_pylist()
    return ids
