"""Length buckets: what is sorted by is the true length, padding falls, and a stopped epoch goes on with the same steps.

Axes as in `raymsa.clip.Batch`.
"""

import random
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymsa.clip import Clip, to_row
from raymsa.data.collate import WINDOWS_HELD, Collate, Measured, steps, steps_in, steps_of_epoch, windows_before
from raymsa.data.groups import RowGroup, after
from raymsa.readouts.disc import Discriminative
from raymsa.spec import InputsSpec, TrainSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from tests.clips import MIXED, clip

LENGTHS = [int(random.Random(i).lognormvariate(5.5, 0.7)) + 20 for i in range(512)]


def measured(lengths):
    return [Measured(Clip(f"c{i}", "v", "", 0.0, "train"), [0] * n) for i, n in enumerate(lengths)]


def ids(epoch):
    return [[[m.clip.id for m in some] for some in passes] for passes in epoch]


def padding(epoch) -> float:
    """Share of places in the forward passes that hold no token."""
    passes = [[len(m.token_T) for m in some] for passes in epoch for some in passes]
    return 1 - sum(map(sum, passes)) / sum(max(p) * len(p) for p in passes)


def plain_batches(clips, size):
    return [[clips[i : i + size]] for i in range(0, len(clips), size)]


def test_less_padding_than_in_batches_as_the_clips_come():
    clips = measured(LENGTHS)
    bucketed = [s for i in (0, 256) for s in steps(clips[i : i + 256], 16, 10**9, seed=i)]
    assert padding(bucketed) < 0.5 * padding(plain_batches(clips, 16))


@pytest.mark.parametrize("modalities", [("text",), ("text", "audio"), ("text", "audio", "video")])
def test_what_buckets_sort_by_is_what_the_batch_holds(tiny_folder, modalities):
    """Sound and picture as the shard row counts them, words as the run's tokenizer does."""
    target = Scale(-3, 3, 0.0, 1.0, 0.0)
    inputs = InputsSpec(prompt="{text}\nHow?", modalities=modalities)
    encoder = Encoder(tiny_folder.tokenizer, tiny_folder.extractor, tiny_folder.config, inputs, inputs.prompt, target)
    collate = Collate(encoder, Discriminative())
    for one in MIXED:
        row, silent = to_row(one), collate.measure(Clip(one.id, "", one.text, 0.0, "train"))
        stored = sum(row[f"{name}_tokens"] for name in ("audio", "video") if name in modalities)
        length = len(collate.measure(one).token_T)
        frames = 2 * (row["audio_tokens"] > 0 and "audio" in modalities)  # a token before and one behind each medium
        frames += 2 * (row["video_tokens"] > 0 and "video" in modalities)
        assert length == len(silent.token_T) + stored + frames
        assert collate([collate.measure(one)]).tokens == length


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=60), st.integers(1, 9), st.integers(1, 900), st.integers(0, 99)
)
def test_steps_are_a_pure_function_of_clips_and_seed(lengths, batch, tokens, seed):
    first = ids(steps(measured(lengths), batch, tokens, seed))
    random.seed(seed)
    assert ids(steps(measured(lengths), batch, tokens, seed)) == first
    assert sorted(i for s in first for p in s for i in p) == sorted(f"c{i}" for i in range(len(lengths)))
    assert all(sum(map(len, s)) <= batch for s in first)


def test_another_seed_makes_other_batches():
    clips = measured(LENGTHS[:64])
    assert len({str(ids(steps(clips, 8, 10**9, seed))) for seed in range(20)}) == 20


@given(
    sizes=st.lists(st.integers(1, 12), min_size=1, max_size=8),
    window=st.integers(1, 20),
    batch=st.integers(1, 7),
    data=st.data(),
)
def test_an_epoch_that_is_stopped_anywhere_goes_on_with_the_next_step(sizes, window, batch, data):
    """From the row groups that are left alone: none of its clips twice, none lost."""
    groups = [RowGroup("f", i, n) for i, n in enumerate(sizes)]
    train = TrainSpec(window_clips=window, batch_clips=batch, batch_tokens=50)
    total = steps_in(sum(sizes), window, batch)
    whole = ids(steps_of_epoch(clips_in(groups), in_letters, train, 7, 0))
    assert len(whole) == total
    stop = data.draw(st.integers(0, total - 1))
    left = after(groups, windows_before(stop, window, batch) * window)
    assert ids(steps_of_epoch(clips_in(left), in_letters, train, 7, stop)) == whole[stop:]
    assert not left or sum(g.rows for g in left) <= sum(sizes) - stop // -(-window // batch) * window


def test_no_more_clips_are_held_than_a_run_says():
    """Two windows, and the step that is at work."""
    alive: list[weakref.ref[Clip]] = []
    most = 0

    def fresh():
        for i in range(400):
            one = clip(f"c{i}", "x", 0, 0.0)
            alive.append(weakref.ref(one))
            yield one

    train = TrainSpec(window_clips=32, batch_clips=8, batch_tokens=50)
    for passes in steps_of_epoch(fresh(), lambda one: Measured(one, [0]), train, 7, 0):
        del passes
        most = max(most, sum(ref() is not None for ref in alive))
    assert most <= WINDOWS_HELD * 32 + 8 + 1


def clips_in(groups):
    for group in groups:
        for i in range(group.first, group.first + group.rows):
            yield clip(f"{group.number}-{i}", "x" * (1 + (group.number * 5 + i) % 9), 0, 0.0)


def in_letters(one):
    return Measured(one, [0] * len(one.text))
