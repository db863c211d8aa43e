"""The field's metric rules, against values that thuiar/MMSA's own code gave, and against plain re-computation."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from raymsa.evaluation.metrics import CRITERIA, PROFILES, confusion, constant_scores, measure

# 16 points with minus zero, .5 edges, zero labels and scores out of range
MOSI_SCORE = [-3.4, -2.5, -1.5, -0.5, -0.0, 0.0, 0.2, 0.5, 1.5, 2.5, 3.3, -0.3, 0.4, -1.2, 2.4, 1.0]
MOSI_LABEL = [-3.0, -2.4, -1.6, -0.4, 0.0, 0.4, 0.0, 0.6, 1.4, 2.6, 3.0, 0.0, -0.2, -1.0, 2.5, -1.8]
MOSI_BY_MMSA = {
    "acc2_has0": 0.8125,
    "acc2_nonzero": 0.7692,
    "f1_has0": 0.8102,
    "f1_nonzero": 0.7692,
    "acc5": 0.8125,
    "acc7": 0.75,
    "mae": 0.3688,
    "corr": 0.9099,
}
# 14 points on the bins' edges
SIMS_SCORE = [-1.2, -0.7, -0.69, -0.1, -0.05, 0.0, 0.1, 0.11, 0.7, 0.71, 1.3, 0.3, -0.4, 0.05]
SIMS_LABEL = [-1.0, -0.8, -0.6, -0.2, 0.0, 0.0, 0.2, 0.0, 0.6, 0.8, 1.0, -0.4, 0.2, -0.0]
SIMS_BY_MMSA = {"acc2": 0.7143, "acc3": 0.7143, "acc5": 0.7143, "f1": 0.7202, "mae": 0.1493, "corr": 0.8921}

POINT = st.floats(-3.5, 3.5, width=32) | st.sampled_from([-1.5, -0.7, -0.5, -0.1, -0.0, 0.0, 0.1, 0.5, 0.7, 2.5])
PAIRS = st.lists(st.tuples(POINT, POINT), min_size=1, max_size=40)
PROFILE = st.sampled_from(["mosi", "sims"])


def rounded(metrics: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in metrics.items()}


def same(one: dict[str, float], other: dict[str, float], tolerance: float = 1e-6) -> bool:
    return one.keys() == other.keys() and all(
        math.isclose(one[k], other[k], abs_tol=tolerance) or (math.isnan(one[k]) and math.isnan(other[k])) for k in one
    )


def plain_weighted_f1(predicted: Sequence[object], true: Sequence[object]) -> float:
    total = 0.0
    for name in set(true):
        hits = sum(p == name and t == name for p, t in zip(predicted, true, strict=True))
        said, is_so = sum(p == name for p in predicted), sum(t == name for t in true)
        precision, recall = hits / said if said else 0.0, hits / is_so
        total += is_so * (2 * precision * recall / (precision + recall) if hits else 0.0)
    return total / len(true)


def test_mosi_metrics_are_those_of_mmsa() -> None:
    assert rounded(measure("mosi", MOSI_SCORE, MOSI_LABEL)) == MOSI_BY_MMSA


def test_sims_metrics_are_those_of_mmsa() -> None:
    assert rounded(measure("sims", SIMS_SCORE, SIMS_LABEL)) == SIMS_BY_MMSA


def test_float64_scores_on_a_bins_edge_fall_into_the_bin_below() -> None:
    assert measure("sims", [0.1, -0.1, 0.7], [0.0, -0.5, 0.5])["acc5"] == 1.0


def test_zero_is_non_negative_for_mosi_and_negative_for_sims() -> None:
    assert measure("mosi", [0.0, -0.0], [1.0, 1.0])["acc2_has0"] == 1.0
    assert measure("sims", [0.0, -0.0], [1.0, 1.0])["acc2"] == 0.0


def test_a_constant_prediction_has_no_correlation_and_no_warning(recwarn: pytest.WarningsRecorder) -> None:
    metrics = constant_scores("mosi", 0.2, MOSI_LABEL)
    assert math.isnan(metrics.pop("corr"))
    assert not any(map(math.isnan, metrics.values()))
    assert not recwarn.list


def test_without_a_non_zero_label_the_non_zero_metrics_are_nan(recwarn: pytest.WarningsRecorder) -> None:
    metrics = measure("mosi", [1.0, -1.0], [0.0, 0.0])
    assert math.isnan(metrics["acc2_nonzero"])
    assert math.isnan(metrics["f1_nonzero"])
    assert metrics["acc2_has0"] == 0.5
    assert not recwarn.list


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_one_nan_score_makes_every_metric_nan(profile: str, recwarn: pytest.WarningsRecorder) -> None:
    metrics = measure(profile, [0.5, math.nan, 1.0], [0.5, 0.2, 1.0])
    assert all(map(math.isnan, metrics.values()))
    assert not recwarn.list


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_no_clips_at_all_give_nan(profile: str) -> None:
    assert all(map(math.isnan, measure(profile, [], []).values()))


def test_scores_and_labels_that_do_not_belong_together_are_an_error() -> None:
    with pytest.raises(ValueError, match="scores"):
        measure("mosi", [1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="label is NaN"):
        measure("mosi", [1.0], [math.nan])


@given(PROFILE, PAIRS, st.randoms())
def test_the_order_of_clips_does_not_matter(profile: str, pairs: list[tuple[float, float]], dice: object) -> None:
    shuffled = list(pairs)
    dice.shuffle(shuffled)  # type: ignore[attr-defined]
    before, after = (measure(profile, *zip(*p, strict=True)) for p in (pairs, shuffled))
    before.pop("corr"), after.pop("corr")  # next to a constant, its rounding depends on the order
    assert same(before, after)


@given(PROFILE, PAIRS)
def test_every_metric_is_in_its_range(profile: str, pairs: list[tuple[float, float]]) -> None:
    metrics = measure(profile, *zip(*pairs, strict=True))
    assert metrics.pop("mae") >= 0
    assert math.isnan(metrics["corr"]) or -1.000001 <= metrics["corr"] <= 1.000001
    metrics.pop("corr")
    assert all(math.isnan(value) or 0 <= value <= 1 for value in metrics.values())


@given(PROFILE, st.lists(POINT, min_size=2, max_size=40))
def test_perfect_scores_are_perfect(profile: str, label: list[float]) -> None:
    metrics = measure(profile, label, label)
    assert metrics.pop("mae") == 0
    assert all(math.isnan(value) or math.isclose(value, 1, abs_tol=1e-6) for value in metrics.values())


@given(PAIRS)
@example([(1.0, 1.0)])
def test_f1_is_that_of_a_plain_computation(pairs: list[tuple[float, float]]) -> None:
    score, label = zip(*pairs, strict=True)
    expected = plain_weighted_f1([s >= 0 for s in score], [t >= 0 for t in label])
    assert math.isclose(measure("mosi", score, label)["f1_has0"], expected, abs_tol=1e-9)
    kept = [(s > 0, t > 0) for s, t in pairs if t != 0]
    if kept:
        expected = plain_weighted_f1(*zip(*kept, strict=True))
        assert math.isclose(measure("mosi", score, label)["f1_nonzero"], expected, abs_tol=1e-9)


def test_class_metrics_and_the_confusion_are_those_of_scikit_learn() -> None:
    # scikit-learn 1.7 on these answers, 4 taken for "no class"; its macro F1 counts that as a class, ours does not
    label = [2, 3, 0, 3, 1, 2, 2, 1, 3, 0, 1, 1, 2, 1, 0, 0, 0, 0, 0, 3, 0, 2, 3, 0]
    said = [2, -1, 0, 1, 1, 2, 1, 1, 3, 0, 0, 1, 3, 1, 0, 1, 0, 0, 2, 3, 0, 2, 3, 0]
    found = measure("classes", said, label)
    golden = {"acc": 0.7083333, "f1": 0.7254902, "f1_macro": 0.5647059 * 5 / 4, "uar": 0.6944444}
    assert found == pytest.approx(golden, abs=1e-6)
    assert confusion(said, label, 4).tolist() == [[7, 1, 1, 0, 0], [1, 4, 0, 0, 0], [0, 1, 3, 1, 0], [0, 1, 0, 3, 1]]


def test_the_floor_of_classes_is_the_most_frequent_one() -> None:
    assert constant_scores("classes", 1, [1, 1, 0, 2])["acc"] == 0.5


def test_a_criterion_is_an_error_that_falls_when_the_model_gets_better() -> None:
    assert CRITERIA["mosi"].error("mosi", [1.0], [0.5]) == 0.5
    f1 = CRITERIA["classes"]
    assert f1.error("classes", [0, 1], [0, 1]) == 0 and f1.error("classes", [1, 0], [0, 1]) == 1
    assert f1.turned(f1.error("classes", [0, 1, 1], [0, 1, 0])) == measure("classes", [0, 1, 1], [0, 1, 0])["f1"]
    assert set(CRITERIA) == set(PROFILES)


@given(st.lists(st.tuples(st.integers(-1, 3), st.integers(0, 3)), min_size=1, max_size=30))
def test_class_metrics_are_those_of_a_plain_computation(pairs: list[tuple[int, int]]) -> None:
    predicted, true = zip(*pairs, strict=True)
    found = measure("classes", predicted, true)
    assert math.isclose(found["acc"], sum(p == t for p, t in pairs) / len(pairs))
    assert math.isclose(found["f1"], plain_weighted_f1(predicted, true), abs_tol=1e-9)
