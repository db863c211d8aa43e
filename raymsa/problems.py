"""Pydantic's errors as lines a person can act on: where, what was given, what would be right."""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError

WORDS = {  # pydantic's type of problem -> what would be right; others say it well enough themselves
    "int_type": "give a whole number",
    "int_parsing": "give a whole number",
    "int_from_float": "give a whole number",
    "float_type": "give a number",
    "float_parsing": "give a number",
    "finite_number": "give a finite number",
    "bool_type": "give true or false",
    "bool_parsing": "give true or false",
    "dict_type": "give a mapping (`field: value`)",
    "model_type": "give a mapping (`field: value`)",
    "model_attributes_type": "give a mapping (`field: value`)",
    "string_pattern_mismatch": "begin with a letter or digit; use letters, digits, '_', '.' and '-' ({pattern})",
    "string_too_short": "give at least {min_length} character",
    "too_short": "give at least {min_length}",
}
LONGEST = 100  # characters of a given value that are shown


def lines_for(error: ValidationError, model: Any) -> list[str]:
    """One line per problem of a failed validation as `model`."""
    return [_one_line(_line(problem, model)) for problem in error.errors() if not _follows(problem)]


def _one_line(text: str) -> str:
    """A key of a YAML file may hold anything, line ends too."""
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _follows(problem: Any) -> bool:
    """pydantic leaves a wrong item out and then finds the list too short; the item has a line of its own."""
    return bool(problem["type"] == "too_short" and len(problem["input"]) >= problem["ctx"]["min_length"])


def _line(problem: Any, model: Any) -> str:
    where, cls = _walk(problem["loc"], model)
    place = ".".join(where)
    kind, context = problem["type"], problem.get("ctx", {})
    if kind == "extra_forbidden":
        return f"{place}: unknown key{_meant(where[-1], _names(cls), getattr(cls, 'beside_fields', ()))}"
    if kind == "missing":
        return f"{place}: missing; it is {_description(cls, where[-1])}"
    if kind == "union_tag_invalid":
        known = context["expected_tags"].replace("'", "").split(", ")
        return f"{'.'.join([*where, 'kind'])}: unknown kind '{context['tag']}'{_meant(context['tag'], known)}"
    if kind == "union_tag_not_found":
        return f"{'.'.join([*where, 'kind'])}: missing; it is one of {', '.join(_tags(cls, model, where))}"
    if kind == "literal_error":
        known = [k.strip("' ") for k in context["expected"].replace(" or ", ", ").split(",")]
        return f"{place}: given {_shown(problem['input'])}{_meant(str(problem['input']), known)}"
    if kind == "value_error":
        return f"{place}: {context['error']}" if place else str(context["error"])
    return f"{place}: given {_shown(problem['input'])}; {_right(problem)}"


def _right(problem: Any) -> str:
    """What would be right."""
    kind, given = problem["type"], problem["input"]
    scalar = given is not None and not isinstance(given, (dict, list))
    if kind == "string_type":
        return f'give text (in quotes: "{given}")' if scalar else "give text"
    if kind == "tuple_type":
        return f"give a list: [{given}]" if scalar else "give a list"
    if kind in WORDS:
        return WORDS[kind].format_map(problem.get("ctx", {}))
    return str(problem["msg"][0].lower() + problem["msg"][1:])


def _shown(given: Any) -> str:
    text = repr(given)
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}..."


def _meant(given: str, known: list[str], beside: tuple[str, ...] = ()) -> str:
    close = difflib.get_close_matches(given, [*known, *beside], n=1, cutoff=0.5)
    # `lr` is far from `lora_lr` by letters, but it is one of its words
    close = close or [name for name in known if given in name.split("_")]
    meant = " or ".join(f"'{name}'" for name in close)
    return (f"; did you mean {meant}?" if close else "") + f" (known: {', '.join(known)})"


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
        if part == "[key]":  # pydantic's word for a problem with a mapping's key, not with its value
            continue
        where.append(str(part))
        fields = owner.model_fields if isinstance(owner, type) and issubclass(owner, BaseModel) else {}
        here = fields[part].annotation if part in fields else None
    return where, owner


def _classes(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated, tuple):
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
