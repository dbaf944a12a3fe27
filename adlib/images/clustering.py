"""Clustering the cells of an image into normal and anomalous, with a score per cell; all algorithms are scikit-learn's.

    answer = cluster("kmeans", x, reference=normal_cells)      labels, continuous scores, diagnostics

Every algorithm answers with cluster labels; a *rule* then says which cluster is anomalous, and a *gate* whether there
are two kinds of cell at all. k-means cuts a clean image in two as readily as a defective one, so without the gate
every clean image would raise an alarm.
"""

from dataclasses import dataclass

import numpy as np
from sklearn import cluster as sk
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors

from adlib.errors import InputError
from adlib.settings import choice

RULES = ("reference", "minority", "border")


@dataclass(frozen=True)
class Clustering:
    """What clustering the cells of one image gives.

    Attributes:
        labels: int (n,), cluster of each cell; -1 is noise.
        anomalous: bool (n,), cells of the clusters that the rule calls anomalous; all false behind a closed gate.
        scores: float32 (n,), higher is more anomalous, continuous whatever the gate says.
        n_clusters: without noise. noise: share of cells that belong to no cluster.
        separation: how far apart the two sides are, in units of their own spread (see `separation`); 0 for one side.
    """

    labels: np.ndarray
    anomalous: np.ndarray
    scores: np.ndarray
    n_clusters: int
    noise: float
    separation: float


def cluster(
    name: str,
    x: np.ndarray,
    rule: str = "reference",
    reference: np.ndarray | None = None,
    grid: tuple[int, int] | None = None,
    gate: float = 0.0,
    seed: int = 0,
) -> Clustering:
    """Cluster the cells of one image and decide which are anomalous.

    Args:
        name: one of `ALGORITHMS`.
        x: (n, d) features of the cells; brought to unit length, so Euclidean distance and cosine agree.
        rule: which cluster is anomalous. `minority`: every cluster but the largest (FOCAL). `reference`: the clusters
            farther from `reference` than the nearest one. `border`: every cluster but the one that holds most of the
            image's border, for centred objects (needs `grid`).
        reference: (m, d) cells of normal images.
        grid: (h, w) with h w = n.
        gate: two sides count only when their `separation` exceeds this; see `gate_from_normals`.
        seed: of the algorithm's random start.

    The score of a cell is its cosine distance to the centre of the normal side minus that to the anomalous side,
    brought to (0, 1) by a logistic curve; with one side only, a right angle stands for the other. Where the gate
    is closed the score shrinks by separation / gate. Algorithms with scores of their own (hdbscan, gmm, bank_knn) keep
    them.
    """
    choice("clustering", name, ALGORITHMS)
    choice("cluster rule", rule, RULES)
    x = _unit(x)
    if len(x) < 4:
        raise InputError(f"{len(x)} cells given; clustering needs at least 4")
    if (rule == "reference" or name == "bank_knn") and reference is None:
        raise InputError("rule 'reference' and algorithm 'bank_knn' need reference=, cells of normal images")
    if rule == "border" and (grid is None or grid[0] * grid[1] != len(x)):
        raise InputError(f"rule 'border' needs the grid of the {len(x)} cells, got {grid}")
    reference = None if reference is None else _unit(reference)
    own = None
    labels = np.zeros(len(x), int)
    if np.ptp(x, axis=0).max() >= 1e-6:  # else all cells are alike: one cluster, whatever the algorithm
        labels, own = ALGORITHMS[name](x, reference, seed)
    normal = _normal_side(labels, x, rule, reference, grid)
    separated = separation(x, normal)
    scores = np.where(normal, *own) if own is not None else _scores(x, normal)
    open_gate = separated > gate and not normal.all()
    if not open_gate and gate > 0 and own is None:
        scores = scores * min(1.0, separated / gate)
    return Clustering(
        labels,
        ~normal & open_gate,
        scores.astype(np.float32),
        len(set(labels.tolist()) - {-1}),
        float(np.mean(labels == -1)),
        separated,
    )


def separation(x: np.ndarray, normal: np.ndarray) -> float:
    """Cosine distance between the centres of two sides over the mean distance of cells to their own side's centre."""
    if normal.all() or not normal.any():
        return 0.0
    centres = _unit(np.stack([x[normal].mean(0), x[~normal].mean(0)]))
    within = np.concatenate([1 - x[normal] @ centres[0], 1 - x[~normal] @ centres[1]]).mean()
    return float((1 - centres[0] @ centres[1]) / max(within, 1e-6))


def gate_from_normals(separations, share: float = 0.95) -> float:
    """The gate: a quantile of the separation that the algorithm finds on held-out normal images."""
    separations = np.asarray(separations, float)
    if not len(separations):
        raise InputError("the gate needs the separation of at least one held-out normal image")
    return float(np.quantile(separations, share))


# -- algorithms: (unit cells (n, d), reference or None, seed) -> labels (n,), own scores or None
# Own scores are a pair: what a cell scores if its cluster is called normal, and if it is not.


def kmeans(x, reference, seed):
    """k-means on unit vectors (FOCAL's choice)."""
    return sk.KMeans(2, n_init=10, random_state=seed).fit_predict(x), None


def hdbscan(x, reference, seed):
    """HDBSCAN, which may find one cluster only. Own score: 1 - membership in the normal cluster.

    The smallest cluster is a share of 0.05 of the cells: FOCAL's journal version uses 200 of 64 x 64.
    """
    size = min(max(10, round(0.05 * len(x))), len(x))
    model = sk.HDBSCAN(size, allow_single_cluster=True, copy=True).fit(x)
    if (model.labels_ == -1).all():  # too even for any cluster: all cells are of one kind
        return np.zeros(len(x), int), None
    return model.labels_, (1 - model.probabilities_, np.ones(len(x)))


def agglomerative(x, reference, seed):
    """Average linkage on cosine distance."""
    return sk.AgglomerativeClustering(2, metric="cosine", linkage="average").fit_predict(x), None


def gmm(x, reference, seed):
    """A Gaussian mixture after PCA, of one or two components by BIC. Own score: posterior of the other component."""
    z = PCA(min(16, *x.shape), random_state=seed).fit_transform(x)
    one, two = (GaussianMixture(n, covariance_type="diag", reg_covar=1e-4, random_state=seed).fit(z) for n in (1, 2))
    labels = two.predict(z)
    if one.bic(z) <= two.bic(z) or labels.min() == labels.max():
        return np.zeros(len(x), int), None
    membership = two.predict_proba(z).max(1)
    return labels, (1 - membership, membership)


def spectral(x, reference, seed):
    """Spectral clustering of the nearest-neighbour graph."""
    affinity = NearestNeighbors(n_neighbors=min(10, len(x))).fit(x).kneighbors_graph(x).toarray()
    affinity = 0.5 * (affinity + affinity.T) + 1e-6  # a graph in one piece
    model = sk.SpectralClustering(2, affinity="precomputed", random_state=seed, assign_labels="cluster_qr")
    return model.fit_predict(affinity), None


def bank_knn(x, reference, seed):
    """No clustering: distance to the nearest reference cell, cut where the two halves differ most (Otsu)."""
    from skimage.filters import threshold_otsu

    distances = _nearest_distance(x, reference)
    far = distances > threshold_otsu(distances) if np.ptp(distances) > 0 else np.zeros(len(x), bool)
    return far.astype(int), (distances, distances)


ALGORITHMS = {
    "kmeans": kmeans,
    "hdbscan": hdbscan,
    "agglomerative": agglomerative,
    "gmm": gmm,
    "spectral": spectral,
    "bank_knn": bank_knn,
}


# -- rules and scores


def _normal_side(labels, x, rule: str, reference, grid) -> np.ndarray:
    """Return which cells (n,) lie in a cluster that the rule calls normal; noise never does."""
    clusters = sorted(set(labels.tolist()) - {-1})
    if rule == "minority":
        normal = max(clusters, key=lambda c: np.count_nonzero(labels == c))
    elif rule == "border":
        edge = np.ones(grid, bool)
        edge[1:-1, 1:-1] = False
        normal = max(clusters, key=lambda c: np.count_nonzero(labels[edge.ravel()] == c))
    else:
        distances = _nearest_distance(x, reference)
        normal = min(clusters, key=lambda c: distances[labels == c].mean())
    return labels == normal


def _nearest_distance(x, reference) -> np.ndarray:
    """Euclidean distance (n,) of each cell to the nearest of the reference."""
    return NearestNeighbors(n_neighbors=1).fit(reference).kneighbors(x)[0][:, 0]


def _scores(x, normal) -> np.ndarray:
    centre = _unit(x[normal].mean(0, keepdims=True))[0]
    to_normal = 1 - x @ centre
    # Without an anomalous side a right angle stands for it, so that scores of all images share a scale.
    to_anomalous = 1.0 if normal.all() else 1 - x @ _unit(x[~normal].mean(0, keepdims=True))[0]
    return 1 / (1 + np.exp(-4 * (to_normal - to_anomalous)))


def _unit(x) -> np.ndarray:
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise InputError(f"cells of shape {x.shape} given; expected finite numbers (n, d)")
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
