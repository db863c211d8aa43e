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
    if any(map(math.isnan, found)):  # statistics.stdev would raise
        return Spread(math.nan, math.nan if len(found) > 1 else None, len(found))
    return Spread(statistics.fmean(found), statistics.stdev(found) if len(found) > 1 else None, len(found))
