"""What `raymsa bench` found, on the screen: one column for each side, and how many times better ours is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.console import Console
from rich.table import Table

from raymsa.report.cells import table as new_table


def render(found: dict[str, Any], console: Console) -> None:
    """Print the tables and what they rest on."""
    console.print(f"{found['spec']['name']}: {found['device']}, {found['at']}", markup=False)
    console.print(_table(found))
    for line in _words(found):
        console.print(line, markup=False)


def _table(found: dict[str, Any]) -> Table:
    sides = {name: {**side, "shares": _shares(side)} for name, side in found["sides"].items()}
    ratios = found.get("ratios", {})
    made = new_table("", ["", *sides, *(["times\nbetter"] if ratios else [])])
    for label, section, name, form in _rows(sides):
        cells = [form(side[section][name]) if name in side.get(section, {}) else "-" for side in sides.values()]
        ratio = ratios.get(f"{section}.{name}")
        made.add_row(label, *cells, *([f"{ratio:.2f}" if ratio else ""] if ratios else []))
    return made


def _rows(sides: dict[str, Any]) -> Iterator[tuple[str, str, str, Any]]:
    """Label, section, name and form of every row that any side has."""
    rows = [
        ("loading, first round, s", "load", "seconds", _three),
        ("  host memory, peak, GiB", "load", "host_bytes", _gib),
        ("  device memory, peak, GiB", "load", "device_bytes", _gib),
        ("loading, later rounds, s", "load_again", "seconds", _three),
        ("  host memory, peak, GiB", "load_again", "host_bytes", _gib),
        ("  device memory, peak, GiB", "load_again", "device_bytes", _gib),
        ("training, clips/s", "training", "clips_per_s", _three),
        ("  tokens/s", "training", "tokens_per_s", _whole),
        ("  s per step", "training", "step_s", _three),
        *((f"    {part}, %", "shares", part, _percent) for part in next(iter(sides.values()))["shares"]),
        ("  host memory, peak, GiB", "training", "host_bytes", _gib),
        ("  device memory, peak, GiB", "training", "device_bytes", _gib),
        ("  operations per token, 10^9", "training", "operations_per_token", _giga),
        ("  operations per s, 10^12", "training", "operations_per_s", _tera),
        ("  of the matrix rate, %", "training", "share", _percent),
        ("scoring, clips/s at the best batch", "scoring", "clips_per_s", _three),
        ("  best batch, clips", "scoring", "best_batch", _whole),
        ("  s per clip at batch 1", "scoring", "latency_s", _three),
        ("  host memory, peak, GiB", "scoring", "host_bytes", _gib),
        ("  device memory, peak, GiB", "scoring", "device_bytes", _gib),
    ]
    return (row for row in rows if any(row[2] in side.get(row[1], {}) for side in sides.values()))


def _shares(side: dict[str, Any]) -> dict[str, float]:
    """The parts of a step, as shares of it."""
    split: dict[str, float] = side.get("training", {}).get("split", {})
    whole = sum(split.values())
    return {part: seconds / whole for part, seconds in split.items()}


def _words(found: dict[str, Any]) -> Iterator[str]:
    first = next(iter(found["sides"].values()))
    yield (
        f"weights: {first['weights']}; matrix rate, the best of a large product in any round: "
        f"{_tera(found['matrix_rate'])} x 10^12 operations/s"
    )
    if "differences" in found:
        loss, score = (found["differences"][name] for name in ("losses", "scores"))
        yield f"the same clips before training: losses differ by {loss:.1e} at most, scores by {score:.1e}"


def _three(value: float) -> str:
    """Three digits that count, without an exponent."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _whole(value: float) -> str:
    return f"{value:,.0f}"


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}"


def _giga(value: float) -> str:
    return f"{value / 1e9:.3g}"


def _tera(value: float) -> str:
    return f"{value / 1e12:.3g}"
