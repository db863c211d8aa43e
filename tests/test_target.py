"""What is predicted: tasks as they are written, and targets as readouts use them."""

import json
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from raymsa.target import (
    NO_CLASS,
    Classes,
    Classification,
    Labels,
    Regression,
    Scale,
    from_plain,
    plain,
    task_of,
)

EMOTIONS = ("neutral", "joy", "Sadness")
COUNTS = (6, 3, 1)


def test_a_score_is_a_number_in_its_range():
    assert Regression().label("-0.80") == -0.8
    for text, words in [("", "not a number"), ("nan", "finite"), ("inf", "finite"), ("3.2", r"outside \[-3, 3\]")]:
        with pytest.raises(ValueError, match=words):
            Regression().label(text)


def test_a_spec_from_before_there_were_tasks_is_a_score_in_its_range():
    assert task_of({"dataset": {"low": -1, "high": 1, "metrics": "sims"}}) == Regression(low=-1, high=1, metrics="sims")
    assert task_of({"dataset": {"kind": "cmu"}}) == Regression()
    assert task_of({"dataset": {"low": -1, "task": {"kind": "regression", "low": -2}}}) == Regression(low=-2)


def test_a_class_is_known_by_its_name_in_any_case():
    task = Classification(classes=EMOTIONS)
    assert [task.label(text) for text in ("joy", " SADNESS ", "Neutral")] == [1, 2, 0]
    with pytest.raises(ValueError, match="'anger' is none of neutral, joy, Sadness"):
        task.label("anger")


@pytest.mark.parametrize(("classes", "words"), [(("a",), "at least 2"), (("a", "A "), "twice"), (("a", " "), "empty")])
def test_classes_that_make_no_sense_are_refused(classes, words):
    with pytest.raises(ValidationError, match=words):
        Classification(classes=classes)


def test_what_training_labels_say_of_scores_and_of_classes():
    assert Regression().learned([1, -1, 2]) == Labels(pytest.approx(2 / 3), pytest.approx(1.2472191), 1.0)
    seen = Classification(classes=EMOTIONS).learned([0, 1, 0])
    assert seen.counts == {"neutral": 2, "joy": 1, "Sadness": 0}
    target = Classification(classes=EMOTIONS, class_weights="balanced").with_labels(seen)
    assert target == Classes(EMOTIONS, (2, 1, 0), balanced=True) and target.constant == 0.0


def test_labels_that_do_not_vary_are_not_divided_by_their_sd():
    assert Regression().with_labels(Labels(1.0, 0.0, 1.0)).sd == 1.0


@pytest.mark.parametrize("target", [Scale(-1, 1, 0.1, 0.5, 0.0, "sims"), Classes(EMOTIONS, COUNTS, True)])
def test_a_target_comes_back_from_a_checkpoint_as_it_was(target):
    assert from_plain(json.loads(json.dumps(plain(target)))) == target


@given(st.lists(st.integers(0, 2), min_size=1, max_size=50))
def test_balanced_weights_have_a_mean_of_one_over_the_training_clips_and_equal_sums_per_class(labels):
    times = Counter(labels)
    target = Classes(EMOTIONS, tuple(times[i] for i in range(3)), balanced=True)
    weights = target.weight_B(torch.tensor(labels, dtype=torch.float32))
    assert weights.mean().item() == pytest.approx(1.0, rel=1e-5)
    sums = [weights[torch.tensor(labels) == label].sum().item() for label in times]
    assert sums == pytest.approx([sums[0]] * len(sums), rel=1e-5)


def test_without_class_weights_every_clip_weighs_the_same():
    assert Classes(EMOTIONS, COUNTS).weight_B(torch.tensor([0.0, 2.0])).tolist() == [1, 1]


def test_the_loss_of_a_score_is_l1_of_the_z_score_and_of_a_class_its_cross_entropy():
    out_BK, label_B = torch.tensor([[0.5], [-1.0]]), torch.tensor([1.0, 0.0])
    assert Scale(-3, 3, 1.0, 2.0, 0.0).loss_B(out_BK, label_B).tolist() == [0.5, 0.5]
    loss_B = Classes(EMOTIONS, COUNTS).loss_B(torch.zeros(2, 3), torch.tensor([0.0, 2.0]))
    assert loss_B.tolist() == pytest.approx([1.0986123] * 2)  # ln 3


def test_a_class_is_read_from_the_highest_logit():
    found = Classes(EMOTIONS, COUNTS).read(torch.tensor([[0.0, 3.0, 1.0], [0.2, 0.1, 0.0]]))
    assert [reading.score for reading in found] == [1.0, 0.0]


def test_an_answer_is_read_as_the_class_it_was_made_of():
    target = Classes(EMOTIONS, COUNTS)
    for index in range(3):
        reading = target.parse(target.say(float(index)))
        assert (reading.score, reading.parsed, reading.in_range) == (index, True, True)


@pytest.mark.parametrize("text", ["", "happy", "joy.", "joy joy", "0", "joy<|im_end|>"])
def test_any_other_answer_is_unparsable_and_no_class(text):
    reading = Classes(EMOTIONS, COUNTS).parse(text)
    assert (reading.score, reading.text, reading.parsed) == (NO_CLASS, text, False)
