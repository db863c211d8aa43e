"""Scores and labels in bins: the same classes as the metrics', the same sign rule, scipy's own interval."""

import math

import numpy as np
import pytest
from scipy import stats

from raymsa.evaluation.metrics import measure
from raymsa.report.bins import bins_of, counted, interval, limits, residuals, signs
from raymsa.target import Classification, Regression

MOSI = Regression()
SIMS = Regression(low=-1, high=1, metrics="sims")
CLASSES = Classification(classes=("sad", "happy", "calm"))
EDGES = np.array([-3.4, -3, -2.5, -1.5, -0.5, -0.0, 0.5, 1.5, 2.5, 3, 3.4, 0.1, -0.1, 0.7, -0.7])


@pytest.mark.parametrize("task", [MOSI, SIMS], ids=["mosi", "sims"])
def test_the_diagonal_of_the_confusion_is_the_papers_accuracy(task: Regression) -> None:
    random = np.random.default_rng(5)
    label_B = np.clip(np.concatenate([EDGES, random.normal(0, 1.5, 300)]), task.low, task.high)
    score_B = np.concatenate([random.permutation(EDGES), label_B[len(EDGES) :] + random.normal(0, 0.6, 300)])
    bins = bins_of(task)
    table_KK = counted(bins, score_B[None], label_B)
    assert table_KK.sum() == len(label_B)
    assert np.trace(table_KK) / table_KK.sum() == pytest.approx(measure(task.profile, score_B, label_B)[bins.metric])


def test_an_answer_that_names_no_class_has_a_column_and_no_row() -> None:
    table_KK = counted(bins_of(CLASSES), np.array([[0.0, -1, 2]]), np.array([0.0, 1, 1]))
    assert table_KK.tolist() == [[1, 0, 0, 0], [0, 0, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_another_range_is_cut_into_seven_parts_that_hold_its_ends() -> None:
    bins = bins_of(Regression(low=0, high=7))
    assert (bins.names[0], bins.names[6]) == ("0 to 1", "6 to 7")
    assert bins.of([0, 0.5, 6.5, 7]).tolist() == [0, 0, 6, 6]


def test_a_nan_score_is_counted_nowhere() -> None:
    assert counted(bins_of(MOSI), np.array([[math.nan, 1.0]]), np.array([1.0, 1.0])).sum() == 1


def test_residuals_are_percentiles_by_the_labels_bin() -> None:
    found = residuals(bins_of(MOSI), np.array([[1.0, 3.0, -2.0], [3.0, 3.0, -2.0]]), np.array([2.0, 2.0, -3.0]))
    assert set(found) == {5, 0}
    assert found[5][2] == pytest.approx(1.0)  # the median of -1, 1, 1, 1
    assert found[0].tolist() == [1.0] * 5


def test_signs_over_all_bins_are_the_accuracy_without_zeros() -> None:
    random = np.random.default_rng(1)
    label_B = np.round(random.normal(0, 1.5, 400).clip(-3, 3), 1)
    score_B = (label_B + random.normal(0, 1, 400)).clip(-3, 3)
    found = signs(MOSI, score_B[None], label_B)
    right = sum(float(share_R[0]) * clips for _, _, share_R, clips in found)
    assert sum(clips for *_, clips in found) == (label_B != 0).sum()
    assert right / (label_B != 0).sum() == pytest.approx(measure("mosi", score_B, label_B)["acc2_nonzero"])


def test_of_ch_sims_zero_is_a_negative_label() -> None:
    ((low, high, share_R, clips),) = signs(SIMS, np.array([[-0.9, 0.9]]), np.array([0.0, 0.0]))
    assert (low, high, clips) == (pytest.approx(2 / 3), 1, 2)
    assert share_R.tolist() == [0.5]


def test_the_highest_score_is_in_the_last_bin() -> None:
    assert [(low, high) for low, high, *_ in signs(MOSI, np.array([[3.0, 0.0]]), np.array([1.0, 1.0]))] == [
        (0, 0.25),
        (2, 3),
    ]


def test_the_interval_is_scipys_t_interval() -> None:
    values = [0.55, 0.57, 0.59, 0.56]
    found = interval(values)
    assert found is not None
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))


def test_one_seed_or_a_nan_has_no_interval() -> None:
    assert interval([]) is None
    one, nan = interval([0.5]), interval([0.5, math.nan])
    assert one is not None and nan is not None
    assert (one.mean, one.low, one.runs) == (0.5, None, 1)
    assert math.isnan(nan.mean) and nan.high is None


def test_no_interval_goes_beyond_what_the_metric_can_be() -> None:
    few = [0.727, 0.788]
    free, share, mae, corr = (interval(few, ends) for ends in ((-9, 9), limits("acc2"), limits("mae"), limits("corr")))
    assert free is not None and free.low is not None and free.low > 0 and free.high is not None and free.high > 1
    assert share is not None and (share.low, share.high) == (free.low, 1)
    assert mae is not None and mae.high == free.high
    low = interval([0.01, 0.2], limits("mae"))
    assert low is not None and low.low == 0
    assert corr is not None and corr.high == 1
    negative = interval([-0.9, -0.7], limits("corr"))
    assert negative is not None and negative.low == -1


def test_seeds_that_agree_have_no_interval() -> None:
    found = interval([0.857, 0.857])
    assert found is not None and (found.low, found.high, found.mean) == (None, None, pytest.approx(0.857))
