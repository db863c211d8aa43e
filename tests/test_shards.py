"""From shards to clips: the order of an epoch, the same through Ray Data as without it, and work done ahead."""

import gc
import threading
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data.ahead import ahead
from raymsa.data.collate import windows
from raymsa.data.groups import RowGroup, after, read, row_groups, shuffled
from raymsa.data.shards import stream
from tests.clips import MIXED, clip

FILES = {"train-00000.parquet": 23, "train-00001.parquet": 4, "train-00002.parquet": 11}
GROUPS = [RowGroup("f", i, 1) for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards in groups of at most five clips; the first clips are MIXED, with and without media."""
    out, number = tmp_path_factory.mktemp("shards"), 0
    clips = [*MIXED, *(clip(f"c{i}", f"words {i}", i % 3, 0.1 * (i % 2), (28, 28)) for i in range(33))]
    for name, count in FILES.items():
        rows = [to_row(c) for c in clips[number : number + count]]
        pq.write_table(pa.Table.from_pylist(rows, SHARD_SCHEMA), out / name, row_group_size=5)
        number += count
    return out


@pytest.fixture(scope="module")
def groups(folder):
    return row_groups(folder, FILES)


def as_rows(clips):
    return [to_row(c) for c in clips]


def test_row_groups_cover_every_file_in_order(groups, folder):
    assert [g.rows for g in groups] == [5, 5, 5, 5, 3, 4, 5, 5, 1]
    assert [g.path for g in groups] == [str(folder / f"train-0000{i}.parquet") for i in (0, 0, 0, 0, 0, 1, 2, 2, 2)]


def test_clips_come_back_as_they_were_written(groups):
    found = list(read(groups))
    assert len(found) == 38
    for one, written in zip(found, MIXED, strict=False):
        assert to_row(one) == to_row(written)
        for mine, theirs in ((one.frames_FHWC, written.frames_FHWC), (one.audio_S, written.audio_S)):
            assert (mine is None and theirs is None) or np.array_equal(mine, theirs)


@given(seed=st.integers(0, 2**31), epoch=st.integers(0, 100))
def test_the_order_of_an_epoch_is_a_pure_function_of_seed_and_epoch(seed, epoch):
    first = shuffled(GROUPS, seed, epoch)
    np.random.default_rng().random()
    np.random.seed(epoch)
    assert shuffled(list(GROUPS), seed, epoch) == first
    assert sorted(first) == GROUPS


def test_another_seed_or_another_epoch_has_another_order():
    orders = [tuple(shuffled(GROUPS, seed, epoch)) for seed in range(5) for epoch in range(5)]
    assert len(set(orders)) == 25


def test_every_clip_comes_exactly_once_per_epoch(groups):
    everyone = sorted(c.id for c in read(groups))
    assert len(set(everyone)) == 38
    for epoch in range(3):
        assert sorted(c.id for c in read(shuffled(groups, 7, epoch))) == everyone


@pytest.mark.ray
def test_ray_data_streams_the_same_clips_in_the_same_order(groups, ray_session):
    plan = [group for epoch in range(3) for group in shuffled(groups, 7, epoch)]
    assert as_rows(stream(plan)) == as_rows(read(plan))


@pytest.mark.ray
def test_ray_data_streams_nothing_from_nothing(ray_session):
    assert list(stream([])) == []


def test_windows_are_consecutive_and_lose_nothing(groups):
    found = list(windows(read(groups), 16))
    assert [len(window) for window in found] == [16, 16, 6]
    assert as_rows(c for window in found for c in window) == as_rows(read(groups))


# Work done ahead


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
    assert wait_until(lambda: len(made) == 4)  # one handed over, two in store, one waiting for room
    time.sleep(0.05)
    assert len(made) == 4
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
