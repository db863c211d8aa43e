"""Laying one mapping on another: a file on its base, `--set` on a file, a variant or a search trial on a job."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import reduce
from typing import Any

from raymsa.errors import SpecError
from raymsa.yamlfile import parse_value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """`over` laid on `base`, mapping by mapping; dotted keys at the top reach inside. A section that changes its
    `kind` is replaced whole, because the fields of another kind would be unknown keys. Neither input is changed."""
    return _lay(nested(base), nested(over))  # type: ignore[no-any-return]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """A job or override with its dotted keys written out; those of its variants too, so that it has one form."""
    raw: dict[str, Any] = reduce(_lay, (_nest(key, value) for key, value in flat.items()), {})
    if isinstance(raw.get("variants"), dict):
        variants = {name: nested(over) if isinstance(over, dict) else over for name, over in raw["variants"].items()}
        raw = {**raw, "variants": variants}
    return raw


def flat(nested: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values, the other way round: what has no fields is a value, also an empty mapping or a list."""
    for name, value in nested.items():
        if isinstance(value, dict) and value:
            yield from flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value


def parse_override(text: str) -> dict[str, Any]:
    """`a.b=c` as a nested mapping; c is YAML."""
    field, equals, value = text.partition("=")
    if not equals or not all(part.strip() for part in field.split(".")):
        raise SpecError(f"--set {text}: write it as field=value, for example train.lora_lr=1e-4")
    return _nest(field.strip(), parse_value(value, f"--set {text}"))


def _nest(field: str, value: Any) -> dict[str, Any]:
    parts = field.split(".")
    if parts[:2] == ["search", "space"] and len(parts) > 2:  # the space has dotted fields for its keys
        parts = ["search", "space", ".".join(parts[2:])]
    for part in reversed(parts):
        value = {part: value}
    return value  # type: ignore[no-any-return]


def _lay(old: Any, new: Any) -> Any:
    """`new` where there is something new, `old` elsewhere."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return new
    if "kind" in old and "kind" in new and old["kind"] != new["kind"]:
        return new
    return {**old, **{key: _lay(old[key], value) if key in old else value for key, value in new.items()}}
