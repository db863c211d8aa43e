"""Label files of every kind, read whole: CSV with or without its header line, JSON lines, a JSON list; UTF-8 or not.

A row that is damaged becomes a Reject that names its line; a file that is unusable is a DataError of one line.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from raymsa.clip import Reject
from raymsa.errors import DataError

UTF8 = ("utf-8-sig",)  # with or without the mark that Excel sets
CHINESE = ("utf-8-sig", "gb18030")  # GBK is a part of GB 18030
Fields = dict[str, str]


def read_text(path: Path, encodings: tuple[str, ...] = UTF8) -> str:
    """The file's text in the first encoding that all its bytes fit. Raises DataError when there is none, or no file."""
    try:
        with path.open("rb") as file:
            content = file.read()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}; a label file belongs there") from None
    for encoding in encodings:
        try:
            return content.decode(encoding)
        except UnicodeDecodeError as error:
            at = error.start
    raise DataError(f"{path}: not {' or '.join(encodings)} text (byte {at}); save it as UTF-8")


def table_rows(
    path: Path,
    columns: tuple[str, ...],
    delimiter: str = ",",
    encodings: tuple[str, ...] = UTF8,
    without_header: tuple[str, ...] = (),
) -> Iterator[tuple[int, Fields | Reject]]:
    """Line number and named fields of each row of a CSV file; blank lines are no rows.

    `without_header` are the names of the columns in a file whose first line is a row already: one that has as many
    fields and names none of them. Raises DataError for a file or column that is missing and for another encoding.
    """
    reader = csv.reader(io.StringIO(read_text(path, encodings), newline=""), delimiter=delimiter)
    names: list[str] = []
    try:
        for fields in filter(None, reader):
            if names:
                yield reader.line_num, _named(reader.line_num, names, fields)
                continue
            given = [field.strip() for field in fields]
            if len(given) == len(without_header) and not set(given) & set(without_header):
                names = list(without_header)
                yield reader.line_num, _named(reader.line_num, names, fields)
            else:
                names = given
                _check_columns(path, names, columns)
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: not a CSV row: {error}") from None
    if not names:
        _check_columns(path, names, columns)


def json_lines(path: Path, encodings: tuple[str, ...] = UTF8) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Line number and object of each line that is not blank. Raises DataError when the file cannot be read."""
    for number, line in enumerate(read_text(path, encodings).split("\n"), start=1):
        if line.strip():
            try:
                yield number, _object(f"line {number}", json.loads(line))
            except (ValueError, RecursionError):
                yield number, Reject(f"line {number}", "", "not valid JSON")


def json_list(path: Path, encodings: tuple[str, ...] = UTF8) -> Iterator[tuple[int, dict[str, Any] | Reject]]:
    """Number, from 1, and object of each entry of the list that a JSON file holds. Raises DataError when it is none."""
    try:
        entries = json.loads(read_text(path, encodings))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(entries, list):
        raise DataError(f"{path}: holds one {type(entries).__name__}; a list of objects ([{{...}}, ...]) belongs there")
    for number, entry in enumerate(entries, start=1):
        yield number, _object(f"entry {number}", entry)


def as_text(value: Any) -> str:
    """A JSON value as it would stand in a table; null is empty."""
    return "" if value is None else str(value)


def _check_columns(path: Path, given: list[str], wanted: tuple[str, ...]) -> None:
    missing = [name for name in wanted if name not in given]
    if missing:
        raise DataError(
            f"{path}: column {', '.join(missing)} is missing; given {', '.join(given) or 'an empty file'}; "
            f"the first line must name {', '.join(wanted)}"
        )


def _named(number: int, names: list[str], fields: list[str]) -> Fields | Reject:
    if len(fields) > len(names):
        return Reject(f"line {number}", "", "more fields than the first line names (a comma outside quotes?)")
    if len(fields) < len(names):
        return Reject(f"line {number}", "", "fewer fields than the first line names")
    return dict(zip(names, fields, strict=True))


def _object(where: str, value: Any) -> dict[str, Any] | Reject:
    return value if isinstance(value, dict) else Reject(where, "", "not a JSON object ({...})")
