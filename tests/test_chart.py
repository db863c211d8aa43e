"""Curves as pictures."""

import math
import re
from xml.etree import ElementTree

import pytest

from raymsa.report.chart import BUCKETS, Line, chart, in_words


def parsed(*lines: Line) -> ElementTree.Element:
    return ElementTree.fromstring(chart("training loss", "step", lines))


def places(picture: ElementTree.Element) -> list[tuple[float, float]]:
    found = re.findall(r"[ML]?([\d.]+) ([\d.]+)", "".join(p.get("d", "") for p in curves(picture)))
    return [(float(x), float(y)) for x, y in found]


def curves(picture: ElementTree.Element) -> list[ElementTree.Element]:
    return [part for part in picture if part.get("class", "").startswith("curve")]


def test_a_falling_curve_falls_within_the_picture() -> None:
    found = places(parsed(Line("a", [(step, 1 / step) for step in range(1, 50)])))
    assert [x for x, _ in found] == sorted(x for x, _ in found)
    assert [y for _, y in found] == sorted(y for _, y in found)  # SVG counts from above
    assert all(52 <= x <= 468 and 12 <= y <= 210 for x, y in found)


def test_a_long_curve_keeps_its_peaks_and_is_short() -> None:
    points = [(float(step), 1.0) for step in range(100_000)]
    points[54_321] = (54_321.0, 9.0)
    found = places(parsed(Line("a", points)))
    assert len(found) <= 2 * BUCKETS + 2
    lowest = max(y for _, y in found)
    assert min(y for _, y in found) < lowest - 100


def test_not_a_number_is_a_gap() -> None:
    points = [(1, 1.0), (2, 2.0), (3, math.nan), (4, math.inf), (5, 1.0), (6, 2.0), (7, math.nan), (8, 1.0)]
    picture = parsed(Line("a", points))
    assert len(curves(picture)) == 2
    assert len([part for part in picture if part.get("class", "").startswith("dot")]) == 1


@pytest.mark.parametrize("points", [[], [(1, math.nan)]])
def test_nothing_to_draw_is_no_picture(points) -> None:
    assert chart("a", "step", [Line("a", points)]) == ""


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [5.0], [-1e-9, 1e-9], [1e12, 2e12], [-3.0, 3.0], [0.5000001, 0.5000002]]
)
def test_any_range_has_ticks_within_it(values) -> None:
    picture = parsed(Line("a", list(enumerate(values, 1))))
    ticks = [part.text for part in picture if part.get("class") == "tick"]
    assert 3 <= len(ticks) <= 16
    assert all(12 <= y <= 210 for _, y in places(picture))


def test_the_picture_says_in_words_what_it_shows_and_escapes() -> None:
    line = Line('"><script>', [(1, 2.0), (2, 0.5), (3, 1.0)])
    said = parsed(line).get("aria-label")
    assert said == 'training loss. "><script>: 1 at step 3; lowest 0.5 at step 2, highest 2 at step 1'
    assert in_words([Line("b", [(1, math.nan)])]) == ""
