"""Scoring: clips of like length share a pass, and every clip has its own reading, in its own place."""

from dataclasses import replace

import pytest

from raymsa.data.collate import Collate
from raymsa.errors import Stopped
from raymsa.readouts.disc import Discriminative
from raymsa.spec import InputsSpec, ModelSpec, TrainSpec
from raymsa.target import Scale
from raymsa.thinker.inputs import Encoder
from raymsa.training.evaluate import score
from raymsa.training.student import Student
from tests.clips import clip

SCALE = Scale(-3, 3, -0.1, 1.5, 0.0)
CLIPS = [clip(f"c{i}", "good " * (1 + 7 * i % 23), 0, 0.0, label=i / 10) for i in range(20)]


@pytest.fixture(scope="module")
def scored(tiny_thinker):
    """Predictions of all clips, and the padded size of each pass."""
    readout = Discriminative()
    student = Student(
        tiny_thinker, readout, readout.head(tiny_thinker.width, SCALE).eval(), SCALE, ModelSpec(path="tiny")
    )
    folder = tiny_thinker.folder
    inputs = InputsSpec(prompt="{text}", system="Score.", modalities=("text",))
    encoder = Encoder(folder.tokenizer, folder.extractor, folder.config, inputs, "{text}", SCALE)

    def make(train, clips=CLIPS, stopping=lambda: False):
        passes = []

        def spy(some, answers=False):
            batch = Collate.__call__(collate, some, answers)
            passes.append(batch.token_BT.numel())
            return batch

        collate = Collate(encoder, readout)
        parts = {"measure": collate.measure, "ahead": collate.ahead, "__call__": staticmethod(spy)}
        watched = type("Watched", (), parts)()
        return list(score(student, watched, clips, train, stopping)), passes

    return make


TRAIN = TrainSpec(batch_tokens=150)


@pytest.mark.parametrize("window", [1, 3, 7, 20, 64])
def test_scores_and_their_order_do_not_depend_on_how_many_clips_are_sorted_together(scored, window):
    alone, _ = scored(TRAIN.model_copy(update={"batch_tokens": 1, "window_clips": 1}))
    found, _ = scored(TRAIN.model_copy(update={"window_clips": window}))
    assert [(p.clip_id, p.label) for p in found] == [(c.id, c.label) for c in CLIPS]
    assert [p.reading.score for p in found] == pytest.approx([p.reading.score for p in alone], abs=1e-4)
    assert len({round(p.reading.score, 3) for p in found}) > 10  # else the test would say little


def test_a_window_sorted_by_length_is_read_with_less_padding_and_the_longest_first(scored):
    _, unsorted = scored(TRAIN.model_copy(update={"window_clips": 1, "batch_tokens": 10_000}))
    real = sum(unsorted)  # one clip a pass: no padding
    _, passes = scored(TRAIN)
    assert all(size <= TRAIN.batch_tokens for size in passes)
    assert real <= sum(passes) < 1.15 * real
    clips = [replace(c, id=str(i)) for i, c in enumerate(CLIPS)]
    _, long_ones = scored(TRAIN.model_copy(update={"batch_tokens": 1}), clips)
    assert long_ones == sorted(long_ones, reverse=True)


def test_scoring_stops_after_the_pass_in_which_it_was_asked_to(scored):
    asked = []

    def stopping():
        asked.append(1)
        return len(asked) == 2

    with pytest.raises(Stopped):
        scored(TRAIN, stopping=stopping)
    assert len(asked) == 2
