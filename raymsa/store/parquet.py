"""An export as a folder of Parquet files, one per table; JSON columns are texts in them.

The header of `jsonl.py` is in the metadata of each file, under the key `raymsa`.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from sqlalchemy import Table

from raymsa.errors import UsageError
from raymsa.store.jsonl import Found
from raymsa.store.rows import ORDER, check_header, checked, from_json, header, kinds

ROW_GROUP = 10_000  # rows held in memory
READ_ROWS = 1_000
TYPES = {bool: pa.bool_(), int: pa.int64(), float: pa.float64(), str: pa.string(), object: pa.string()}
KEY = b"raymsa"


class Folder:
    """Writes rows to one file per table."""

    def __init__(self, files: dict[str, pq.ParquetWriter]) -> None:
        self._files = files
        self._held: dict[str, list[dict[str, Any]]] = {name: [] for name in files}

    def write(self, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of a table."""
        held = self._held[table.name]
        held.extend(_with_texts(table, row) for row in rows)
        if len(held) >= ROW_GROUP:
            self._flush(table)

    def end(self, counts: Mapping[str, int]) -> None:
        """Write what is held; how many rows there are is in each file's footer."""
        for table in ORDER:
            self._flush(table)

    def _flush(self, table: Table) -> None:
        rows = self._held[table.name]
        if rows:
            self._files[table.name].write_table(pa.Table.from_pylist(rows, _schema(table)))
            rows.clear()


@contextmanager
def writer(path: Path) -> Iterator[Folder]:
    """Write a folder under another name, and give it its own when all is in it and on the disk."""
    part = path.with_name(f".{path.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        with ExitStack() as files:
            yield Folder({table.name: files.enter_context(_file(part, table)) for table in ORDER})
        for file in part.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        part.rename(path)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def read(path: Path) -> Iterator[Found]:
    """The rows of a folder. Raises UsageError with file and row where it is not as it was written."""
    with _whole(path / "jobs.parquet") as file:
        given = (file.schema_arrow.metadata or {}).get(KEY, b"null")
    try:
        order = check_header(from_json(given))
    except (ValueError, UsageError) as error:
        raise UsageError(f"{path / 'jobs.parquet'}: {error}") from None
    for table in order:
        yield from _rows(path / f"{table.name}.parquet", table)


def _file(folder: Path, table: Table) -> pq.ParquetWriter:
    return pq.ParquetWriter(folder / f"{table.name}.parquet", _schema(table), write_page_checksum=True)


def _schema(table: Table) -> pa.Schema:
    fields = [pa.field(name, TYPES[kind]) for name, kind in kinds(table).items()]
    return pa.schema(fields, {KEY: json.dumps(header()).encode()})


@cache
def _json_columns(table: Table) -> frozenset[str]:
    return frozenset(name for name, kind in kinds(table).items() if kind is object)


def _with_texts(table: Table, row: Mapping[str, Any]) -> dict[str, Any]:
    texts = {name: json.dumps(row[name]) for name in _json_columns(table) if row[name] is not None}
    return {**row, **texts}  # in ASCII: Arrow refuses half a surrogate pair, which JSON can hold


@contextmanager
def _whole(path: Path) -> Iterator[pq.ParquetFile]:
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except FileNotFoundError:
        raise UsageError(f"{path}: is missing: this is no whole export") from None
    except (pa.ArrowException, OSError) as error:
        raise UsageError(f"{path}: is damaged: {' '.join(str(error).split())[:200]}") from None


def _rows(path: Path, table: Table) -> Iterator[Found]:
    number = 0
    with _whole(path) as file:
        for batch in file.iter_batches(READ_ROWS):
            for row in batch.to_pylist():
                number += 1
                where = f"{path}: row {number}"
                try:
                    yield Found(where, table, checked(table, _with_values(table, row)))
                except ValueError as error:
                    raise UsageError(f"{where}: {error}") from None


def _with_values(table: Table, row: dict[str, Any]) -> dict[str, Any]:
    texts = {name: row[name] for name in _json_columns(table) if isinstance(row.get(name), str)}
    return {**row, **{name: from_json(text) for name, text in texts.items()}}
