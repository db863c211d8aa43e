"""Mean and standard deviation over runs, unrounded."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (ddof 1) over runs; sd is None for a single run."""

    mean: float
    sd: float | None
    runs: int


def spread(values: Iterable[float]) -> Spread | None:
    """The spread of some runs' values, None of none. A NaN stays NaN: it is not skipped in a mean."""
    found = list(values)
    if not found:
        return None
    if any(map(math.isnan, found)):
        return Spread(math.nan, math.nan if len(found) > 1 else None, len(found))
    mean = statistics.fmean(found)
    return Spread(mean, _sd(found, mean) if len(found) > 1 else None, len(found))


def _sd(values: list[float], mean: float) -> float:
    """statistics.stdev works with fractions, which takes half the time of a table of thousands of runs."""
    if min(values) == max(values):
        return 0.0
    return math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
