"""Everything that can be named in a job file, read from the spec itself: it cannot be out of date."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from raymsa.plugins import kind_of
from raymsa.spec import JobSpec

WORDS = {str: "text", int: "whole number", float: "number", bool: "true | false", type(None): "null", Any: "anything"}
BOUNDS = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}


class Row(NamedTuple):
    """One field. `kind` is the one kind of its section that has it, "" when all have; `default` is plain data."""

    field: str  # dotted, as `--set` takes it
    kind: str
    type: str
    required: bool
    default: Any
    description: str


def kinds(spec: type[BaseModel] = JobSpec) -> list[Row]:
    """A row for each field of a job, sections and kinds expanded, in the order of the spec."""
    return list(_fields(spec, "", ""))


def _fields(spec: type[BaseModel], prefix: str, kind: str) -> Iterator[Row]:
    for name, field in spec.model_fields.items():
        if name != "kind":
            yield from _expanded(prefix + name, kind, field)


def _expanded(place: str, kind: str, field: FieldInfo) -> Iterator[Row]:
    """A plain field is one row; a section is a row of its own if it may be left out, and then its fields."""
    specs = list(_specs(field.annotation))
    if not specs or field.default is None:
        yield Row(place, kind, _type(field), field.is_required(), _default(field), field.description or "")
    if specs and "kind" in specs[0].model_fields:
        yield from _of_each_kind(place, specs, field.is_required())
    else:
        for spec in specs:
            yield from _fields(spec, f"{place}.", kind)


def _of_each_kind(place: str, specs: list[type[BaseModel]], required: bool) -> Iterator[Row]:
    """The kinds first, then the fields that all of them have, then each one's own."""
    rows = {kind_of(spec): list(_fields(spec, f"{place}.", "")) for spec in specs}  # type: ignore[arg-type]
    for kind, spec in zip(rows, specs, strict=True):
        yield Row(f"{place}.kind", kind, kind, required, None, _first_line(spec))
    first, *others = rows.values()
    shared = [row for row in first if all(row in other for other in others)]
    yield from shared
    for kind, own in rows.items():
        yield from (row._replace(kind=kind) for row in own if row not in shared)


def _specs(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _specs(part)


def _type(field: FieldInfo) -> str:
    bounds = [
        f"{sign} {getattr(bound, name):g}"
        for bound in field.metadata
        for name, sign in BOUNDS.items()
        if hasattr(bound, name)
    ]
    return " ".join([_words(field.annotation), ", ".join(bounds)]).strip()


def _words(annotation: Any) -> str:
    origin, parts = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Literal:
        return " | ".join(map(str, parts))
    if origin in (tuple, list):
        return f"list of {_words(parts[0])}"
    if origin is dict or annotation is dict:
        return "mapping"
    if origin in (typing.Union, types.UnionType):
        return " | ".join(map(_words, parts))
    return "section" if list(_specs(annotation)) else WORDS.get(annotation, str(annotation))


def _default(field: FieldInfo) -> Any:
    """As it would be written in a file: lists for tuples."""
    value = None if field.is_required() else field.get_default(call_default_factory=True, validated_data={})
    return list(value) if isinstance(value, tuple) else value


def _first_line(spec: type[BaseModel]) -> str:
    return (spec.__doc__ or "").strip().split("\n")[0]
