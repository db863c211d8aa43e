"""Curves as an SVG picture in the text of a page; the page's style sheet colours the classes `k0`, `k1`, ..."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, HEIGHT = 480, 250  # of the picture's own units; a page scales it
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 12, 40  # around the curves
TICKS = 5  # at most about so many on an axis
BUCKETS = 300  # stretches of a long curve; of each, the lowest and the highest point are drawn
KINDS = 8  # colours and dashes of the style sheet

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A curve: (x, y) in order of x. NaN and infinite values are gaps; curves of one `kind` look alike."""

    label: str
    points: Points
    kind: int = 0


@dataclass(frozen=True)
class _Frame:
    low_x: float
    high_x: float
    low_y: float
    high_y: float

    def x(self, value: float) -> float:
        return LEFT + (value - self.low_x) / (self.high_x - self.low_x) * (WIDTH - LEFT - RIGHT)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.low_y) / (self.high_y - self.low_y) * (HEIGHT - TOP - BOTTOM)


def chart(title: str, x_label: str, lines: Sequence[Line]) -> str:
    """The picture, with what it shows in words for those who do not see it; empty when there is nothing to draw."""
    finite = [(x, y) for line in lines for x, y in line.points if math.isfinite(y)]
    if not finite:
        return ""
    frame = _frame(finite)
    body = [*_axes(frame, x_label), *(part for line in lines for part in _curve(line, frame))]
    words = escape(f"{title}. {in_words(lines)}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{words}">{"".join(body)}</svg>'


def in_words(lines: Sequence[Line]) -> str:
    """The last, lowest and highest value of each curve."""
    return "; ".join(filter(None, (_said(line) for line in lines)))


def _said(line: Line) -> str:
    finite = [(x, y) for x, y in line.points if math.isfinite(y)]
    if not finite:
        return ""
    (low_x, low), (high_x, high) = (pick(finite, key=lambda point: point[1]) for pick in (min, max))
    last_x, last = finite[-1]
    return (
        f"{line.label}: {last:.4g} at step {last_x:g}; lowest {low:.4g} at step {low_x:g}, "
        f"highest {high:.4g} at step {high_x:g}"
    )


def _frame(finite: Points) -> _Frame:
    xs, ys = [x for x, _ in finite], [y for _, y in finite]
    (low_x, high_x), (low_y, high_y) = _wide(0.0, max(xs)), _wide(min(ys), max(ys))
    return _Frame(low_x, high_x, low_y, high_y)


def _wide(low: float, high: float) -> tuple[float, float]:
    """A range with some room, never empty."""
    room = (high - low) * 0.04 or abs(high) * 0.1 or 1.0
    return (low if low == 0.0 else low - room), high + room


def _axes(frame: _Frame, x_label: str) -> Iterator[str]:
    bottom, right = HEIGHT - BOTTOM, WIDTH - RIGHT
    for value, shown in _ticks(frame.low_y, frame.high_y):
        y = f"{frame.y(value):.1f}"
        yield f'<path class="grid" d="M{LEFT} {y}H{right}"/>'
        yield f'<text class="tick" x="{LEFT - 6}" y="{y}" dy="4" text-anchor="end">{shown}</text>'
    for value, shown in _ticks(frame.low_x, frame.high_x):
        x = f"{frame.x(value):.1f}"
        yield f'<text class="tick" x="{x}" y="{bottom + 16}" text-anchor="middle">{shown}</text>'
    yield f'<path class="axis" d="M{LEFT} {TOP}V{bottom}H{right}"/>'
    middle = (LEFT + right) // 2
    yield f'<text class="tick" x="{middle}" y="{HEIGHT - 6}" text-anchor="middle">{escape(x_label)}</text>'


def _ticks(low: float, high: float) -> Iterator[tuple[float, str]]:
    """Round values within a range, and how they are written."""
    rough = (high - low) / TICKS
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    for number in range(math.ceil(low / step), math.floor(high / step) + 1):
        value = number * step
        yield value, f"{value:.{decimals}f}" if abs(value) < 1e6 and decimals < 6 else f"{value:.2g}"


def _curve(line: Line, frame: _Frame) -> Iterator[str]:
    kind = f"k{line.kind % KINDS}"
    for stretch in _stretches(line.points):
        places = [f"{frame.x(x):.1f} {frame.y(y):.1f}" for x, y in _thinned(stretch)]
        if len(places) == 1:
            x, y = places[0].split()
            yield f'<circle class="dot {kind}" cx="{x}" cy="{y}" r="3"/>'
        else:
            yield f'<path class="curve {kind}" d="M{"L".join(places)}"/>'


def _stretches(points: Points) -> Iterator[list[tuple[float, float]]]:
    """The parts between gaps."""
    stretch: list[tuple[float, float]] = []
    for x, y in points:
        if math.isfinite(y):
            stretch.append((x, y))
        elif stretch:
            yield stretch
            stretch = []
    if stretch:
        yield stretch


def _thinned(points: list[tuple[float, float]]) -> Iterator[tuple[float, float]]:
    """The first and the last point, and of each bucket between them the lowest and the highest."""
    size = math.ceil(len(points) / BUCKETS)
    if size < 3:
        yield from points
        return
    yield points[0]
    for at in range(1, len(points) - 1, size):
        bucket = points[at : min(at + size, len(points) - 1)]
        low, high = (pick(bucket, key=lambda point: point[1]) for pick in (min, max))
        yield from sorted({low, high})
    yield points[-1]
