"""Nearest neighbours and coresets: search a memory bank of patches, and choose the few rows worth keeping in it.

    NearestNeighbours(backend).fit(memory_bank).query(x, k)  squared distances and row numbers
    select(features, n_select, sampler, ..., rng=rng)        the coreset: row numbers in order of selection

A greedy coreset (farthest-first traversal; Gonzalez 1985, PatchCore section 3.2) takes the row that is farthest from
all rows taken so far, again and again. Written down plainly, every step reads every row:

    repeat: take the row of largest anchor distance; lower all anchor distances to the distance to that row

`farthest_first` gives the rows of this rule, in its order, without reading every row at every step.
"""

import copy
import sys
import warnings

import numpy as np
import torch
from scipy.spatial.distance import cdist

from adlib.errors import InputError
from adlib.images.backbones import default_device
from adlib.settings import choice

SAMPLERS = ("approximate_greedy", "greedy", "random", "none")
BACKENDS = ("faiss", "torch")
SEARCHES = ("exact", "ivfpq", "hnsw")
DEFAULT_BACKEND = "torch" if sys.platform == "darwin" else "faiss"  # faiss and torch each bring a libomp on macOS

BLOCK = 8192  # rows a block wherever all rows are walked through
EXTRA = 4  # neighbours searched beyond k, so that rounding in the search cannot lose the k nearest

# A round of `farthest_first`: these change its speed, never its result.
POOL = 2048  # rows looked at, at least
POOL_SHARE = 8  # at most 1/8 of all rows, where that is more
TAKEN = 16, 64  # rows to take: after fewer the pool doubles (less overhead), after more it halves (less to search)


# -- nearest neighbours ------------------------------------------------------------------------------------------------


class NearestNeighbours:
    """Exact nearest neighbours in *squared* Euclidean distance, as faiss and PatchCore's code report it.

    Either backend only proposes neighbours: it expands |x - m|^2 to |x|^2 + |m|^2 - 2 x.m, which is fast and, for
    rows close to each other, wrong in the last digits. The distances returned are computed from differences, so the
    backends agree, a row's result does not depend on its batch, and a row of the bank is at distance 0 from itself.

    Cosine similarity s of rows of unit length is 1 - squared_distance / 2: normalise bank and queries first.

    Args:
        backend: "faiss", on the CPU, or "torch", on the device in use. Default: faiss on a CPU, but for macOS; torch
            elsewhere. Without faiss installed: torch, with a warning.
        block: queries handled at once; memory is bounded by block x rows of the bank x 4 bytes.
        search: "exact", or approximate, by faiss alone: "ivfpq" as PatchCore's code has it (512 cells of which one is
            searched, 64 codes of a byte; fewer for a small bank or width), "hnsw" with 32 links a row. Of the rows that
            these propose distances are exact, too; a bank of fewer than 256 rows is searched exactly.
    """

    def __init__(self, backend: str | None = None, block: int = 1024, search: str = "exact"):
        self.device, self.search = default_device(), search
        choice("search", search, SEARCHES)
        backend = backend if search == "exact" else "faiss"
        backend = backend or (DEFAULT_BACKEND if self.device.type == "cpu" else "torch")
        choice("search backend", backend, BACKENDS)
        if backend == "faiss":
            try:
                import faiss  # noqa: F401
            except ImportError:
                if search != "exact":
                    raise InputError(f"search {search!r} is faiss's, which is not installed; take 'exact'") from None
                warnings.warn("faiss is not installed, searching with torch (same results)", stacklevel=2)
                backend = "torch"
        self.backend, self.block, self._parameters = backend, block, None

    def fit(self, memory_bank) -> "NearestNeighbours":
        """Index a memory bank (M, d), array or tensor; it is kept by reference where it is contiguous float32."""
        bank = _as_rows(memory_bank)
        _check_finite(bank)
        self.memory_bank = bank
        if self.backend == "faiss":
            import faiss

            n_rows, width = bank.shape
            if self.search == "exact" or n_rows < 256:
                self._index = faiss.IndexFlatL2(width)
            elif self.search == "hnsw":
                self._index = faiss.IndexHNSWFlat(width, 32)
            else:
                n_codes = max(n for n in range(1, 65) if width % n == 0)
                self._index = faiss.index_factory(width, f"IVF{min(512, n_rows // 39)},PQ{n_codes}x8np")
                for part in (self._index, self._index.pq):
                    part.cp.min_points_per_centroid = 1  # below it faiss warns
            self._index.train(bank)
            self._index.add(bank)
        else:
            self._index = torch.from_numpy(bank).to(self.device)
            self._squared_norms = self._index.square().sum(1)  # (M,)
        return self

    def without(self, rows) -> "NearestNeighbours":
        """The same index, blind to some rows of its bank; only where the search is approximate, whose index is slow."""
        import faiss

        kind = faiss.SearchParametersIVF if isinstance(self._index, faiss.IndexIVF) else faiss.SearchParametersHNSW
        other = copy.copy(self)
        other._parameters = kind(sel=faiss.IDSelectorNot(faiss.IDSelectorBatch(np.asarray(rows, np.int64))))
        return other

    def query(self, x, k: int = 1) -> tuple[np.ndarray, np.ndarray]:
        """Find the `k` nearest rows of the bank for each row of `x` (N, d).

        Returns:
            squared distances (N, k) float32, ascending, and row numbers (N, k) int64; equal distances in order of
            row number (where more than `EXTRA` rows tie, either backend picks among them).

        Raises:
            InputError: k larger than the bank, another width than the bank's, NaN or infinity.
        """
        x = _as_rows(x)
        n_rows, width = self.memory_bank.shape
        if not 1 <= k <= n_rows:
            raise InputError(f"k {k} must be between 1 and the {n_rows} rows of the memory bank")
        if x.shape[1] != width:
            raise InputError(f"features have width {x.shape[1]}, but the memory bank has {width}; use one backbone")
        _check_finite(x)
        squared = np.empty((len(x), k), np.float32)
        indices = np.empty((len(x), k), np.int64)
        for start in range(0, len(x), self.block):
            part = slice(start, start + self.block)
            squared[part], indices[part] = self._query_block(x[part], k)
        return squared, indices

    def _query_block(self, x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        n_candidates = min(k + EXTRA, len(self.memory_bank))
        if self.backend == "faiss":
            # (B, k + EXTRA); -1, where an approximate search finds fewer, is the last row at its own distance
            _, rows = self._index.search(x, n_candidates, params=self._parameters)
        else:
            # |x|^2 is the same for all rows of the bank and does not change the order.
            x_there = torch.from_numpy(x).to(self.device)
            scores = torch.addmm(self._squared_norms, x_there, self._index.T, alpha=-2)  # (B, M)
            rows = scores.topk(n_candidates, largest=False).indices.cpu().numpy()
        difference = self.memory_bank[rows] - x[:, None]  # (B, k + EXTRA, d)
        squared = np.einsum("bkd,bkd->bk", difference, difference)
        order = np.lexsort((rows, squared))[:, :k]  # by distance, then by row number
        return np.take_along_axis(squared, order, 1), np.take_along_axis(rows, order, 1)


# -- coresets ----------------------------------------------------------------------------------------------------------


def select(
    features,
    n_select: int,
    sampler: str = "approximate_greedy",
    projection_dim: int | None = 128,
    n_start: int = 10,
    rng: np.random.Generator | None = None,
) -> np.ndarray:
    """Choose rows for the memory bank.

    Args:
        features: (N, d) float array or tensor; may be memory-mapped.
        n_select: rows to keep, 1 to N.
        sampler: "approximate_greedy" (PatchCore's code), "greedy", "random", or "none" (all rows, whatever
            `n_select` says).
        projection_dim: width of the random projection in which the greedy samplers measure distance (PatchCore's
            code: 128); None for the features' own space, which covers it better and pays up to a few hundred
            dimensions.
        n_start: random rows that initialise the approximate rule (all, where there are fewer).
        rng: source of the projection, the starting rows and the random sampler.

    Returns:
        int64 row numbers in order of selection. Fewer than `n_select` when the features have fewer distinct rows:
        a second copy of a row covers nothing.

    Raises:
        InputError: unknown sampler, `n_select` out of range, NaN or infinity, no `rng` where one is needed.
    """
    choice("sampler", sampler, SAMPLERS)
    features = _as_rows(features)
    _check_finite(features)
    if sampler == "none":
        return np.arange(len(features))
    if rng is None and not (sampler == "greedy" and projection_dim is None):
        raise InputError(f"sampler {sampler!r} draws random numbers; pass rng=numpy.random.default_rng(seed)")
    if sampler == "random":
        return random(len(features), n_select, rng)
    points = features if projection_dim is None else project(features, projection_dim, rng)
    _check_n_select(n_select, len(points))
    if sampler == "greedy":
        return greedy(points, n_select)
    if n_start < 1:
        raise InputError(f"n_start {n_start} must be at least 1 row")
    return approximate_greedy(points, n_select, rng.choice(len(points), min(n_start, len(points)), replace=False))


def project(features, dimension: int, rng: np.random.Generator) -> np.ndarray:
    """Project (N, d) to (N, dimension) by an untrained linear layer without bias, as PatchCore's code does.

    Its weights are uniform in +-1/sqrt(d), the default of `torch.nn.Linear`. Distances shrink by about
    sqrt(dimension / (3 d)), which is harmless: only their order matters. Features that already have this width are
    returned as they are.
    """
    features = _as_rows(features)
    width = features.shape[1]
    if dimension == width:
        return features
    if dimension < 1:
        raise InputError(f"projection_dim {dimension} must be at least 1, or None for no projection")
    weight = rng.uniform(-1, 1, (dimension, width)).astype(np.float32) / np.float32(np.sqrt(width))
    projected = np.empty((len(features), dimension), np.float32)
    for part in _blocks(len(features)):
        np.matmul(features[part], weight.T, out=projected[part])
    return projected


def random(n_rows: int, n_select: int, rng: np.random.Generator) -> np.ndarray:
    """Draw `n_select` of `n_rows` row numbers without replacement."""
    _check_n_select(n_select, n_rows)
    return rng.choice(n_rows, n_select, replace=False)


def approximate_greedy(features, n_select: int, start_rows) -> np.ndarray:
    """Choose a coreset by the rule of PatchCore's code (sampler "approx_greedy_coreset").

    Anchor distances begin as the *mean* Euclidean distance to the rows `start_rows`, which are not chosen themselves.
    """
    points = _as_rows(features)
    _check_n_select(n_select, len(points))
    _check_finite(points)
    starts = points[np.asarray(start_rows)]  # (m, d)
    anchors = np.concatenate([cdist(points[part], starts).mean(axis=1) for part in _blocks(len(points))])  # (N,)
    return farthest_first(points, n_select, anchors)


def greedy(features, n_select: int) -> np.ndarray:
    """Choose a coreset by the exact rule of PatchCore's code (sampler "greedy_coreset").

    Anchor distances begin as the L2 norm of the row of the full N x N distance matrix. That matrix is not needed:
    sum over y of |x - y|^2 = N |x|^2 + sum |y|^2 - 2 x . sum y.
    """
    points = _as_rows(features)
    _check_n_select(n_select, len(points))
    _check_finite(points)
    n = len(points)
    # About the mean, the sum of y is zero and nothing cancels.
    mean = points.mean(axis=0, dtype=np.float64)
    squared_norms = np.concatenate([np.square(points[part] - mean).sum(axis=1) for part in _blocks(n)])  # (N,)
    return farthest_first(points, n_select, np.sqrt(n * squared_norms + squared_norms.sum()))


def farthest_first(points, n_select: int, anchors: np.ndarray) -> np.ndarray:
    """Take the row of largest anchor distance, lower all anchor distances to the distance to it, repeat.

    The rows and their order are those of the plain rule in float64 (first row on ties). Three things make it fast:

    1. *Lazy anchors.* An anchor only ever falls, so an old one is an upper bound. A round brings only the rows with
       the largest bounds (the pool) up to date and takes rows from them as long as their anchors stay above the bound
       of every row left outside: no row outside can then be the farthest. A row whose bound has fallen below the
       final covering radius is never looked at again.
    2. *Blocks.* A row that enters the pool meets all rows taken since its last visit in one matrix product, instead
       of one row per step.
    3. *A cheap filter before an exact distance.* The product in float32 has a known error bound. Only where it cannot
       rule out that an anchor falls, the distance is computed from differences in float64.

    Args:
        points: (N, d) float32.
        n_select: rows to take.
        anchors: (N,) float64, initial anchor distances; not changed.

    Returns:
        int64 row numbers in order of selection; it ends early when all anchors are zero, that is when the rows
        left are copies of rows taken (or of a lone starting row).
    """
    points = _as_rows(points)
    squared_norms = np.einsum("nd,nd->n", points, points)  # (N,)
    bounds = np.square(anchors, dtype=np.float64)  # squared anchor distances, or more
    if not bounds.any():
        return np.zeros(1, dtype=np.int64)  # all rows are equal: one stands for all
    n_bounded = np.zeros(len(points), np.int64)  # how many rows of the coreset a bound takes into account
    coreset: list[int] = []
    pool_size = POOL
    while len(coreset) < n_select and bounds.max() > 0:
        pool, limit = _largest(bounds, pool_size)
        stale = pool[n_bounded[pool] < len(coreset)]
        # Sorted, so that the rows of one block have about as much to catch up with.
        stale = stale[np.argsort(n_bounded[stale], kind="stable")]
        for part in _blocks(len(stale), BLOCK // 2):
            rows = stale[part]
            _lower(points, squared_norms, bounds, rows, coreset[n_bounded[rows[0]] :])
        n_bounded[pool] = len(coreset)
        pool = pool[bounds[pool] > limit]
        n_before = len(coreset)
        pool_points, pool_norms, pool_bounds = points[pool], squared_norms[pool], bounds[pool]
        while len(pool) and len(coreset) < n_select:
            farthest = int(pool_bounds.argmax())
            if pool_bounds[farthest] <= limit:
                break
            coreset.append(int(pool[farthest]))
            _lower_to_one(pool_points, pool_norms, pool_bounds, farthest)
        bounds[pool], n_bounded[pool] = pool_bounds, len(coreset)
        n_taken = len(coreset) - n_before
        if n_taken < TAKEN[0]:
            pool_size = min(2 * pool_size, max(POOL, len(points) // POOL_SHARE))
        elif n_taken > TAKEN[1]:
            pool_size = max(pool_size // 2, POOL)
    return np.array(coreset, dtype=np.int64)


def _largest(values: np.ndarray, count: int) -> tuple[np.ndarray, float]:
    """Return the indices of the `count` largest values (more on ties), ascending, and the largest value left out."""
    if count >= len(values):
        return np.arange(len(values)), 0.0
    inside = values >= np.partition(values, len(values) - count)[len(values) - count]
    return np.flatnonzero(inside), float(values[~inside].max(initial=0.0))


def _slack(width: int, squared_norms) -> float:
    """Bound the error of |x|^2 + |c|^2 - 2 x.c in float32: each sum of `width` terms errs by at most width * eps."""
    return 2 * (width + 4) * 2.0**-24 * squared_norms


def _lower_to_one(points, squared_norms, bounds, centre: int) -> None:
    """Lower `bounds` of all rows of `points` to the squared distance to row `centre`."""
    # einsum rather than @: products this small are not worth waking the threads of the linear algebra library.
    approximate = squared_norms + squared_norms[centre] - 2 * np.einsum("md,d->m", points, points[centre])  # (m,)
    slack = _slack(points.shape[1], squared_norms + squared_norms[centre])
    near = np.flatnonzero(approximate - slack < bounds)
    bounds[near] = np.minimum(bounds[near], _squared_distances(points[near], points[centre]))


def _lower(points, squared_norms, bounds, rows, centres) -> None:
    """Lower `bounds` of `rows` to the squared distance to the nearest of `centres` (both row numbers of `points`)."""
    x, norms = points[rows], squared_norms[rows]
    centre_points, centre_norms = points[centres], squared_norms[centres]
    slack = _slack(points.shape[1], norms + centre_norms.max())
    partial = x @ (-2 * centre_points.T)  # (r, c)
    partial += centre_norms  # squared distance - |x|^2
    smallest = partial.min(axis=1)
    hit = np.flatnonzero(smallest - slack <= bounds[rows] - norms)
    pair, centre = np.nonzero(partial[hit] <= (smallest + 2 * slack)[hit, None])
    row = hit[pair]
    np.minimum.at(bounds, rows[row], _squared_distances(x[row], centre_points[centre]))


def _squared_distances(x, y) -> np.ndarray:
    """Return the squared distances of the rows of `x` to the rows (or the one row) `y`, in float64."""
    return np.square(x - y.astype(np.float64)).sum(axis=1)


def coverage_radius(features, indices) -> float:
    """Return the largest Euclidean distance of any row of `features` (N, d) to its nearest row among `indices`."""
    points = _as_rows(features)
    index = NearestNeighbours().fit(points[np.asarray(indices)])
    return float(np.sqrt(max(index.query(points[part])[0].max() for part in _blocks(len(points)))))


# -- checks ------------------------------------------------------------------------------------------------------------


def _blocks(n_rows: int, size: int = BLOCK):
    return (slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size))


def _as_rows(features) -> np.ndarray:
    """Return (N, d) contiguous float32, without a copy where it already is."""
    if isinstance(features, torch.Tensor):
        features = features.detach().cpu().numpy()
    features = np.ascontiguousarray(features, dtype=np.float32)
    if features.ndim != 2 or 0 in features.shape:
        raise InputError(f"features have shape {features.shape}; expected (rows, width) with at least one of each")
    return features


def _check_finite(features: np.ndarray) -> None:
    for part in _blocks(len(features)):
        if not np.isfinite(features[part]).all():
            row = part.start + int(np.flatnonzero(~np.isfinite(features[part]).all(axis=1))[0])
            raise InputError(f"features contain NaN or infinity (first in row {row}); check the weights and the images")


def _check_n_select(n_select: int, n_rows: int) -> None:
    if not 1 <= n_select <= n_rows:
        raise InputError(f"n_select {n_select} must be between 1 and the {n_rows} rows of the features")
