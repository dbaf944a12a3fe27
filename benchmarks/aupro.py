"""Exact AUPRO: adlib against anomalib 2.7.0, on the same maps, in one process.

    .venv-bench/bin/python benchmarks/aupro.py

Both sides start from maps and masks in memory and end with one number. The maps are smooth noise, raised inside a few
discs in every second image: overlapping score distributions, so that no side is spared work by an easy case. Repeats
alternate between the sides, because a shared machine is not equally fast at all times. The value is checked
against a plain reading of the definition: every pixel sorted in float64, no shortcut.
"""

import sys
import time
from pathlib import Path

import cv2
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from adlib.evaluation.metrics import aupro

CASES = ((60, 256, 7), (40, 1024, 3))  # images, side in pixels, repeats


def make_maps(n_images: int, side: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return float32 maps and bool masks, both (n_images, side, side); images with an odd index are anomalous."""
    rng = np.random.default_rng(seed)
    maps = np.empty((n_images, side, side), np.float32)
    masks = np.zeros((n_images, side, side), bool)
    for i in range(n_images):
        coarse = rng.standard_normal((side // 8, side // 8), dtype=np.float32)
        maps[i] = cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC)
        maps[i] += 0.1 * rng.standard_normal((side, side), dtype=np.float32)
        if i % 2:
            discs = np.zeros((side, side), np.uint8)
            for _ in range(rng.integers(1, 5)):
                x, y = rng.integers(0, side, 2).tolist()
                cv2.circle(discs, (x, y), int(rng.integers(side // 64, side // 12)), 1, -1)
            masks[i] = discs > 0
            maps[i] += masks[i] * np.float32(1.5)
    return maps, masks


def by_definition(maps, masks, limit: float = 0.3) -> float:
    """AUPRO by sorting all pixels, with every distinct score a threshold: slow, plain, for checking."""
    weight = np.zeros(maps.shape)
    n_regions = 0
    for i, mask in enumerate(masks):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        for label in range(1, count):
            weight[i][labels == label] = 1 / np.count_nonzero(labels == label)
        n_regions += count - 1
    order = np.argsort(-maps.ravel(), kind="stable")
    scores = maps.ravel()[order]
    last = np.append(scores[1:] != scores[:-1], True)
    fpr = np.append(0, np.cumsum(~masks.ravel()[order])[last] / np.count_nonzero(~masks))
    pro = np.append(0, np.cumsum(weight.ravel()[order])[last] / n_regions)
    at_limit = np.interp(limit, fpr, pro)
    inside = fpr <= limit
    return float(np.trapezoid(np.append(pro[inside], at_limit), np.append(fpr[inside], limit)) / limit)


def anomalib_aupro(maps: torch.Tensor, masks: torch.Tensor) -> float:
    from anomalib.metrics.aupro import _AUPRO  # the metric itself; the public class only unpacks batches for it

    metric = _AUPRO(fpr_limit=0.3)
    metric.update(maps, masks)
    return float(metric.compute())


def main() -> list[dict]:
    """Print one line a case, return the rows for `results/benchmarks.csv`."""
    rows = []
    print(
        f"{'case':>18} {'adlib s':>9} {'anomalib s':>11} {'ratio':>6} {'adlib':>12} {'anomalib':>12} {'definition':>12}"
    )
    for n_images, side, repeats in CASES:
        maps, masks = make_maps(n_images, side)
        maps_torch, masks_torch = torch.from_numpy(maps), torch.from_numpy(masks).int()
        ours, theirs = [], []
        for _ in range(repeats):
            start = time.perf_counter()
            value = aupro(maps, masks, limit=0.3)
            middle = time.perf_counter()
            other = anomalib_aupro(maps_torch, masks_torch)
            ours.append(middle - start)
            theirs.append(time.perf_counter() - middle)
        ours, theirs = float(np.median(ours)), float(np.median(theirs))
        exact = by_definition(maps, masks)
        size = f"{n_images}x{side}x{side}"
        ratio = theirs / ours
        print(
            f"{size:>18} {ours:9.3f} {theirs:11.3f} {ratio:6.1f} {value:12.9f} {other:12.9f} {exact:12.9f}", flush=True
        )
        note = (
            f"median of {repeats}; value {value:.9f}, anomalib {other:.9f}, "
            f"difference from the definition {abs(value - exact):.1e}"
        )
        row = {"benchmark": "aupro", "size": size, "ours": ours, "theirs": theirs, "ratio": ratio, "unit": "s"}
        rows.append({**row, "note": note})
    return rows


if __name__ == "__main__":
    main()
