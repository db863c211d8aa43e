"""An export as JSON lines: a header, one line per row, and an end that says how many there were.

{"raymsa": "export", "format": 1, "schema": "0003", "tables": {"jobs": ["id", ...], ...}}
{"table": "jobs", "row": {"id": "0f3a55c1", ...}}
{"end": {"jobs": 1, ...}, "sha256": "..."}
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import Table

from raymsa.errors import UsageError
from raymsa.store.rows import check_header, checked, for_json, from_json, header

LONGEST_LINE = 2**28  # bytes; a file without line ends must not fill the memory


class Found(NamedTuple):
    """A row of an export, and where it stands."""

    where: str
    table: Table
    row: dict[str, Any]


class Lines:
    """Writes rows to an open file."""

    def __init__(self, file: Any) -> None:
        self._file, self._digest = file, hashlib.sha256()
        self._put(header())

    def write(self, table: Table, rows: Iterable[Mapping[str, Any]]) -> None:
        """Add rows of a table."""
        for row in rows:
            self._put({"table": table.name, "row": for_json(row)})

    def end(self, counts: Mapping[str, int]) -> None:
        """The last line."""
        self._put({"end": dict(counts), "sha256": self._digest.hexdigest()})

    def _put(self, value: Any) -> None:
        line = _encoded(value)
        self._digest.update(line)
        self._file.write(line)


@contextmanager
def writer(path: Path) -> Iterator[Lines]:
    """Write a file under another name, and give it its own when all is in it and on the disk."""
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            yield Lines(file)
            file.flush()
            os.fsync(file.fileno())
        part.rename(path)
    finally:
        part.unlink(missing_ok=True)


def read(path: Path) -> Iterator[Found]:
    """The rows of a file. Raises UsageError with file and line where it is not as it was written."""
    digest, counts = hashlib.sha256(), Counter[str]()
    by_name: dict[str, Table] = {}
    with path.open("rb") as file:
        for number, line in enumerate(iter(lambda: file.readline(LONGEST_LINE), b""), start=1):
            where = f"{path}: line {number}"
            try:
                value = _decoded(line)
                if number == 1:
                    by_name = {table.name: table for table in check_header(value)}
                elif "end" in value:
                    _check_end(value, counts, digest.hexdigest(), bool(file.read(1)))
                    return
                else:
                    table = by_name[value["table"]]
                    counts[table.name] += 1
                    yield Found(where, table, checked(table, value["row"]))
            except (ValueError, UsageError) as error:
                raise UsageError(f"{where}: {error}") from None
            except (KeyError, TypeError, AttributeError):
                raise UsageError(f"{where}: this is no row of a table") from None
            digest.update(line)
    raise UsageError(f"{path}: it ends in the middle: the rest is missing")


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:  # half a surrogate pair, which a JSON column can hold
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def _decoded(line: bytes) -> Any:
    if not line.endswith(b"\n"):
        raise ValueError("the line is cut off")
    return from_json(line)


def _check_end(value: Any, counts: Mapping[str, int], digest: str, more: bool) -> None:
    if more:
        raise ValueError("there is more after the end")
    if {name: count for name, count in value["end"].items() if count} != dict(counts):
        raise ValueError(
            f"rows are missing: {sum(value['end'].values())} were written, {sum(counts.values())} are here"
        )
    if value["sha256"] != digest:
        raise ValueError("the lines are not those that were written (sha256)")
