"""Nearest neighbours and coresets against the original's numbers, plain rules and hand-made cases."""

import sys

import numpy as np
import pytest
import torch
from conftest import refused
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from adlib.errors import InputError
from adlib.images import neighbours
from adlib.images.neighbours import NearestNeighbours

CASES = ["a", "b", "c_noproj", "d_few"]


def plain_rule(points, n_select, anchors):
    """The greedy rule as written down, in float64: what `farthest_first` must reproduce."""
    points, squared = points.astype(np.float64), np.square(anchors, dtype=np.float64)
    chosen = []
    while len(chosen) < n_select and (squared.max() > 0 or not chosen):
        chosen.append(int(squared.argmax()))
        squared = np.minimum(squared, np.square(points - points[chosen[-1]]).sum(axis=1))
    return chosen


def mean_distance(points, start_rows):
    points = points.astype(np.float64)
    return np.mean([np.linalg.norm(points - points[row], axis=1) for row in start_rows], axis=0)


def clustered(seed, n=1000, width=24, n_clusters=12):
    """Clusters of unequal size and spread, far from the origin, some rows twice."""
    rng = np.random.default_rng(seed)
    which = rng.choice(n_clusters, n, p=rng.dirichlet(np.ones(n_clusters)))
    centres, spreads = rng.normal(5, 2, (n_clusters, width)), rng.gamma(1, 0.5, n_clusters)
    points = (centres[which] + spreads[which, None] * rng.normal(size=(n, width))).astype(np.float32)
    points[rng.integers(0, n, n // 10)] = points[rng.integers(0, n, n // 10)]
    return points


# -- coresets ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_coresets_match_the_original(golden, case):
    g = golden(f"patchcore/coreset_{case}")
    points = g["bank"] @ g["projection"].T if "projection" in g else g["bank"]
    n_select = int(len(points) * g["percentage"])
    found = neighbours.approximate_greedy(points, n_select, g["start_rows"])
    np.testing.assert_array_equal(found, g["approx_indices"])
    np.testing.assert_array_equal(neighbours.greedy(points, n_select), g["exact_indices"])
    np.testing.assert_array_equal(g["bank"][found], g["approx_bank_kept"])
    assert neighbours.coverage_radius(points, found) == pytest.approx(float(g["approx_cover_radius"]), rel=1e-6)
    exact_radius = neighbours.coverage_radius(points, g["exact_indices"])
    assert exact_radius == pytest.approx(float(g["exact_cover_radius"]), rel=1e-6)


@pytest.mark.parametrize("pool", [50, 200, 10_000])
@pytest.mark.parametrize("seed", [0, 1])
def test_the_fast_rule_takes_the_rows_of_the_plain_rule_in_its_order(monkeypatch, seed, pool):
    monkeypatch.setattr(neighbours, "POOL", pool)
    points = clustered(seed)
    start_rows = [5, 17, 300]
    expected = plain_rule(points, 150, mean_distance(points, start_rows))
    np.testing.assert_array_equal(neighbours.approximate_greedy(points, 150, start_rows), expected)
    row_norms = np.linalg.norm(cdist(points, points), axis=1)  # in float64
    np.testing.assert_array_equal(neighbours.greedy(points, 150), plain_rule(points, 150, row_norms))


def test_far_from_the_origin_rounding_does_not_decide(monkeypatch):
    # |x|^2 is about 10^7 here and distances about 5: the float32 product alone is off by more than they are.
    monkeypatch.setattr(neighbours, "POOL", 50)
    points = 1000 + clustered(2, n=400)
    anchors = mean_distance(points, [0, 1])
    assert neighbours.farthest_first(points, 150, anchors).tolist() == plain_rule(points, 150, anchors)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 4), st.integers(1, 3), st.integers(2, 64), st.integers(0, 2**32), st.data())
def test_ties_and_duplicates_are_taken_as_by_the_plain_rule(n, width, side, pool, seed, data):
    points = np.random.default_rng(seed).integers(-side, side + 1, (n, width)).astype(np.float32)
    n_select = data.draw(st.integers(1, n))
    anchors = np.sqrt(np.square(points - points[0]).sum(axis=1))  # squares are whole numbers: many exact ties
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "POOL", pool)
        found = neighbours.farthest_first(points, n_select, anchors)
    # sqrt and square need not return the whole number; both sides start from the same float64 value.
    assert found.tolist() == plain_rule(points, n_select, anchors)


def test_selection_by_hand():
    points = np.array([[0.0], [10.0], [4.0], [10.0], [6.0]], np.float32)
    # Start row 0: anchors 0 10 4 10 6. First row on ties: 1. Then 0 0 4 0 4 -> 2. Then 0 0 0 0 2 -> 4. Then only
    # rows at distance 0 are left: row 0 is the start row, which counts as covered, row 3 equals row 1.
    assert neighbours.approximate_greedy(points, 5, [0]).tolist() == [1, 2, 4]
    assert neighbours.coverage_radius(points, [1, 2]) == 4
    # Exact rule: rows of the distance matrix have norms sqrt(5), sqrt(2), sqrt(5); then distances 2 and 1.
    assert neighbours.greedy(np.array([[-1.0], [0.0], [1.0]]), 3).tolist() == [0, 2, 1]


def test_projection_is_that_of_an_untrained_linear_layer():
    features = clustered(0, n=50)
    projected = neighbours.project(features, 8, np.random.default_rng(1))
    weight = np.random.default_rng(1).uniform(-1, 1, (8, 24)).astype(np.float32) / np.sqrt(np.float32(24))
    np.testing.assert_allclose(projected, features @ weight.T, rtol=1e-5)
    assert projected.dtype == np.float32
    assert neighbours.project(features, 24, np.random.default_rng(1)) is features
    wide = neighbours.project(np.eye(1000, dtype=np.float32), 64, np.random.default_rng(1))  # the weights themselves
    layer = torch.nn.Linear(1000, 64, bias=False).weight.detach().numpy()
    assert np.abs(wide).max() <= 1 / np.sqrt(np.float32(1000))
    assert wide.std() == pytest.approx(layer.std(), rel=0.02)


def test_select_passes_its_parts_on_and_the_seed_decides():
    features = clustered(0)
    rng = np.random.default_rng(5)
    points = neighbours.project(features, 8, rng)
    start_rows = rng.choice(len(points), 10, replace=False)
    expected = neighbours.approximate_greedy(points, 30, start_rows)
    for given_features in (features, torch.from_numpy(features)):
        found = neighbours.select(given_features, 30, projection_dim=8, rng=np.random.default_rng(5))
        np.testing.assert_array_equal(found, expected)
        assert found.dtype == np.int64
    other = neighbours.select(features, 30, projection_dim=8, rng=np.random.default_rng(6))
    assert other.tolist() != expected.tolist()
    np.testing.assert_array_equal(neighbours.select(features, 1, "none"), np.arange(len(features)))
    by_chance = neighbours.select(features, 60, "random", rng=np.random.default_rng(0))
    assert len(set(by_chance.tolist())) == 60


# -- nearest neighbours ------------------------------------------------------------------------------------------------


def brute_force(bank, x, k):
    """Squared distances and indices from differences in float64, ties to the lowest index."""
    squared = np.square(x[:, None].astype(np.float64) - bank[None]).sum(axis=2)
    order = np.argsort(squared, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(squared, order, axis=1), order


@pytest.mark.parametrize("backend", neighbours.BACKENDS)
@pytest.mark.parametrize("k", [1, 3, 50])
def test_neighbours_are_exact(backend, k):
    rng = np.random.default_rng(0)
    # Far from the origin: the expanded square alone would lose the small distances here.
    bank, x = (100 + rng.normal(size=(n, 16)).astype(np.float32) for n in (50, 300))
    squared, indices = NearestNeighbours(backend, block=128).fit(bank).query(x, k)
    expected, order = brute_force(bank, x, k)
    np.testing.assert_array_equal(indices, order)
    np.testing.assert_allclose(squared, expected, rtol=1e-4)
    assert (squared.dtype, indices.dtype) == (np.float32, np.int64)


@pytest.mark.parametrize("backend", neighbours.BACKENDS)
def test_equal_and_equally_far_rows_come_in_order_of_row_number(backend):
    distinct = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float32)
    bank = distinct[[0, 1, 0, 2, 3, 0, 1, 0, 0, 0, 0, 0]]
    around = np.array([[1, 0], [0, 1], [-1, 0], [0, -1], [3, 0]], np.float32)
    for rows, x, k in ((bank, bank, 9), (around, np.zeros((3, 2), np.float32), 5)):
        squared, indices = NearestNeighbours(backend).fit(rows).query(x, k)
        expected, order = brute_force(rows, x, k)
        np.testing.assert_array_equal(indices, order)
        np.testing.assert_allclose(squared, expected, rtol=1e-5, atol=0)  # so rows at distance zero are exactly there


@pytest.mark.parametrize("backend", neighbours.BACKENDS)
def test_a_row_alone_gets_what_it_gets_in_a_batch(backend):
    bank, x = clustered(0, n=500), clustered(1, n=200)
    index = NearestNeighbours(backend, block=64).fit(torch.from_numpy(bank))
    squared, indices = index.query(torch.from_numpy(x), 2)
    alone = [index.query(row[None], 2) for row in x]
    np.testing.assert_array_equal(np.concatenate([s for s, _ in alone]), squared)
    np.testing.assert_array_equal(np.concatenate([i for _, i in alone]), indices)


@pytest.mark.parametrize("search", ["ivfpq", "hnsw"])
def test_approximate_searches_find_most_rows_at_their_own_distance(search):
    bank, x = clustered(0, n=2000), clustered(1, n=200)
    index = NearestNeighbours(search=search)
    squared, rows = index.fit(bank).query(x)
    np.testing.assert_allclose(squared[:, 0], np.square(x - bank[rows[:, 0]]).sum(axis=1), rtol=1e-4)
    assert 0.5 < (rows == brute_force(bank, x, 1)[1]).mean() <= 1
    assert index.without(np.arange(1000)).query(x)[1].min() >= 1000
    np.testing.assert_array_equal(index.fit(bank[:50]).query(x, 3)[1], brute_force(bank[:50], x, 3)[1])


def test_without_faiss_torch_searches_and_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)  # importing it fails
    with pytest.warns(UserWarning, match="faiss is not installed, searching with torch") as caught:
        index = NearestNeighbours("faiss")
    assert (index.backend, len(caught)) == ("torch", 1)
    assert index.fit(np.eye(3)).query(np.eye(3))[1][:, 0].tolist() == [0, 1, 2]


# -- bad input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", neighbours.BACKENDS)
def test_what_cannot_be_searched_is_refused(backend):
    index = NearestNeighbours(backend).fit(np.eye(3))
    nan, infinite = np.eye(3), np.eye(3)
    nan[1, 2], infinite[2, 0] = np.nan, np.inf
    for call, said in (
        (lambda: index.query(np.eye(3), 0), "k 0 must be between 1 and the 3 rows"),
        (lambda: index.query(np.eye(3), 4), "k 4 must be between 1 and the 3 rows"),
        (lambda: index.query(nan), r"features contain NaN or infinity \(first in row 1\)"),
        (lambda: NearestNeighbours(backend).fit(infinite), r"features contain NaN or infinity \(first in row 2\)"),
        (lambda: index.query(np.eye(4)), "width 4, but the memory bank has 3"),
        (lambda: index.query(np.zeros(3)), "shape"),
        (lambda: NearestNeighbours("fais"), "did you mean 'faiss'"),
    ):
        refused(said, call)


def test_what_cannot_be_selected_is_refused():
    for wrong, said in (
        ({"sampler": "gredy"}, "did you mean 'greedy'"),
        ({"n_select": 0}, "n_select 0 must be between 1 and the 50"),
        ({"n_select": 51}, "n_select 51 must be between 1 and the 50"),
        ({"rng": None}, "pass rng=numpy.random.default_rng"),
        ({"projection_dim": 0}, "projection_dim 0"),
        ({"n_start": 0}, "n_start 0"),
    ):
        refused(said, neighbours.select, clustered(0, n=50), **{"n_select": 5, "rng": np.random.default_rng(0)} | wrong)


@pytest.mark.parametrize("sampler", ["approximate_greedy", "greedy", "random", "none"])
def test_nan_in_features_is_named(sampler):
    features = clustered(0, n=50)
    features[7, 3] = np.nan
    with pytest.raises(InputError, match=r"features contain NaN or infinity \(first in row 7\)"):
        neighbours.select(features, 5, sampler, 8, rng=np.random.default_rng(0))
