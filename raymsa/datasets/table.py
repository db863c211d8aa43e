"""Your own data: one CSV, TSV or JSON-lines file, with columns that you name."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from raymsa.clip import RawClip, Reject
from raymsa.datasets.base import Layout, Row
from raymsa.datasets.textfile import Fields, as_text, json_lines, table_rows
from raymsa.plugins import Spec

DELIMITERS = {".csv": ",", ".tsv": "\t"}


class Columns(Spec):
    """What the columns (CSV, TSV) or keys (JSON lines) of your file are called."""

    id: str = Field("id", description="name of the clip; each once in the file")
    text: str = Field("text", description="what is said; may be empty where there is a media file")
    score: str = Field("score", description="the label: a number from `low` to `high`, or the name of a class")
    split: str = Field("split", description="train, valid (or val, dev) or test")
    media: str | None = Field(
        None, description="media file, a path relative to the raw folder; an empty one is a text-only clip"
    )
    order: str | None = Field(
        None, description="place of a clip in its video, a number; default: the order of the file's rows"
    )
    targets: tuple[str, ...] = Field((), description="further label columns to keep; `task.target` may name one")
    video: str | None = Field(None, description="id of the longer video the clip was cut from; default: the clip's")

    @model_validator(mode="after")
    def _one_label(self) -> "Columns":
        if "label" in self.targets and self.score != "label":
            raise ValueError(f"targets: `label` is the column that `score` names ({self.score}); rename the other one")
        return self

    def required(self) -> tuple[str, ...]:
        """The names that must stand in the file's first line."""
        named = (self.id, self.text, self.score, self.split, self.media, self.video, self.order, *self.targets)
        return tuple(name for name in named if name is not None)


class Table(Layout):
    """Your own clips: one CSV, TSV or JSON-lines file with columns for id, text, score, split and media path."""

    expects: ClassVar[str] = "your table (`file:`) and the media files that it names"

    kind: Literal["table"] = "table"
    file: str = Field("clips.csv", description="the table, relative to the raw folder: .csv, .tsv or .jsonl")
    columns: Columns = Field(default_factory=Columns, description="what the columns are called")
    encoding: str = Field("utf-8-sig", description="character encoding of the table, for example utf-8-sig or gb18030")

    @field_validator("file")
    @classmethod
    def _known_ending(cls, value: str) -> str:
        if Path(value).suffix.lower() not in (*DELIMITERS, ".jsonl"):
            raise ValueError(f"given {value!r}; give a file that ends in .csv, .tsv or .jsonl")
        return value

    @field_validator("encoding")
    @classmethod
    def _known_encoding(cls, value: str) -> str:
        try:
            "".encode(value)
        except LookupError:
            raise ValueError(f"given {value!r}; give an encoding Python knows, for example utf-8-sig") from None
        return value

    def clips(self, raw: Path) -> Iterator[RawClip | Reject]:
        """Every row of the table, in file order. Raises DataError when the file or a column is missing."""
        return self.checked(self._row(number, fields) for number, fields in self._fields(raw / self.file))

    def _fields(self, path: Path) -> Iterator[tuple[int, Fields | Reject]]:
        if path.suffix.lower() == ".jsonl":
            return _json_rows(path, self.columns.required(), self.encoding)
        return table_rows(path, self.columns.required(), DELIMITERS[path.suffix.lower()], (self.encoding,))

    def _row(self, number: int, fields: Fields | Reject) -> Row | Reject:
        if isinstance(fields, Reject):
            return fields
        names = self.columns
        clip = fields[names.id].strip()
        if not clip:
            return Reject(f"line {number}", "", f"{names.id} is empty")
        video = fields[names.video].strip() if names.video else ""
        media = fields[names.media].strip() if names.media else ""
        targets = {"label": fields[names.score], **{name: fields[name] for name in names.targets}}
        order = _number(fields[names.order]) if names.order else None
        if names.order and order is None:
            return Reject(clip, media, f"{names.order} {fields[names.order]!r} is not a number")
        return Row(clip, video or clip, fields[names.text], targets, fields[names.split], media, order)


def _number(text: str) -> float | None:
    try:
        return float(text) if math.isfinite(float(text)) else None
    except ValueError:
        return None


def _json_rows(path: Path, columns: tuple[str, ...], encoding: str) -> Iterator[tuple[int, Fields | Reject]]:
    for number, row in json_lines(path, (encoding,)):
        if isinstance(row, Reject):
            yield number, row
            continue
        missing = [name for name in columns if name not in row]
        if missing:
            yield number, Reject(f"line {number}", "", f"no field {', '.join(missing)}")
        else:
            yield number, {name: as_text(row[name]) for name in columns}
