"""Figures as SVG that stands in a page: drawn by matplotlib, coloured by the page's style sheet.

Text stays text, so that any script is shown by the browser's fonts. The same numbers give the same bytes. What belongs
together has a colour, a marker and a line style, so that it can be told apart in grey.
"""

from __future__ import annotations

import io
import math
import re
import warnings
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from raymsa.report.cells import FIRST
from raymsa.words import visible

WIDTH, HEIGHT = 4.5, 3.0  # inches: on a page, one figure is as wide as a telephone and two as a screen
MARKERS = "osD^vPX*"
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)))
INK, FAINT = "#010101", "#020202"  # stand for the style sheet's colours, as SERIES do
SERIES = ("#c00000", "#c00001", "#c00002", "#c00003", "#c00004", "#c00005")
MOST = len(SERIES)  # variants in one figure
LONGEST = 28  # characters of a name in a figure
LEGEND = 50  # characters in a line of the legend
SVG = "http://www.w3.org/2000/svg"
LINK = "{http://www.w3.org/1999/xlink}href"
PLACES = {"d", "x", "y", "transform", "points", "width", "height", "viewBox"}
DIGITS = re.compile(r"-?\d+\.\d{3,}")
FONTS = re.compile(r"'DejaVu Sans'(, [^;]+)?")
STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",  # Verdana is as wide, other fonts are narrower: nothing overlaps in them
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.unicode_minus": True,
    "axes.axisbelow": True,
    "axes.grid": True,
    "grid.linewidth": 0.5,
    "grid.color": FAINT,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.3,
    "lines.markersize": 4,
    "path.simplify": False,  # it would drop the lines without length that are dots
    "text.parse_math": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "raymsa",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
COLOURS = {INK: "currentColor", FAINT: "var(--line)", **{c: f"var(--c{n})" for n, c in enumerate(SERIES)}}
COLOUR = re.compile("|".join(COLOURS))


@dataclass(frozen=True)
class Plot:
    """A figure: `alt` says what is to be seen in words, `note` how to read it, `name` is the anchor."""

    name: str
    title: str
    alt: str
    note: str
    svg: str


def plot(name: str, title: str, alt: str, note: str, paint: Callable[[Any], None], height: float = HEIGHT) -> Plot:
    """Draw on one pair of axes; `height` is in inches."""
    from matplotlib import style
    from matplotlib.figure import Figure

    with style.context(["default", STYLE]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of characters that matplotlib's font lacks: the browser has them
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        paint(figure.add_subplot())
        file = io.BytesIO()
        figure.savefig(file, format="svg", transparent=True)
    return Plot(name, title, visible(alt), visible(note), inline(file.getvalue(), name, visible(alt)))


def inline(svg: bytes, name: str, alt: str) -> str:
    """An SVG file as an element of a page: ids of its own, colours of the style sheet, few digits, a label, no date."""
    ET.register_namespace("", SVG)
    root = ET.fromstring(svg)  # noqa: S314 - what matplotlib just wrote
    for parent in list(root.iter()):
        for child in [one for one in parent if one.tag.endswith(("metadata", "style"))]:
            parent.remove(child)
    for element in root.iter():
        element.attrib.update({key: _attribute(key, value, name) for key, value in element.attrib.items()})
        if LINK in element.attrib:
            element.set("href", element.attrib.pop(LINK))
    for size in ("width", "height", "version"):
        root.attrib.pop(size, None)
    root.attrib.update({"role": "img", "aria-label": alt})
    return ET.tostring(root, encoding="unicode").replace(f' xmlns="{SVG}"', "", 1)  # HTML knows it


def _attribute(key: str, value: str, name: str) -> str:
    if key == "id":
        return f"{name}-{value}"
    if key == LINK and value.startswith("#"):
        return f"#{name}-{value[1:]}"
    if key in PLACES:
        return DIGITS.sub(lambda digits: f"{float(digits[0]):.2f}", value)
    if key in ("style", "clip-path"):
        value = COLOUR.sub(lambda colour: COLOURS[colour[0]], value.replace("url(#", f"url(#{name}-"))
        return FONTS.sub("'DejaVu Sans', Verdana, sans-serif", value)
    return value


def look(number: int) -> dict[str, Any]:
    """Colour and marker of the variant with this number."""
    return {"color": SERIES[number % MOST], "marker": MARKERS[number % len(MARKERS)]}


def line(number: int) -> Any:
    """Line style of the seed with this number."""
    return LINES[number % len(LINES)]


def short(name: str) -> str:
    """A name in a figure: nothing in it acts, and it is not longer than fits."""
    text = visible(name)
    return text if len(text) <= LONGEST else text[: LONGEST - 1] + "…"


def dots(axes: Any, x: Iterable[float], y: Iterable[float], colour: str, size: float = 3.2) -> None:
    """Many dots as one path: lines without length and with round ends. They take a fifth of the bytes of markers."""
    pairs = [(a, b) for a, b in zip(x, y, strict=True) if math.isfinite(a) and math.isfinite(b)]
    strokes(axes, [(a, b, a, b) for a, b in pairs], colour, size)


def strokes(
    axes: Any, ends: list[tuple[float, float, float, float]], colour: str, width: float, alpha: float = 1
) -> None:
    """Many lines (x, y, x, y) as one path."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path as Curve

    if ends:
        places = [place for a, b, c, d in ends for place in ((a, b), (c, d))]
        codes = [Curve.MOVETO, Curve.LINETO] * len(ends)
        how = {"fill": False, "edgecolor": colour, "linewidth": width, "alpha": alpha, "capstyle": "round"}
        axes.add_patch(PathPatch(Curve(places, codes), **how))
        axes.update_datalim(places)
        axes.autoscale_view()


def legend(axes: Any, handles: list[Any] | None = None) -> None:
    """Above the axes, where no data are."""
    given = handles if handles is not None else axes.get_legend_handles_labels()[0]
    longest = max((len(one.get_label()) for one in given), default=0)
    columns = max(1, LEGEND // (longest + 6))  # the line before a name is about six characters wide
    where = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2, "columnspacing": 1.2}
    axes.legend(handles=given, ncols=columns, **where)


def named(metric: str) -> str:
    """A metric's name as papers write it."""
    parts = metric.split("_")
    if metric in ("mae", "uar"):
        return metric.upper()
    name = parts[0].replace("acc", "Acc-").rstrip("-") if parts[0].startswith("acc") else parts[0].capitalize()
    more = {"has0": "zeros kept", "nonzero": "non-zero"}.get("_".join(parts[1:]), " ".join(parts[1:]))
    return f"{name} ({more})" if more else name


def unit(metric: str) -> str:
    """What a metric is counted in."""
    return {"mae": "points of the label scale", "corr": "Pearson's r"}.get(metric, "%")


def scale(metric: str) -> float:
    """What a metric is multiplied with to be in its unit."""
    return 1.0 if metric in FIRST else 100.0
