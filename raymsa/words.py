"""How values are told: durations and words for people, numbers for programs."""

from __future__ import annotations

import json
import math
import re
import time
from typing import Any

JOINERS = "\u200c\u200d"  # invisible, but parts of words in Persian and Hindi, and of emoji
NOT_ASCII = re.compile(r"[^\x00-\x7e]")  # the others are escaped by JSON itself


def duration(seconds: float) -> str:
    """`12s`, `4m10s`, `2h03m`, `3d`."""
    whole = int(max(0, seconds))
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m" if whole < 86400 else f"{whole // 86400}d"


def moment(at: float, now: float) -> str:
    """A time of day in the local zone, with the date unless it is that of `now`; both in UNIX seconds."""
    there, here = time.localtime(at), time.localtime(now)
    return time.strftime("%H:%M" if there[:3] == here[:3] else "%Y-%m-%d %H:%M", there)


def for_json(value: Any) -> Any:
    """The same plain data with null for NaN and infinities, because JSON has none."""
    if isinstance(value, dict):
        return {str(key): for_json(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [for_json(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def json_text(value: Any) -> str:
    """Plain data as JSON for eyes, too: null for NaN, and what hides or acts on a terminal as an escape of JSON's."""
    text = json.dumps(for_json(value), indent=2, ensure_ascii=False, allow_nan=False, default=str)
    return NOT_ASCII.sub(lambda found: found[0] if _is_harmless(found[0]) else json.dumps(found[0])[1:-1], text)


def visible(text: str, kept: str = "") -> str:
    """A text in which nothing hides or acts: control characters, marks of direction and line ends as escapes.

    Those in `kept`, such as line ends, stay.
    """
    return "".join(c if _is_harmless(c) or c in kept else repr(c)[1:-1] for c in text)


def _is_harmless(char: str) -> bool:
    return char.isprintable() or char in JOINERS
