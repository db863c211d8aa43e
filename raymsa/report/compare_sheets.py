"""A comparison as tables, with a plain sentence for each difference and what it was drawn from."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from raymsa.report.cells import FIRST, form, metric_column, number
from raymsa.report.compare import Comparison, Difference
from raymsa.report.formats import Cell, Column, Sheet, shown
from raymsa.report.members import tried_words
from raymsa.report.sides import Side

FEW = 2.0  # smallest p that swaps of n videos can give is this over 2 ** n


def sheets(found: Comparison) -> list[Sheet]:
    """One table for each metric, in its unit, with the sentences and notes under it."""
    metrics = list(dict.fromkeys(each.metric for each in found.differences))
    made = [_sheet(found, metric) for metric in metrics]
    last = Sheet(made[-1].title, made[-1].columns, made[-1].rows, (*made[-1].notes, *_notes(found)))
    return [*made[:-1], last]


def one_sheet(found: Comparison) -> Sheet:
    """All differences in one table, for programs: unrounded, and the metric in a column."""
    rows = tuple((each.metric, each.a, each.b, *_figures(found, each)) for each in found.differences)
    words = (Column("metric", "metric"), Column("a", "A"), Column("b", "B"))
    return Sheet("", (*words, *_columns(found, "")), rows)


def sentence(found: Comparison, each: Difference) -> str:
    """What a difference means, in words."""
    undefined = [name for name, value in ((each.a, each.found.a), (each.b, each.found.b)) if not math.isfinite(value)]
    if undefined:
        return (
            f"{' and '.join(undefined)}: {each.metric} is not defined (scores or labels that do not vary, or are not "
            "numbers), so that there is nothing to compare."
        )
    return f"{_ahead(each)}; {_settled(found, each)}."


def _ahead(each: Difference) -> str:
    if each.found.difference == 0:
        return f"{each.a} and {each.b} have the same {each.metric}"
    first, second = (each.a, each.b) if (each.found.difference > 0) == each.high_is_good else (each.b, each.a)
    decimals, scale = form(each.metric)
    size = shown(abs(each.found.difference), Column("", "", decimals, scale))
    points = "" if each.metric in FIRST else " percentage points"
    return f"{first} is ahead of {second} by {size}{points} of {each.metric}"


def _settled(found: Comparison, each: Difference) -> str:
    several = len(_tests(found)) > 1
    p = each.p_holm if several else each.found.p
    small = p <= 1 - found.drawing.confidence
    said = f"p is {shown(p, Column('', '', _p_decimals(found)))}" + (" after Holm's correction" if several else "")
    if math.isnan(each.found.low):
        return f"there is no interval (one video, or hardly a resample that has this metric), and {said}"
    if each.found.low <= 0 <= each.found.high:
        doubt = f", though {said} for these seeds" if small else ""
        return f"the {_level(found)} interval holds 0: which one is better is not settled{doubt}"
    return f"the {_level(found)} interval leaves 0 out, {'and' if small else 'but'} {said}"


def _sheet(found: Comparison, metric: str) -> Sheet:
    mine = [each for each in found.differences if each.metric == metric]
    title = f"{metric} on {found.split}: differences of means over seeds, with {_level(found)} intervals"
    rows = tuple((f"{each.a} against {each.b}", *_figures(found, each)) for each in mine)
    columns = (Column("groups", "A against B"), *_columns(found, metric))
    return Sheet(title, columns, rows, tuple(sentence(found, each) for each in mine))


def _columns(found: Comparison, metric: str) -> tuple[Column, ...]:
    figures = {"value_a": "A", "value_b": "B", "difference": "A-B", "low": "low", "high": "high"}
    return (
        *(metric_column(name, heading, metric) for name, heading in figures.items()),
        Column("p", "p", _p_decimals(found)),
        *([Column("p_holm", "p (Holm)", _p_decimals(found))] if len(_tests(found)) > 1 else []),
        *(Column(name, name) for name in ("clips", "videos")),
        Column("seeds_a", "seeds A"),
        Column("seeds_b", "seeds B"),
    )


def _figures(found: Comparison, each: Difference) -> tuple[Cell, ...]:
    seeds = {one.name: len(one.seeds) for one in found.sides}
    compared = each.found
    figures = (compared.a, compared.b, compared.difference, compared.low, compared.high, compared.p)
    p_holm = [each.p_holm] if len(_tests(found)) > 1 else []
    return (*figures, *p_holm, found.clips, found.videos, seeds[each.a], seeds[each.b])


def _notes(found: Comparison) -> Iterator[str]:
    """What was drawn, and what a reader must know of the groups."""
    drawn, several = found.drawing, any(len(one.seeds) > 1 for one in found.sides)
    units = "clips" if found.videos is None else "videos"
    yield (
        f"interval: {units}{' and seeds' if several else ''} drawn with replacement ({drawn.resamples:,} resamples, "
        f"random seed {drawn.seed}); p: A and B swapped by {units[:-1]}, (b + 1) / (n + 1), for these seeds alone"
    )
    if len(_tests(found)) > 1:
        yield f"p (Holm) is corrected for the {len(_tests(found))} tests here"
    if len(found.differences) > 1:
        yield (
            f"the {len(found.differences)} intervals are Bonferroni's: each is of {_percent(found.each)}, so that all "
            f"together hold the true differences with {_percent(found.drawing.confidence)}"
        )
    if found.videos is None:
        yield (
            "clips were taken as independent, because which video each one is from is not known: if some are from one "
            "video, the intervals are too short and p too small"
        )
    elif found.videos > 1 and FEW / 2.0**found.videos > 1 - drawn.confidence:
        yield f"with {found.videos} videos, p cannot be below {FEW / 2.0**found.videos:.3g}"
    yield from _of_seeds(found)
    yield from _of_sides(found)
    lost = max(each.found.left_out for each in found.differences)
    if lost:
        yield f"up to {lost:,} of {drawn.resamples:,} resamples had no such metric and are left out of the interval"


def _of_seeds(found: Comparison) -> Iterator[str]:
    single = [one.name for one in found.sides if len(one.seeds) == 1]
    if single:
        yield f"one seed of {_listed(single)}: what another seed would give is not in the interval"
    seeds = {one.name: one.seeds for one in found.sides}
    for a, b in dict.fromkeys((each.a, each.b) for each in found.differences if not each.by_seed):
        yield (
            f"{a} and {b} have other seeds ({_listed(seeds[a])}; {_listed(seeds[b])}): they are not paired in seeds, "
            "and swapped each with each"
        )


def _of_sides(found: Comparison) -> Iterator[str]:
    for one in found.sides:
        if one.trial:
            yield f"{one.name}: the trial of a search, chosen because it did well; {_confirmed(one)}"
        if one.tried:
            yield f"{one.name}: {tried_words(one.tried)}"
        if one.data_digest is None:
            yield f"{one.name}: which data it was trained on is not recorded"
        if one.unfinished:
            yield f"{one.name}: runs that are not done yet: {one.unfinished}"
        if one.repeated:
            yield f"{one.name}: seeds {_listed(one.repeated)} were run more than once; the newest run counts"
        if found.unparsable[one.name]:
            instead = "wrong" if found.profile == "classes" else "the middle of the range"
            share = f"{number('unparsable', found.unparsable[one.name])} %"
            yield f"{one.name}: {share} of the answers could not be parsed and count as {instead}"


def _confirmed(one: Side) -> str:
    """Where the numbers of a trial's settings with fresh seeds are."""
    if not one.fresh:
        return "no run with a fresh seed is done"
    seeds = _listed(one.fresh)
    return f"runs of its settings with fresh seeds ({seeds}) are done: raymsa compare {one.group_key} takes those"


def _tests(found: Comparison) -> list[Difference]:
    return [each for each in found.differences if not math.isnan(each.found.p)]


def _p_decimals(found: Comparison) -> int:
    """So many that the smallest p there can be is not shown as 0."""
    return max(3, math.ceil(math.log10(found.drawing.resamples)))


def _level(found: Comparison) -> str:
    together = "simultaneous " if len(found.differences) > 1 else ""
    return f"{together}{_percent(found.drawing.confidence)}"


def _percent(share: float) -> str:
    return f"{100 * share:.6g} %"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
