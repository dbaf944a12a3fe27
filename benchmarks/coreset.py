"""Coreset selection: adlib against anomalib 2.7.0, on the same 100 000 x 152 features, 2 %, in one process.

    .venv-bench/bin/python benchmarks/coreset.py

Both sides start from features in memory and end with row numbers; a random projection, where there is one, is part
of the time. anomalib projects sparsely to the width that the Johnson-Lindenstrauss bound gives for eps = 0.9 (284
here, wider than the features). adlib runs twice: with the 128-dimensional projection of PatchCore's code, and
without any. Repeats alternate between the sides, each with a seed of its own, and medians are reported.

What is bought with the time is the covering radius: the largest distance of a feature to its nearest kept one. It is
measured for both sides in the features' own space and in one 128-dimensional projection of it.
"""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from adlib.images import backbones, neighbours, patches

N_ROWS, SHARE, REPEATS = 100_000, 0.02, 3


def photograph_features(seed: int = 0) -> np.ndarray:
    """Return (100 000, 152) patch embeddings by EfficientNet-Lite0 of random crops of three CC0 photographs."""
    import skimage.data

    photographs = skimage.data.brick(), skimage.data.grass(), skimage.data.gravel()  # uint8 (512, 512) each
    backbone = backbones.create("tf_efficientnet_lite0", (2, 3), "auto", (256, 256))
    rng = np.random.default_rng(seed)
    rows = []
    with torch.inference_mode():
        for _ in range(-(-N_ROWS // 1024)):  # 32 x 32 patches a crop
            top, left = rng.integers(0, 256, 2)
            crop = photographs[rng.integers(3)][top : top + 256, left : left + 256]
            image = torch.from_numpy(crop).float().div(255).expand(1, 3, -1, -1)
            rows.append(patches.to_rows(patches.mean_embedding(backbone(image))).numpy())
    return np.concatenate(rows)[:N_ROWS]


def clustered_features(seed: int = 0) -> np.ndarray:
    """Return (100 000, 152) made-up features: 60 clusters of unequal size, 12 directions each, clipped at zero."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((60, 152))
    directions = 0.35 * rng.standard_normal((60, 12, 152))
    cluster = rng.choice(60, N_ROWS, p=rng.dirichlet(np.full(60, 0.7)))
    features = np.empty((N_ROWS, 152), np.float32)
    for c in range(60):
        inside = cluster == c
        spread = rng.standard_normal((inside.sum(), 12)) * rng.gamma(2, 0.5, (inside.sum(), 1))
        features[inside] = centres[c] + spread @ directions[c]
    features += 0.15 * rng.standard_normal(features.shape, dtype=np.float32)
    return np.maximum(features + 0.3, 0)


def adlib_coreset(features: np.ndarray, projection_dim: int | None, seed: int) -> np.ndarray:
    n_select = int(SHARE * len(features))
    return neighbours.select(features, n_select, projection_dim=projection_dim, rng=np.random.default_rng(seed))


def anomalib_coreset(features: np.ndarray, seed: int) -> np.ndarray:
    from anomalib.models.components.sampling import k_center_greedy

    k_center_greedy.tqdm = lambda iterable, **_: iterable  # its progress bar
    torch.manual_seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - its projection draws from the global generator
    sampler = k_center_greedy.KCenterGreedy(torch.from_numpy(features), SHARE)
    return np.array(sampler.select_coreset_idxs())


def main() -> list[dict]:
    """Print one line a comparison, return the rows for `results/benchmarks.csv`."""
    import anomalib.models.components.sampling  # noqa: F401 - its import is not part of the time

    rows = []
    sides = {
        "adlib, 128-d": lambda features, seed: adlib_coreset(features, 128, seed),
        "adlib, no projection": lambda features, seed: adlib_coreset(features, None, seed),
        "anomalib": anomalib_coreset,
    }
    for kind, make in (("Lite0", photograph_features), ("clustered", clustered_features)):
        features = make()
        projected = neighbours.project(features, 128, np.random.default_rng(100))
        seconds, radius, projected_radius = ({side: [] for side in sides} for _ in range(3))
        adlib_coreset(features, 128, 0)  # warm up
        for seed in range(REPEATS):
            for side, choose in sides.items():
                start = time.perf_counter()
                chosen = choose(features, seed)
                seconds[side].append(time.perf_counter() - start)
                radius[side].append(neighbours.coverage_radius(features, chosen))
                projected_radius[side].append(neighbours.coverage_radius(projected, chosen))
                print(f"  {kind}, {side}, seed {seed}: {seconds[side][-1]:.2f} s, {len(chosen)} rows", flush=True)
        measures = (
            ("time", seconds, "s"),
            ("radius", radius, "distance"),
            ("radius in 128-d", projected_radius, "distance"),
        )
        for ours in list(sides)[:2]:
            for measure, found, unit in measures:
                a, b = statistics.median(found[ours]), statistics.median(found["anomalib"])
                row = {
                    "benchmark": f"coreset {measure} ({ours})",
                    "size": f"{N_ROWS} x 152 {kind}, {SHARE:.0%}",
                    "ours": round(a, 4),
                    "theirs": round(b, 4),
                    "ratio": round(b / a, 3),
                    "unit": unit,
                    "note": f"median of {REPEATS} seeds; "
                    f"ours {min(found[ours]):.3f}-{max(found[ours]):.3f}, "
                    f"theirs {min(found['anomalib']):.3f}-{max(found['anomalib']):.3f}; "
                    f"{torch.get_num_threads()} threads",
                }
                print("{benchmark}, {size}: {ours} / {theirs}, ratio {ratio}".format(**row), flush=True)
                rows.append(row)
    return rows


if __name__ == "__main__":
    torch.set_num_threads(2)
    main()
