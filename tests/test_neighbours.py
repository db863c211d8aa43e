"""Neighbours in a hidden space against scikit-learn, and geometries whose answers are known."""

import math

import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from raymsa.evaluation import neighbours
from raymsa.evaluation.components import components
from raymsa.evaluation.neighbours import difference, nearest, neighbourhoods

RANDOM = np.random.default_rng(0)
STATES = RANDOM.normal(size=(200, 30)).astype(np.float32) + 100  # far from the origin, as hidden states are
LABELS = RANDOM.uniform(-3, 3, 200)


@pytest.mark.parametrize("cells", [2**23, 700])  # all rows at once, and a few at a time
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_nearest_are_those_of_scikit_learn(distance, cells, monkeypatch):
    monkeypatch.setattr(neighbours, "CELLS", cells)
    theirs = NearestNeighbors(n_neighbors=7, metric=distance, algorithm="brute").fit(STATES.astype(float))
    assert (nearest(STATES, 7, distance) == theirs.kneighbors(return_distance=False)).all()


def test_the_two_distances_are_not_the_same():
    beside_and_behind = np.array([[1.0, 0.0], [1.0, 0.4], [5.0, 0.0]])
    assert nearest(beside_and_behind, 1, "euclidean")[0, 0] == 1
    assert nearest(beside_and_behind, 1, "cosine")[0, 0] == 2


def test_a_clip_is_not_its_own_neighbour_even_where_others_lie_on_it():
    found = nearest(np.zeros((100, 3)), 2, "euclidean").tolist()
    assert found == [[1, 2], [0, 2], *[[0, 1]] * 98]


def test_on_a_line_the_label_difference_is_known():
    line = np.arange(20.0)[:, None]
    (near,) = neighbourhoods(line, np.arange(20.0), [2], "euclidean", 100, 0)
    # one to each side; the two at the ends have both on one side
    assert near.difference == pytest.approx((18 * 1 + 2 * 1.5) / 20)


def test_two_clusters_with_a_label_each_differ_by_nothing_and_permuted_by_half():
    side = np.repeat([0.0, 1.0], 100)
    places = np.stack([100 * side, RANDOM.normal(size=200)], axis=1)
    (near,) = neighbourhoods(places, 2 * side, [5], "euclidean", 400, 0)
    assert near.difference == 0 and near.change_percent == -100 and near.p_value == 1 / 401
    # of all pairs of different clips, 100 in 199 have different labels
    assert near.permuted == pytest.approx(2 * 100 / 199, abs=0.01)
    assert near.low < 2 * 100 / 199 < near.high


def test_permuted_labels_differ_as_all_pairs_do_whatever_the_neighbours():
    all_pairs = np.abs(LABELS[:, None] - LABELS).sum() / (200 * 199)
    near = neighbourhoods(STATES, LABELS, [1, 10], "euclidean", 500, 0)
    assert [one.permuted for one in near] == pytest.approx([all_pairs] * 2, rel=0.01)
    assert near[1].high - near[1].low < near[0].high - near[0].low  # more neighbours, more to take a mean of


def test_where_labels_have_nothing_to_do_with_places_the_p_value_says_so():
    values = []
    for seed in range(60):
        labels = np.random.default_rng([1, seed]).uniform(-3, 3, 200)
        (near,) = neighbourhoods(STATES, labels, [10], "euclidean", 99, seed)
        values.append(near.p_value)
    assert 0.3 < np.mean(values) < 0.7 and np.mean(np.array(values) <= 0.05) < 0.15


def test_the_same_seed_gives_the_same_and_the_neighbours_do_not_depend_on_the_other_ks():
    several = neighbourhoods(STATES, LABELS, [3, 10], "cosine", 50, 7)
    assert several == [neighbourhoods(STATES, LABELS, [k], "cosine", 50, 7)[0] for k in (3, 10)]
    assert several != neighbourhoods(STATES, LABELS, [3, 10], "cosine", 50, 8)


def test_one_label_for_all_has_no_relative_change():
    (near,) = neighbourhoods(STATES, np.ones(200), [10], "euclidean", 10, 0)
    assert near.difference == near.permuted == 0 and math.isnan(near.change_percent)


def test_the_difference_is_the_mean_over_clips_and_neighbours():
    assert difference(np.array([0.0, 1.0, 5.0]), np.array([[1, 2], [0, 2], [1, 0]])) == pytest.approx(20 / 6)


@pytest.mark.parametrize(
    ("states", "k", "distance", "said"),
    [
        (STATES, 200, "euclidean", "k is 200; of 200 clips each has 199 others"),
        (STATES, 0, "euclidean", "k is 0"),
        (np.full((4, 2), np.nan), 1, "euclidean", "not finite"),
        (np.zeros((4, 2)), 1, "cosine", "no direction"),
    ],
)
def test_what_has_no_answer_is_refused(states, k, distance, said):
    with pytest.raises(ValueError, match=said):
        neighbourhoods(states, np.arange(float(len(states))), [k], distance, 10, 0)


@pytest.mark.parametrize("clips", [20, 200])  # fewer than numbers in a state, and more
def test_components_and_their_shares_are_those_of_scikit_learn(clips):
    states = STATES[:clips] * np.linspace(3, 1, 30, dtype=np.float32)
    places, shares = components(states, LABELS[:clips])
    theirs = PCA(2, svd_solver="full").fit(states.astype(float))
    assert shares == pytest.approx(theirs.explained_variance_ratio_)
    assert np.abs(places) == pytest.approx(np.abs(theirs.transform(states.astype(float))), abs=1e-6)


def test_labels_rise_along_a_component():
    labels = np.linspace(-3, 3, 50)
    for direction in (1.0, -1.0):
        places, shares = components(np.outer(direction * labels, [1.0, 2.0, 3.0]), labels)
        assert places[-1, 0] > places[0, 0] and shares[0] == pytest.approx(1)


def test_states_that_are_all_one_have_no_shares():
    places, shares = components(np.ones((5, 3)), np.arange(5.0))
    assert not places.any() and np.isnan(shares).all()
