"""Intervals, permutation tests and Holm's correction: against scipy, known answers, and a simulation of their rates."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from raymsa.evaluation import significance
from raymsa.evaluation.metrics import PROFILES, measure
from raymsa.evaluation.significance import Scored, compare, holm, scored, simultaneous
from raymsa.evaluation.sums import sums_of

METRICS = [(profile, metric) for profile, metrics in PROFILES.items() for metric in metrics]
CLASSES = 3


def answers(profile: str, rng: np.random.Generator, *shape: int) -> Any:
    """Scores or classes, some on the edges of bins, some no class."""
    if profile == "classes":
        return rng.integers(-1, CLASSES, shape).astype(np.float32)
    return np.where(
        rng.random(shape) < 0.3, rng.choice([-0.7, -0.1, 0, 0.1, 0.5, 1.5], shape), rng.normal(0, 1.5, shape)
    )


def labels(profile: str, rng: np.random.Generator, clips: int) -> Any:
    return np.maximum(answers(profile, rng, clips), 0 if profile == "classes" else -3)


def some(profile: str, rng: np.random.Generator, a: int = 2, b: int = 2, by_seed: bool = True) -> Scored:
    video = rng.integers(0, 6, 40)
    return scored(answers(profile, rng, a, 40), answers(profile, rng, b, 40), labels(profile, rng, 40), video, by_seed)


def clustered(
    rng: np.random.Generator, difference: float, seeds: int = 4, of_seeds: float = 0.1, by_seed: bool = True
) -> Scored:
    """Errors of two groups on 31 videos of 1 to 9 clips: A's are `difference` higher; videos, seeds, seeds on videos
    and clips differ at random."""
    video = np.repeat(np.arange(31), rng.integers(1, 10, 31))
    shape = (seeds, len(video))
    of_clips = 9 + rng.normal(0, 0.5, len(video))  # far from 0: the absolute error is linear there

    def group() -> Any:
        varied = rng.normal(0, 0.3, 31)[video] + rng.normal(0, 0.2, (seeds, 31))[:, video] + rng.normal(0, 0.3, shape)
        return of_clips + varied + rng.normal(0, of_seeds, (seeds, 1))

    return scored(group() + difference, group(), np.zeros(len(video)), video, by_seed)


# Metrics as sums


@pytest.mark.parametrize(("profile", "metric"), METRICS)
def test_every_metric_follows_from_sums_as_from_its_own_function(profile: str, metric: str) -> None:
    for seed in range(20):
        rng = np.random.default_rng(seed)
        score, label = answers(profile, rng, 50).astype(np.float32), labels(profile, rng, 50).astype(np.float32)
        sums = sums_of(profile, metric, CLASSES, float(label.mean()))
        assert sums is not None
        times = rng.integers(0, 3, 50)
        repeated = measure(profile, np.repeat(score, times), np.repeat(label, times))[metric]
        assert float(sums.of_sums(times @ sums.of_clips(score, label))) == pytest.approx(repeated, abs=2e-6)


@pytest.mark.parametrize("value", [0.2, 0.0, -2.7, 1e-4])
def test_a_constant_has_no_correlation_in_any_resample(value: float) -> None:
    label = np.linspace(-3, 3, 40).astype(np.float32)
    sums = sums_of("mosi", "corr", 0, float(label.mean()))
    assert sums is not None
    times = np.random.default_rng(0).integers(0, 3, (50, 40))
    of_clips = sums.of_clips(np.full(40, value, np.float32), label)
    assert np.isnan(sums.of_sums(times @ of_clips)).all()
    nearly = sums.of_clips(np.float32(value) + label * np.float32(1e-3), label)
    assert sums.of_sums(times @ nearly) == pytest.approx(1, abs=1e-3)


# One comparison


@pytest.mark.parametrize(("profile", "metric"), METRICS)
def test_the_difference_is_that_of_the_means_over_runs(profile: str, metric: str) -> None:
    data = some(profile, np.random.default_rng(1), a=3, b=2, by_seed=False)
    found = compare(data, profile, metric, resamples=100)
    means = [np.mean([measure(profile, s, data.label_C)[metric] for s in scores]) for scores in (data.a_SC, data.b_SC)]
    assert (found.a, found.b, found.difference) == pytest.approx((*means, means[0] - means[1]), abs=2e-6)
    assert found.low < found.difference < found.high
    assert 1 / 101 <= found.p <= 1


@pytest.mark.parametrize("by_seed", [True, False])
@pytest.mark.parametrize(("profile", "metric"), METRICS)
def test_a_metric_without_sums_is_compared_just_the_same(
    profile: str, metric: str, by_seed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = some(profile, np.random.default_rng(2), by_seed=by_seed)
    by_sums = compare(data, profile, metric, resamples=60, seed=5)
    monkeypatch.setattr(significance, "sums_of", lambda *_: None)
    by_clips = compare(data, profile, metric, resamples=60, seed=5)
    assert by_clips == pytest.approx(by_sums, abs=1e-5, nan_ok=True)


def test_it_is_the_same_again_and_another_with_another_seed() -> None:
    data = clustered(np.random.default_rng(0), 0.1)
    assert compare(data, "mosi", "mae", resamples=500) == compare(data, "mosi", "mae", resamples=500)
    assert compare(data, "mosi", "mae", resamples=500) != compare(data, "mosi", "mae", resamples=500, seed=1)


@pytest.mark.parametrize("metric", ["mae", "f1_has0"])
def test_batches_of_resamples_are_small_and_change_nothing_but_the_draws(
    metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = clustered(np.random.default_rng(0), 0.1)
    whole = compare(data, "mosi", "mae", resamples=4_000)
    monkeypatch.setattr(significance, "NUMBERS", 1_000)
    assert compare(data, "mosi", "mae", resamples=4_000) == pytest.approx(whole, rel=0.1, abs=0.01)


def test_a_swap_of_groups_turns_the_answer_round() -> None:
    data = some("mosi", np.random.default_rng(3))
    turned = Scored(data.b_SC, data.a_SC, data.label_C, data.video_C, True)
    one, other = (compare(d, "mosi", "corr", resamples=500) for d in (data, turned))
    assert (one.difference, one.low, one.high) == pytest.approx((-other.difference, -other.high, -other.low))
    assert one.p == other.p


def test_a_group_against_itself_differs_by_nothing() -> None:
    data = some("mosi", np.random.default_rng(4))
    same = Scored(data.a_SC, data.a_SC, data.label_C, data.video_C, True)
    found = compare(same, "mosi", "mae", resamples=200)
    assert (found.difference, found.low, found.high, found.p) == (0, 0, 0, 1)


def test_nothing_is_made_of_a_metric_that_is_not_there() -> None:
    data = some("mosi", np.random.default_rng(5))
    flat = Scored(np.full_like(data.a_SC, 0.2), data.b_SC, data.label_C, data.video_C, True)
    found = compare(flat, "mosi", "corr", resamples=100)
    assert math.isnan(found.a) and not math.isnan(found.b)
    assert all(map(math.isnan, (found.difference, found.low, found.high, found.p)))
    endless = Scored(np.where(data.a_SC > 2, np.inf, data.a_SC), data.b_SC, data.label_C, data.video_C, True)
    assert all(map(math.isnan, compare(endless, "mosi", "mae", resamples=100)[2:8]))
    missing = Scored(np.where(data.a_SC > 2, np.nan, data.a_SC), data.b_SC, data.label_C, data.video_C, True)
    assert all(math.isnan(compare(missing, "mosi", m, resamples=100).p) for m in PROFILES["mosi"])


def test_resamples_without_the_metric_are_counted_and_left_out() -> None:
    label = [0.0, 0, 0, 0, 1, -1]  # of acc2_nonzero, videos 0 and 1 have nothing to say
    data = scored([[1, 1, 1, 1, 1, 1]], [[1, 1, 1, 1, -1, -1]], label, [0, 0, 1, 1, 2, 3], True)
    found = compare(data, "mosi", "acc2_nonzero", resamples=2_000)
    assert found.left_out == pytest.approx(2_000 / 2**4, rel=0.3)
    assert math.isfinite(found.high)


def test_a_single_video_has_no_interval_and_a_single_seed_no_error_of_seeds() -> None:
    data = scored([[1.0, 2, 3]], [[1, 1, 1]], [0, 0, 1], ["v", "v", "v"], True)
    found = compare(data, "mosi", "mae", resamples=100)
    assert found.difference == pytest.approx(1)
    assert math.isnan(found.low) and math.isnan(found.se_seeds)


@pytest.mark.parametrize("wrong", [{"video": [0, 1]}, {"label": [0.0]}, {"b": [[1, 2, 3], [1, 2, 3]]}])
def test_what_is_not_of_the_same_clips_or_seeds_is_refused(wrong: dict[str, Any]) -> None:
    right: dict[str, Any] = {"a": [[1, 2, 3]], "b": [[1, 1, 1]], "label": [0, 0, 1], "video": [0, 0, 1]}
    with pytest.raises(ValueError, match="of the same"):
        scored(**{**right, **wrong}, by_seed=True)


# Against scipy


def test_the_permutation_test_is_scipys() -> None:
    """Of clips that are videos of their own, scipy's paired test of means swaps the same pairs."""
    rng = np.random.default_rng(0)
    a, b = 5 + rng.normal(0, 1, 40), 5.3 + rng.normal(0, 1, 40)
    ours = compare(scored([a], [b], np.zeros(40), np.arange(40), True), "mosi", "mae", resamples=20_000)
    theirs = stats.permutation_test(
        (a, b),
        lambda x, y, axis: (x - y).mean(axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=20_000,
        rng=1,
    )
    assert ours.p == pytest.approx(theirs.pvalue, abs=4 * math.sqrt(0.25 / 20_000))


def test_the_exact_p_of_few_videos_is_reached() -> None:
    """Six videos, A worse on each: two of 64 ways to swap are as far from 0."""
    a, b = np.array([[1.0, 2, 1, 3, 2, 2]]), np.zeros((1, 6))
    found = compare(scored(a, b, np.zeros(6), np.arange(6), True), "mosi", "mae", resamples=20_000)
    assert found.p == pytest.approx(2 / 64, abs=0.005)


def test_p_is_never_0() -> None:
    """No swap of 40 videos is as far from 0 as what was found, but what was found counts as one."""
    data = scored(np.full((1, 40), 2), np.full((1, 40), 1), np.zeros(40), np.arange(40), True)
    assert compare(data, "mosi", "mae", resamples=200).p == 1 / 201


@pytest.mark.parametrize("by_seed", [True, False])
def test_the_error_of_seeds_is_without_what_videos_have_made_of_them(by_seed: bool) -> None:
    """Of videos of one length and the mean absolute error, both variances are known without any draw."""
    rng, seeds, videos = np.random.default_rng(3), 5, 8
    a, b = (9 + rng.normal(0, 0.6, (seeds, 1)) + rng.normal(0, 1, (seeds, videos)) for _ in range(2))
    found = compare(scored(a, b, np.zeros(videos), np.arange(videos), by_seed), "mosi", "mae", resamples=20_000)

    def variance(of_SV: Any) -> float:
        means_S = of_SV.mean(1)
        apart_SV = of_SV - of_SV.mean(0) - (means_S - means_S.mean())[:, None]
        by_videos = (apart_SV**2).sum(1).mean() / videos**2 * videos / (videos - 1) / (seeds - 1)
        return float(means_S.var(ddof=1) / seeds - by_videos)

    known = variance(a - b) if by_seed else variance(a) + variance(b)
    assert found.se_seeds == pytest.approx(math.sqrt(known), rel=0.02)
    assert found.se_videos == pytest.approx((a - b).mean(0).std(ddof=1) / math.sqrt(videos), rel=0.02)


@pytest.mark.parametrize("metric", ["mae", "corr", "f1_has0"])
def test_the_standard_error_of_videos_is_that_of_scipys_bootstrap(metric: str) -> None:
    rng = np.random.default_rng(0)
    data = clustered(rng, 0)
    videos = np.arange(31)
    label_C = rng.normal(0, 1, len(data.video_C)).astype(np.float32)
    one, other = (label_C + rng.normal(0, sd, len(label_C)).astype(np.float32) for sd in (0.5, 0.7))

    def difference(drawn: Any) -> float:
        clips = np.concatenate([np.flatnonzero(data.video_C == video) for video in drawn])
        function = PROFILES["mosi"][metric]
        return function(one[clips], label_C[clips]) - function(other[clips], label_C[clips])

    theirs = stats.bootstrap((videos,), difference, vectorized=False, n_resamples=1_500, method="percentile", rng=2)
    again = scored([one], [other], label_C, data.video_C, True)
    ours = compare(again, "mosi", metric, resamples=4_000)
    short = again.effective_videos / (again.effective_videos - 1)
    assert ours.se_videos / math.sqrt(short) == pytest.approx(theirs.standard_error, rel=0.08)


def test_one_seed_and_videos_of_a_clip_give_the_interval_of_the_t_test() -> None:
    """As many clips as videos, one seed: a bootstrap of a mean, whose interval is that of the paired t test."""
    rng = np.random.default_rng(6)
    a, b = 5 + rng.normal(0, 1, 60), 5.3 + rng.normal(0, 1, 60)
    found = compare(scored([a], [b], np.zeros(60), np.arange(60), True), "mosi", "mae", resamples=40_000)
    theirs = stats.ttest_rel(a, b).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((theirs.low, theirs.high), abs=0.01)


def test_seeds_alone_give_the_intervals_of_t_tests() -> None:
    """Clips that are all alike say nothing: what is left are the means of the runs."""
    a, b = np.array([0.5, 0.6, 0.8, 0.4]), np.array([0.9, 0.7, 1.0, 1.2])
    for by_seed, theirs in [(True, stats.ttest_rel(a, b)), (False, stats.ttest_ind(a, b, equal_var=False))]:
        data = scored(np.tile(a[:, None], 8), np.tile(b[:, None], 8), np.zeros(8), np.arange(8), by_seed)
        found = compare(data, "mosi", "mae", resamples=100)
        interval = theirs.confidence_interval(0.95)
        assert (found.low, found.high) == pytest.approx((interval.low, interval.high), rel=1e-4)


# Holm


def test_holms_correction_is_the_published_one() -> None:
    """Holm 1979's steps by hand; R's p.adjust(c(.01, .04, .03, .005), "holm") gives .03 .06 .06 .02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.6]) == pytest.approx([1, 1])
    assert holm([0.2]) == pytest.approx([0.2])
    assert holm([math.nan, 0.02, 0.03]) == pytest.approx([math.nan, 0.04, 0.04], nan_ok=True)
    assert len(holm([])) == 0


@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
@settings(max_examples=100, deadline=None)
def test_holm_lies_between_no_correction_and_bonferronis(p: list[float]) -> None:
    corrected = holm(p)
    assert all(np.asarray(p) <= corrected + 1e-12)
    assert all(corrected <= np.minimum(1, np.asarray(p) * len(p)) + 1e-12)
    assert (np.diff(corrected[np.argsort(p)]) >= 0).all()


# What the rates are in the long run


@pytest.mark.parametrize(("seeds", "of_seeds", "by_seed"), [(4, 0.1, True), (4, 0.1, False), (1, 0.0, True)])
def test_the_interval_covers_at_its_level(seeds: int, of_seeds: float, by_seed: bool) -> None:
    """95 % of 300 worlds, less 3 standard errors of that count at most; more worlds: benchmarks/bench_compare.py."""
    rng, held = np.random.default_rng(7), 0
    for world in range(300):
        data = clustered(rng, 0.2, seeds, of_seeds, by_seed)
        found = compare(data, "mosi", "mae", resamples=200, seed=world)
        held += found.low <= 0.2 <= found.high
    assert 0.95 - 3 * math.sqrt(0.95 * 0.05 / 300) <= held / 300 <= 0.99


def test_simultaneous_intervals_hold_all_differences_at_once() -> None:
    """Three groups of four seeds, all equally good, in 150 worlds: with 95 % each, fewer than 92 % have all three."""
    rng, held = np.random.default_rng(9), {simultaneous(0.95, 3): 0, 0.95: 0}
    for world in range(150):
        video_C = np.repeat(np.arange(20), 4)
        label_C = rng.normal(0, 1, len(video_C))
        groups = [label_C + rng.normal(0, 1, len(video_C)) + rng.normal(0, 0.1, (4, 1)) for _ in range(3)]
        for level in held:
            found = [
                compare(
                    scored(a, b, label_C, video_C, True), "mosi", "mae", confidence=level, resamples=100, seed=world
                )
                for a, b in itertools.combinations(groups, 2)
            ]
            held[level] += all(one.low <= 0 <= one.high for one in found)
    family, each = (count / 150 for count in held.values())
    assert family >= 0.95 - 2 * math.sqrt(0.95 * 0.05 / 150) and each < 0.92
    assert simultaneous(0.95, 1) == pytest.approx(0.95) and simultaneous(0.95, 5) == pytest.approx(0.99)


def test_clips_of_a_video_that_are_taken_as_independent_make_the_interval_too_short() -> None:
    """What clustering is for."""
    rng, held = np.random.default_rng(8), 0
    for world in range(200):
        data = clustered(rng, 0.2, 1, 0.0)
        alone = Scored(data.a_SC, data.b_SC, data.label_C, np.arange(len(data.video_C)), True)
        found = compare(alone, "mosi", "mae", resamples=200, seed=world)
        held += found.low <= 0.2 <= found.high
    assert held / 200 < 0.88


def test_the_permutation_test_is_wrong_as_often_as_it_says() -> None:
    """At no difference, p is at most 5 % in 5 % of worlds; more often where it is blind to seeds that differ."""
    rng = np.random.default_rng(9)
    wrong = {
        of_seeds: np.mean(
            [compare(clustered(rng, 0, 2, of_seeds), "mosi", "mae", resamples=199).p <= 0.05 for _ in range(n)]
        )
        for of_seeds, n in ((0.0, 300), (0.3, 100))
    }
    assert abs(wrong[0.0] - 0.05) <= 3 * math.sqrt(0.95 * 0.05 / 300)
    assert wrong[0.3] > 0.2
