"""Waiting for free memory on a GPU: the run before may have ended, but its process is still being taken down."""

from __future__ import annotations

import time
from collections.abc import Callable

MOST = 0.9  # of the card free: nobody else is on it
LOOK_EVERY_S = 1.0
STEADY_S = 5.0  # without a change: what is taken belongs to somebody who stays
LIMIT_S = 60.0
STEP_BYTES = 64 * 2**20  # smaller changes are noise


def wait_for_room(
    free: Callable[[], tuple[int, int]],
    say: Callable[[str], None],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> float:
    """Wait until most of a card is free, or its free memory has stopped growing, or a minute is over.

    `free` gives the free bytes and all bytes, `say` hears of a wait. Returns the seconds waited.
    """
    begun = steady_since = clock()
    first, total = free()
    most = now_free = first
    while now_free < MOST * total and clock() - steady_since < STEADY_S and clock() - begun < LIMIT_S:
        sleep(LOOK_EVERY_S)
        now_free, _ = free()
        if now_free > most + STEP_BYTES:
            most, steady_since = now_free, clock()
    waited = clock() - begun
    if waited:
        gib = 2**30
        say(
            f"waited {waited:.0f} s for room: {first / gib:.1f} GiB free, now {now_free / gib:.1f} of {total / gib:.1f}"
        )
    return waited
