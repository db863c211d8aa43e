"""From shards to clips: the order of a pass, the same on every way to it, what is never read, and what runs share."""

import shutil
import time
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import SHARD_SCHEMA, to_row
from raymsa.data import shards, shared
from raymsa.data.collate import windows
from raymsa.data.execution import packed
from raymsa.data.groups import RowGroup, after, clips_of, largest_clip, largest_group, read, row_groups, shuffled, table
from raymsa.data.shards import IN_FLIGHT, stream
from raymsa.data.shared import free, places, share, take
from raymsa.errors import DataError
from tests.clips import MIXED, clip

FILES = {"train-00000.parquet": 23, "train-00001.parquet": 4, "train-00002.parquet": 11}
GROUPS = [RowGroup("f", i, 1) for i in range(30)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Three shards in groups of at most five clips; the first clips are MIXED, with and without media."""
    out, number = tmp_path_factory.mktemp("shards"), 0
    clips = [*MIXED, *(clip(f"c{i}", f"words {i}", i % 3, 0.1 * (i % 2), (28, 28)) for i in range(33))]
    for name, count in FILES.items():
        write(out / name, clips[number : number + count])
        number += count
    return out


def write(path, clips, group=5):
    pq.write_table(pa.Table.from_pylist([to_row(c) for c in clips], SHARD_SCHEMA), path, row_group_size=group)


@pytest.fixture(scope="module")
def groups(folder):
    return row_groups(folder, FILES)


@pytest.fixture
def mark(tmp_path):
    return tmp_path / "wanted"


@pytest.fixture
def one_group_a_block(monkeypatch):
    """So that few small clips are as many blocks as many large ones."""
    monkeypatch.setattr(shards, "BLOCK_BYTES", 1)
    monkeypatch.setattr(shared, "SHARED_BYTES", 1)


def as_rows(clips):
    return [to_row(c) for c in clips]


def wait_until(true, seconds=60) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def of(clips, *numbers):
    """Rows of the passes, and the end of the reader."""
    found = [as_rows(clips.of(number)) for number in numbers]
    clips.close()
    return found


def plainly(groups):
    return as_rows(read([groups]).of(0))


def test_row_groups_cover_every_file_in_order(groups, folder):
    assert [g.rows for g in groups] == [5, 5, 5, 5, 3, 4, 5, 5, 1]
    assert [g.path for g in groups] == [str(folder / f"train-0000{i}.parquet") for i in (0, 0, 0, 0, 0, 1, 2, 2, 2)]


def test_the_largest_clip_is_known_before_any_is_read(groups):
    sizes = [sum(a.nbytes for a in (c.frames_FHWC, c.audio_S) if a is not None) for c in read([groups]).of(0)]
    assert max(sizes) <= largest_clip([groups]) <= 1.1 * max(sizes)
    assert largest_group([groups]) > largest_clip([groups])


def test_clips_come_back_as_they_were_written(groups):
    found = list(read([groups]).of(0))
    assert len(found) == 38
    for one, written in zip(found, MIXED, strict=False):
        assert to_row(one) == to_row(written)
        for mine, theirs in ((one.frames_FHWC, written.frames_FHWC), (one.audio_S, written.audio_S)):
            assert (mine is None and theirs is None) or np.array_equal(mine, theirs)


def test_a_clips_media_are_views_of_the_row_group_that_was_read(groups):
    rows = table(groups[0])
    spaces = {name: np.frombuffer(rows[name].chunks[0].buffers()[2], np.uint8) for name in ("frames", "audio")}
    both = next(clips_of(rows))
    assert np.shares_memory(both.frames_FHWC, spaces["frames"]) and np.shares_memory(both.audio_S, spaces["audio"])
    alone = next(clips_of(rows, copy=True))
    assert to_row(alone) == to_row(both)
    assert not np.shares_memory(alone.frames_FHWC, spaces["frames"])


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
    everyone = sorted(c.id for c in read([groups]).of(0))
    assert len(set(everyone)) == 38
    for epoch in range(3):
        assert sorted(c.id for c in read([shuffled(groups, 7, epoch)]).of(0)) == everyone


def test_windows_are_consecutive_and_lose_nothing(groups):
    found = list(windows(read([groups]).of(0), 16))
    assert [len(window) for window in found] == [16, 16, 6]
    assert as_rows(c for window in found for c in window) == plainly(groups)


# Going on inside a pass


@pytest.mark.parametrize("done", [0, 1, 5, 7, 22, 23, 37, 38])
def test_a_pass_goes_on_at_the_next_clip(groups, done):
    order = shuffled(groups, 7, 0)
    assert plainly(after(order, done)) == plainly(order)[done:]


@given(rows=st.lists(st.integers(1, 32), max_size=12), cuts=st.lists(st.integers(0, 40), max_size=4))
def test_what_is_left_after_several_stops_is_what_is_left_after_all_of_them(rows, cuts):
    whole = [RowGroup("f", i, n) for i, n in enumerate(rows)]
    left = whole
    for cut in cuts:
        left = after(left, cut)
    clips = [(g.number, g.first + i) for g in left for i in range(g.rows)]
    assert clips == [(g.number, i) for g in whole for i in range(g.rows)][sum(cuts) :]


def test_row_groups_before_the_resume_point_are_not_read(groups, folder, tmp_path):
    whole = plainly(groups)
    moved = shutil.copytree(folder, tmp_path / "moved")
    mine = row_groups(moved, FILES)
    (moved / "train-00000.parquet").unlink()
    assert plainly(after(mine, 23)) == whole[23:]
    with pytest.raises(DataError, match=r"train-00000\.parquet: row group 4 cannot be read"):
        plainly(after(mine, 22))


# Through Ray Data


@pytest.mark.ray
@pytest.mark.parametrize("readers", [1, 2, 4])
@pytest.mark.usefixtures("ray_session", "one_group_a_block")
def test_the_stream_has_the_clips_in_the_plans_order_however_many_readers_there_are(groups, mark, readers):
    plan = [shuffled(groups, 7, 0), groups[:3], shuffled(groups, 7, 1), [], after(groups, 12)]
    assert of(stream(plan, mark, readers), *range(5)) == of(read(plan), *range(5))
    assert not mark.exists()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_stream_of_nothing_is_nothing(mark):
    assert of(stream([], mark)) == []
    assert of(stream([[], []], mark), 0, 1) == [[], []]


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "one_group_a_block")
def test_a_pass_that_is_left_out_is_never_read(groups, tmp_path, mark):
    many = forty_groups(tmp_path)
    lost = [group._replace(path=str(tmp_path / "nowhere")) for group in groups]
    clips = stream([many, lost, many[::-1], lost, groups], mark)
    for number, order in (0, many), (2, many[::-1]):  # left early, so that readers have not come to the next pass
        assert as_rows(islice(clips.of(number), 7)) == plainly(order)[:7]
    assert of(clips, 4) == [plainly(groups)]


def forty_groups(folder):
    """Row groups of one size: more than are ever on their way."""
    path = folder / "train-00000.parquet"
    write(path, [clip(f"c{i:03d}", "words", 2, 0.1, (28, 28)) for i in range(200)])
    return row_groups(folder, [path.name])


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "one_group_a_block")
def test_readers_wait_for_the_worker(tmp_path, mark):
    """What still comes when the shards are gone was read ahead: no more than what the log promises."""
    groups = forty_groups(tmp_path)
    clips = stream([groups], mark)
    found = clips.of(0)
    next(found)
    time.sleep(3)
    Path(groups[0].path).unlink()
    came = 1
    with pytest.raises(DataError, match=r"row group \d+ cannot be read"):
        for _ in found:
            came += 1
    assert 5 < came <= IN_FLIGHT * 5
    clips.close()


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_a_damaged_shard_is_named_in_one_line(folder, tmp_path, mark):
    moved = shutil.copytree(folder, tmp_path / "moved")
    found = row_groups(moved, FILES)
    (moved / "train-00001.parquet").write_bytes(b"PAR1 no more")
    clips = stream([found], mark)
    with pytest.raises(DataError) as caught:
        list(clips.of(0))
    assert str(caught.value).startswith(f"{moved / 'train-00001.parquet'}: row group 0 cannot be read: ")
    assert "\n" not in str(caught.value)
    clips.close()
    with pytest.raises(DataError, match="train-00001"):
        share(found)


# Shared by all runs of a job


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session", "one_group_a_block")
def test_clips_that_fit_are_shared_and_come_in_any_order(groups):
    shared, why = share(groups)
    assert why.startswith("all runs share their clips in the object store (")
    plan = [shuffled(groups, 7, 0), after(groups, 12), groups[::-1]]
    assert of(take(plan, places(shared.name)), 0, 1, 2) == of(read(plan), 0, 1, 2)
    free(shared)
    assert wait_until(lambda: places(shared.name) is None)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_shared_clips_need_no_files(groups, folder, tmp_path):
    moved = shutil.copytree(folder, tmp_path / "moved")
    mine = row_groups(moved, FILES)
    shared, _ = share(mine)
    shutil.rmtree(moved)
    assert of(take([mine], places(shared.name)), 0) == [plainly(groups)]
    free(shared)


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_clips_that_do_not_fit_are_streamed_and_the_reason_is_given(groups):
    shared, why = share([group._replace(bytes=10**12) for group in groups])
    assert shared is None
    assert why.startswith("every run streams its clips: they are more than 50% of the object store (")


@pytest.mark.ray
@pytest.mark.usefixtures("ray_session")
def test_shared_clips_that_are_lost_are_read_from_their_files(groups):
    import ray

    class Owner:
        def put(self):
            return [ray.put("a table")]

    owner = ray.remote(Owner).options(num_cpus=0).remote()
    (lost,) = ray.get(owner.put.remote())
    ray.kill(owner)
    assert wait_until(lambda: is_lost(lost))
    known = {(group.path, group.number): (lost, 0) for group in groups[:4]}
    assert of(take([groups], known), 0) == [plainly(groups)]


def is_lost(ref):
    import ray

    try:
        ray.get(ref, timeout=1)
    except ray.exceptions.OwnerDiedError:
        return True
    except ray.exceptions.GetTimeoutError:  # nobody knows yet that its owner is dead
        return False
    return False


@given(st.lists(st.integers(0, 50), max_size=20), st.integers(1, 60), st.integers(1, 5))
def test_packs_are_consecutive_and_bounded(sizes, most_bytes, most_groups):
    groups = [RowGroup("f", i, 1, bytes=size) for i, size in enumerate(sizes)]
    packs = list(packed(groups, most_bytes, most_groups))
    assert [g for pack in packs for g in pack] == groups
    assert all(len(pack) == 1 or sum(g.bytes for g in pack) <= most_bytes for pack in packs)
    assert all(1 <= len(pack) <= most_groups for pack in packs)
