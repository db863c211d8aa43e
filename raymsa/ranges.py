"""What a search may try for a field: `{choice: [...]}`, `{int: [low, high]}`, `{uniform: ...}`, `{loguniform: ...}`."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator
from typing import Any

ALL_TOGETHER = 256  # combinations that are all checked; of more, those of every two fields


def check_range(name: str, choice: dict[str, Any]) -> dict[str, Any]:
    """One entry of a search space, checked; its ends are numbers."""
    if len(choice) != 1 or next(iter(choice)) not in ("choice", "int", "uniform", "loguniform"):
        raise ValueError(f"{name}: given {choice}; give one of choice, int, uniform, loguniform, with its list")
    kind, values = next(iter(choice.items()))
    if kind == "choice":
        if not isinstance(values, list) or not values:
            raise ValueError(f"{name}.{kind}: given {values!r}; give a list")
        if len({json.dumps(value, sort_keys=True, default=str) for value in values}) < len(values):
            raise ValueError(f"{name}.{kind}: given {values!r}; name each value once")
        return choice
    ends = [_number(value) for value in values] if isinstance(values, list) else []
    if len(ends) != 2 or not ends[0] < ends[1] or (kind == "int" and not all(end.is_integer() for end in ends)):
        numbers = "whole numbers" if kind == "int" else "numbers"
        raise ValueError(f"{name}.{kind}: given {values!r}; give [low, high], two {numbers} with low below high")
    if kind == "loguniform" and ends[0] <= 0:
        raise ValueError(f"{name}.{kind}: given {values!r}; low must be above 0")
    return {kind: [int(end) for end in ends] if kind == "int" else ends}


def _number(value: Any) -> float:
    """A finite number, or NaN for anything else; YAML 1.1 reads 1e-4 as a string."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def samples(choice: dict[str, Any]) -> list[Any]:
    """Values to check a field with: every choice, or both ends and one between, which is not a whole number."""
    kind, values = next(iter(choice.items()))
    between = [values[0] + (values[1] - values[0]) / math.pi] if kind in ("uniform", "loguniform") else []
    return [*values, *between]


def points(choice: dict[str, Any]) -> list[Any] | None:
    """Every value of a range; None where there is no end of them."""
    kind, values = next(iter(choice.items()))
    if kind == "choice":
        return list(values)
    return list(range(values[0], values[1] + 1)) if kind == "int" else None


def count(choice: dict[str, Any]) -> int | None:
    """How many values a range has, which may be too many to list; None where there is no end of them."""
    kind, values = next(iter(choice.items()))
    if kind == "choice":
        return len(values)
    return values[1] - values[0] + 1 if kind == "int" else None


def size(space: dict[str, dict[str, Any]]) -> int | None:
    """Settings in a space; None where there is no end of them."""
    counts = [found for choice in space.values() if (found := count(choice)) is not None]
    return math.prod(counts) if len(counts) == len(space) else None


def combinations(space: dict[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Settings to check a space with: the samples of every two fields, then of all together if that is not too many."""
    tried = {field: samples(choice) for field, choice in space.items()}
    together = [tuple(tried)] if math.prod(map(len, tried.values())) <= ALL_TOGETHER else []
    for fields in [*itertools.combinations(tried, 2), *together]:
        for values in itertools.product(*(tried[field] for field in fields)):
            yield dict(zip(fields, values, strict=True))
