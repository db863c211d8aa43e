"""Work done ahead, in a thread: its order, its bounds and its end."""

import gc
import threading
import time
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.data.ahead import ahead
from raymsa.data.collate import Collate


def alive() -> int:
    return sum(thread.name == "raymsa-ahead" for thread in threading.enumerate())


def wait_until(true, seconds=10) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


@given(st.lists(st.integers(), max_size=20), st.integers(1, 4))
def test_what_is_made_ahead_comes_in_its_order(items, depth):
    assert list(ahead(iter(items), depth)) == items


def test_items_that_are_none_or_false_are_items():
    assert list(ahead(iter([None, 0, False, []]))) == [None, 0, False, []]


def test_the_next_item_is_made_while_this_one_is_used():
    made = []
    source = ahead((made.append(i) or i for i in range(10)), depth=2)
    assert next(source) == 0
    assert wait_until(lambda: len(made) == 3)  # one handed over, two made in advance
    time.sleep(0.05)
    assert len(made) == 3
    source.close()


def test_an_error_of_the_source_arrives_in_its_place():
    def source():
        yield 1
        yield 2
        raise LookupError("the third")

    seen = []
    with pytest.raises(LookupError, match="the third"):
        for item in ahead(source()):
            seen.append(item)
    assert seen == [1, 2]
    assert wait_until(lambda: alive() == 0)


def test_the_thread_ends_with_its_source():
    assert list(ahead(iter(range(5)))) == list(range(5))
    assert wait_until(lambda: alive() == 0)


def test_the_thread_ends_when_the_consumer_stops_early():
    source = ahead(iter(range(1_000_000)))
    assert next(source) == 0 and alive() == 1
    source.close()
    assert wait_until(lambda: alive() == 0)


def test_the_thread_ends_when_the_consumer_fails():
    def consume():
        for item in ahead(iter(range(1_000_000))):
            if item == 3:
                raise LookupError

    with pytest.raises(LookupError):
        consume()
    gc.collect()
    assert wait_until(lambda: alive() == 0)


def test_a_source_that_nobody_asks_starts_no_thread():
    ahead(iter([1]))
    assert alive() == 0


@pytest.mark.parametrize("for_gpu", [True, False])
def test_batches_are_made_in_a_thread_where_a_gpu_computes(for_gpu):
    made = Collate.ahead(SimpleNamespace(for_gpu=for_gpu), (i for i in range(5)))
    assert next(made) == 0
    assert wait_until(lambda: alive() == for_gpu)
    assert list(made) == [1, 2, 3, 4]
    assert wait_until(lambda: alive() == 0)
