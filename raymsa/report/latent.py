"""A run's hidden states for people: neighbours in a table, and a picture of the first two components.

Axes: N clips.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from raymsa.errors import UsageError
from raymsa.evaluation.neighbours import Neighbourhood
from raymsa.words import for_json, visible

FILE = "latent_{split}.svg"
TITLES = {"tuned": "after tuning", "base": "before tuning"}
# Shape says the sign as colour says the label: the picture is read in grey, too.
SIGNS = (("negative", "v", -1), ("zero", "o", 0), ("positive", "^", 1))
COLOURS = "cividis"  # its lightness rises evenly
AREA = (6.0, 30.0)  # of a marker, in points²: of many clips each is small
INK = 9_000  # points² that all markers of a panel take together, within AREA
PANEL = (4.6, 4.3)  # inches
TITLE = 64  # characters of a line over one panel
PLAIN = {"svg.hashsalt": "raymsa", "font.size": 9}  # the same picture is the same file


@dataclass(frozen=True)
class Space:
    """One space: neighbourhoods by k, places on the first two components, and the shares that those explain."""

    name: str
    neighbourhoods: list[Neighbourhood]
    place_N2: np.ndarray
    share_2: np.ndarray
    width: int  # numbers of a hidden state


@dataclass(frozen=True)
class Latent:
    """The spaces of one run over the clips of one split; `range` is that of the labels."""

    run_id: str
    readout: str
    split: str
    range: tuple[float, float]
    label_N: np.ndarray
    distance: str
    permutations: int
    seed: int
    spaces: list[Space]


def render(found: Latent, console: Console) -> None:
    """The table."""
    console.print(_about(found), markup=False, soft_wrap=True)
    table = Table(box=None, pad_edge=False)
    for at, name in enumerate(("hidden states", "k", "label difference", "permuted (95 %)", "change", "p")):
        table.add_column(name, justify="right" if at else "left", no_wrap=True)
    for space in found.spaces:
        for near in space.neighbourhoods:
            by_chance = f"{near.permuted:.3f} ({near.low:.3f} to {near.high:.3f})"
            change = f"{near.change_percent:+.1f} %"
            table.add_row(
                TITLES[space.name], str(near.k), f"{near.difference:.3f}", by_chance, change, f"{near.p_value:.2g}"
            )
    console.print(table)
    if len(found.spaces) == 1:
        console.print(
            f"run {visible(found.run_id)} trained no adapters: its Thinker is the base", markup=False, soft_wrap=True
        )


def as_json(found: Latent) -> dict[str, Any]:
    """The same as plain data, unrounded; NaN is null."""
    return for_json(  # type: ignore[no-any-return]
        {
            "run": found.run_id,
            "readout": found.readout,
            "split": found.split,
            "clips": len(found.label_N),
            "distance": found.distance,
            "permutations": found.permutations,
            "seed": found.seed,
            "spaces": {
                space.name: {
                    "width": space.width,
                    "neighbours": [
                        {**asdict(near), "change_percent": near.change_percent} for near in space.neighbourhoods
                    ],
                    "explained": space.share_2.tolist(),
                }
                for space in found.spaces
            },
        }
    )


def draw(found: Latent, folder: Path) -> Path:
    """Write `latent_SPLIT.svg`: a panel for each space, base first, with one scale of colours. Raises UsageError."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(PLAIN):
        width, height = PANEL
        figure = Figure(figsize=(width * len(found.spaces) + 1, height), layout="constrained")
        panels = figure.subplots(1, len(found.spaces), squeeze=False)[0]
        for axes, space in zip(panels, reversed(found.spaces), strict=True):
            colours = _panel(axes, found, space)
        figure.colorbar(colours, ax=list(panels), label="label")
        # matplotlib's own wrapping would read a `$` as mathematics all the same
        figure.suptitle(textwrap.fill(_about(found), TITLE * len(found.spaces)), parse_math=False)
        path = folder / FILE.format(split=found.split)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            figure.savefig(path, format="svg", metadata={"Date": None})
        except OSError as error:
            raise UsageError(f"--out: {folder}: cannot be written: {error.strerror}") from None
    return path


def _about(found: Latent) -> str:
    width = found.spaces[0].width
    return (
        f"run {visible(found.run_id)} ({visible(found.readout)}): {len(found.label_N):,} clips of {found.split}, "
        f"the last token's {width:,} numbers, {found.distance} distance, {found.permutations:,} permutations"
    )


def _panel(axes: Any, found: Latent, space: Space) -> Any:
    low, high = found.range
    area = min(AREA[1], max(AREA[0], INK / len(found.label_N)))
    for name, shape, some_N in _signs(found.label_N):
        drawn = axes.scatter(
            *space.place_N2[some_N].T,
            c=found.label_N[some_N],
            s=area,
            marker=shape,
            cmap=COLOURS,
            vmin=low,
            vmax=high,
            edgecolors="black",
            linewidths=0.3,
            label=f"{name} ({int(some_N.sum()):,})",
        )
    first = space.neighbourhoods[0]
    axes.set_title(
        f"{TITLES[space.name]}: labels of {first.k} neighbours differ by\n"
        f"{first.difference:.3f}, permuted by {first.permuted:.3f} ({first.change_percent:+.1f} %)"
    )
    for at, label in enumerate((axes.set_xlabel, axes.set_ylabel)):
        label(f"component {at + 1} ({100 * space.share_2[at]:.1f} % of the variance)")
    axes.legend(title="label", fontsize="small", loc="best")
    return drawn


def _signs(label_N: np.ndarray) -> Iterator[tuple[str, str, np.ndarray]]:
    for name, shape, sign in SIGNS:
        some_N = np.sign(label_N) == sign
        if some_N.any():
            yield name, shape, some_N
