"""The small columns of a folder of shards, without its frames and sound; and one clip, found by its name."""

from __future__ import annotations

import difflib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from raymsa.clip import Clip, from_row
from raymsa.data.manifest import Manifest
from raymsa.errors import DataError, NotFound

READERS = 4  # threads: a file costs a wait for the disk, and decoding a little text
SHOWN = 5  # names in an error
BROKEN = (pa.ArrowException, OSError, EOFError)  # of a shard that is not whole


def columns(folder: Path, manifest: Manifest, names: list[str]) -> Any:
    """The named columns of every shard as one arrow table, in the manifest's order. Raises DataError."""
    with ThreadPoolExecutor(READERS) as pool:
        return pa.concat_tables(pool.map(lambda file: _columns(folder / file.name, names), manifest.files))


def find(folder: Path, manifest: Manifest, name: str) -> Clip:
    """The clip with this id, or with the only id that begins so. Raises NotFound with what comes near."""
    ids = columns(folder, manifest, ["id"])["id"].to_pylist()
    row = ids.index(_only(name, ids, folder))
    for file in manifest.files:
        if row < file.rows:
            return _clip(folder / file.name, row)
        row -= file.rows
    raise DataError(f"{folder}: the shards hold more rows than the manifest says; see `raymsa data verify {folder}`")


def _columns(path: Path, names: list[str]) -> Any:
    try:
        with path.open("rb") as file:
            return pq.ParquetFile(file).read(columns=names)
    except BROKEN as error:
        raise DataError(_unreadable(path, error)) from None


def _clip(path: Path, row: int) -> Clip:
    """One row of a shard; no more than its row group is read."""
    try:
        with path.open("rb") as file:
            shard, group = pq.ParquetFile(file), 0
            while row >= shard.metadata.row_group(group).num_rows:
                row -= shard.metadata.row_group(group).num_rows
                group += 1
            return from_row(shard.read_row_group(group).slice(row, 1).to_pylist()[0])
    except BROKEN as error:
        raise DataError(_unreadable(path, error)) from None


def _unreadable(path: Path, error: BaseException) -> str:
    reason = " ".join(str(error).split())[:200]
    return f"{path}: cannot be read: {reason}; `raymsa data verify {path.parent}` names what is damaged"


def _only(name: str, ids: list[str], folder: Path) -> str:
    if name in ids:
        return name
    begin = [each for each in ids if name and each.startswith(name)]
    if len(begin) == 1:
        return begin[0]
    if begin:
        raise NotFound(f"{name!r}: {len(begin)} clips of {folder} begin so: {_listed(begin)}; give more of the id")
    near = [each for each in ids if name and name in each] or difflib.get_close_matches(name, ids, SHOWN)
    raise NotFound(f"{name!r}: no such clip in {folder}; {f'near: {_listed(near)}' if near else _first(ids)}")


def _listed(ids: list[str]) -> str:
    return ", ".join(ids[:SHOWN]) + (", ..." if len(ids) > SHOWN else "")


def _first(ids: list[str]) -> str:
    return f"its first ids are {_listed(ids)}" if ids else "it holds no clips"
