"""Clustering: every algorithm finds plain clusters, the rules differ where they should, clean images stay clean."""

import numpy as np
import pytest
from conftest import refused

from adlib.images import clustering
from adlib_book.studies import cluster_answers

GRID = (12, 12)


def cells(n_anomalous: int, seed: int = 0, spread: float = 0.05, d: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Cells of a 12 x 12 image: the last `n_anomalous` point another way. Also the truth."""
    rng = np.random.default_rng(seed)
    truth = np.arange(GRID[0] * GRID[1]) >= GRID[0] * GRID[1] - n_anomalous
    x = spread * rng.normal(size=(len(truth), d))
    x[~truth, 0] += 1
    x[truth, 1] += 1
    return x, truth


REFERENCE = cells(0, seed=9)[0][:60]


@pytest.mark.parametrize("name", list(clustering.ALGORITHMS))
def test_a_plain_defect_is_found(name):
    x, truth = cells(25)
    found = clustering.cluster(name, x, reference=REFERENCE)
    np.testing.assert_array_equal(found.anomalous, truth)
    assert found.scores[truth].min() > found.scores[~truth].max()
    assert found.scores.dtype == np.float32
    np.testing.assert_array_equal(found.scores, clustering.cluster(name, x, reference=REFERENCE).scores)


@pytest.mark.parametrize("name", ["kmeans", "agglomerative", "spectral", "hdbscan", "gmm"])
def test_large_defects_are_found_by_reference_and_missed_by_minority(name):
    x, truth = cells(90)  # 62 % of the image
    found = clustering.cluster(name, x, "reference", REFERENCE)
    assert (found.anomalous == truth).all()
    assert found.scores[truth].min() > found.scores[~truth].max()
    assert (clustering.cluster(name, x, "minority").anomalous == ~truth).all()


def test_border_rule_takes_the_frame_as_normal():
    inside = np.zeros(GRID, bool)
    inside[1:-1, 1:-1] = True  # 100 of 144 cells: the majority
    x, _ = cells(0)
    x[inside.ravel()] = np.roll(x[inside.ravel()], 1, axis=1)
    found = clustering.cluster("kmeans", x, "border", grid=GRID)
    np.testing.assert_array_equal(found.anomalous, inside.ravel())


@pytest.mark.parametrize("name", list(clustering.ALGORITHMS))
def test_the_gate_empties_the_masks_of_clean_images(name):
    """Without it the noise of hdbscan, and half of the cells of k-means, count as anomalous in a clean image."""
    clean = [cells(0, seed)[0] for seed in range(40)]
    free = [clustering.cluster(name, x, reference=REFERENCE) for x in clean]
    if name != "gmm":  # which says by itself that there is one component
        assert all(found.anomalous.any() for found in free)
    if name == "hdbscan":
        assert np.mean([found.anomalous.mean() for found in free]) > 0.5
    for share in (0.95, 1.0):
        gate = clustering.gate_from_normals([found.separation for found in free], share)
        masks = [clustering.cluster(name, x, reference=REFERENCE, gate=gate).anomalous for x in clean]
        assert np.mean([mask.any() for mask in masks]) <= 1 - share + 1e-9
    # Of clean images that the gate has not seen, one in forty may pass it by chance.
    unseen = [clustering.cluster(name, cells(0, 40 + i)[0], reference=REFERENCE, gate=gate) for i in range(10)]
    assert sum(found.anomalous.any() for found in unseen) <= 1
    assert all(np.isfinite(found.scores).all() for found in unseen)
    x, truth = cells(25)
    np.testing.assert_array_equal(clustering.cluster(name, x, reference=REFERENCE, gate=gate).anomalous, truth)


@pytest.mark.parametrize("name", list(clustering.ALGORITHMS))
def test_identical_cells_are_one_cluster_without_an_alarm(name):
    found = clustering.cluster(name, np.ones((16, 3)), reference=np.ones((4, 3)))
    assert (found.n_clusters, found.anomalous.any()) == (1, False)
    assert found.scores.max() < 0.05


def test_separation_by_hand():
    x = np.array([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.0], [-0.6, 0.8]])
    # Centres halve the angle on each side: cells are acos(cos)/2 off, the centres (-2 / sqrt 5, 1 / sqrt 5) mirrored.
    own = 1 - 2 / np.sqrt(5)
    between = 1 - (-4 / 5 + 1 / 5)
    assert clustering.separation(x, np.array([True, True, False, False])) == pytest.approx(between / own)
    assert clustering.separation(x, np.ones(4, bool)) == 0


def test_bad_input_is_one_line():
    for said, *arguments in (
        ("did you mean 'kmeans'", "kmean", REFERENCE, "reference", REFERENCE),
        ("rule 'majority' is unknown", "kmeans", REFERENCE, "majority"),
        ("need reference", "kmeans", REFERENCE),
        ("at least 4", "kmeans", REFERENCE[:3], "minority"),
        ("finite", "kmeans", REFERENCE * np.nan, "minority"),
        ("needs the grid", "kmeans", REFERENCE, "border"),
    ):
        refused(said, clustering.cluster, *arguments)


def test_comparison_of_algorithms_and_rules():
    """Six images of 12 x 12 cells, half of them with a defect of 25 cells: every algorithm tells them apart."""
    images = [cells(25 if i % 2 else 0, seed=i) for i in range(6)]
    grids = np.stack([x.T.reshape(-1, *GRID) for x, _ in images])
    masks = [truth.reshape(GRID) for _, truth in images]
    labels = [i % 2 for i in range(6)]
    found = cluster_answers.compare(grids, labels, REFERENCE, masks, names=("agglomerative", "bank_knn"))
    assert list(found.index) == [(n, r) for n in ("agglomerative", "bank_knn") for r in clustering.RULES]
    assert (found["image AUROC"].loc[:, "reference"] == 1).all()
    assert (found["wrong side"].loc[:, "reference"] == 0).all()
    large = np.stack([cells(90, seed=i)[0].T.reshape(-1, *GRID) for i in range(2)])
    masks = [cells(90)[1].reshape(GRID)] * 2
    missed = cluster_answers.compare(large, [0, 1], REFERENCE, masks, names=("kmeans",), rules=("minority",))
    assert missed["wrong side"].iloc[0] == 1
