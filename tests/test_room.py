"""Waiting until the run before has left a GPU, without one."""

import pytest

from raymsa.training.room import wait_for_room


class Card:
    """A card whose free memory grows second by second, and the clock beside it."""

    def __init__(self, free_gib: list[float], total_gib: float = 80) -> None:
        self.free_gib, self.total, self.now, self.said = free_gib, total_gib, 0, []

    def free(self) -> tuple[int, int]:
        return int(self.free_gib[min(self.now, len(self.free_gib) - 1)] * 2**30), int(self.total * 2**30)

    def sleep(self, seconds: float) -> None:
        self.now += round(seconds)

    def wait(self) -> float:
        return wait_for_room(self.free, self.said.append, clock=lambda: self.now, sleep=self.sleep)


@pytest.mark.parametrize(
    ("free_gib", "seconds"),
    [
        ([79], 0),  # nobody is on it
        ([10, 10, 60, 79], 3),  # the run before leaves
        ([40], 5),  # somebody stays: what is free will not become more
        ([10, 20, 30], 7),  # it grew, and then no more
        ([i / 2 for i in range(200)], 60),  # a minute is enough
    ],
)
def test_a_run_waits_until_the_one_before_has_left_the_card(free_gib, seconds):
    card = Card(free_gib)
    assert card.wait() == seconds
    assert len(card.said) == (seconds > 0)
