"""Held-out pseudo-anomalies to select on."""

import numpy as np

from adlib.evaluation import metrics
from adlib.synthesis import SyntheticSplit


def synthetic_images(held_out, settings, resize) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return images uint8 (N, H, W, 3), masks bool (N, H, W) and labels (N,): held-out normals, every other damaged."""
    number = min(2 * len(held_out), settings.n_synthetic)
    split = SyntheticSplit(held_out, number=number, seed=settings.seed, resize=resize)
    items = [split[i] for i in range(len(split))]
    return (
        np.stack([item.image for item in items]),
        np.stack([item.mask for item in items]),
        np.array([item.label for item in items]),
    )


def synthetic_score(scores, maps, masks, labels) -> dict[str, float]:
    """What selection "synthetic" maximises: the mean of image AUROC and pixel AP on the pseudo-anomalies."""
    image_auroc = metrics.image_metrics(scores, labels)["image_auroc"]
    pixel_ap = metrics.pixel_metrics(list(maps), list(masks))["pixel_ap"]
    return {"score": (image_auroc + pixel_ap) / 2, "image_auroc": image_auroc, "pixel_ap": pixel_ap}
