"""Pydantic's errors as lines a person can act on: where, what was given, what would be right."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError


def lines_for(error: ValidationError, model: Any, raw: Any) -> list[str]:
    """One line per problem of a failed validation of `raw` as `model`."""
    return [_line(problem, model, raw) for problem in error.errors()]


def _line(problem: Any, model: Any, raw: Any) -> str:
    where, cls = _walk(problem["loc"], model)
    place = ".".join(where)
    kind, given, context = problem["type"], problem["input"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{place}: unknown key{_meant(where[-1], _names(cls))}"
    if kind == "missing":
        return f"{place}: missing; it is {_description(cls, where[-1])}"
    if kind == "union_tag_invalid":
        known = context["expected_tags"].replace("'", "").split(", ")
        return f"{place}.kind: unknown kind '{context['tag']}'{_meant(context['tag'], known)}"
    if kind == "union_tag_not_found":
        return f"{place}.kind: missing; it is one of {', '.join(_tags(cls, model, where))}"
    if kind == "literal_error":
        known = [k.strip("' ") for k in context["expected"].replace(" or ", ", ").split(",")]
        return f"{place}: given {given!r}{_meant(str(given), known)}"
    what = context["error"] if kind == "value_error" else problem["msg"][0].lower() + problem["msg"][1:]
    shown = "" if kind == "value_error" else f"given {given!r}; "
    return f"{place}: {shown}{what}" if place else str(what)


def _meant(given: str, known: list[str]) -> str:
    close = difflib.get_close_matches(given, known, n=1, cutoff=0.5)
    return (f"; did you mean '{close[0]}'?" if close else "") + f" (known: {', '.join(known)})"


def _walk(loc: tuple[Any, ...], model: Any) -> tuple[list[str], Any]:
    """The dotted place without pydantic's union tags, and the model class the last part belongs to."""
    where: list[str] = []
    here, owner = model, model
    for part in loc:
        classes = list(_classes(here))
        tagged = [c for c in classes if "kind" in c.model_fields and c.model_fields["kind"].default == part]
        if tagged and len(classes) > 1:
            here = owner = tagged[0]
            continue
        owner = classes[0] if len(classes) == 1 else owner
        where.append(str(part))
        fields = owner.model_fields if isinstance(owner, type) and issubclass(owner, BaseModel) else {}
        here = fields[part].annotation if part in fields else None
    return where, owner


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        for part in typing.get_args(annotation):
            yield from _classes(part)


def _names(cls: Any) -> list[str]:
    return list(getattr(cls, "model_fields", {}))


def _description(cls: Any, name: str) -> str:
    field = getattr(cls, "model_fields", {}).get(name)
    return (field.description if field else None) or "needed here"


def _tags(cls: Any, model: Any, where: list[str]) -> list[str]:
    annotation = cls.model_fields[where[-1]].annotation if where else model
    return [str(c.model_fields["kind"].default) for c in _classes(annotation)]
