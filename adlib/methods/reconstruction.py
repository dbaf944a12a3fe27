"""What ULSAD and DFR share: checks of settings, cached features, and held-out pseudo-anomalies to select on."""

import numpy as np
import torch

from adlib.evaluation import metrics
from adlib.images import Resize
from adlib.methods import training
from adlib.synthesis import SyntheticSplit


def resize_of(settings) -> Resize:
    """The geometry of the input that the settings ask for."""
    size = settings.image_size if isinstance(settings.image_size, int) else tuple(settings.image_size)
    return Resize(size, settings.resize, settings.scale if settings.resize == "short_side" else None)


def epoch_rows(n_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the images of a step: every epoch is a new shuffle that follows from the seed; a short rest is dropped."""
    epoch, place = divmod(step, max(1, n_images // batch_size))
    order = training.step_generator(seed, epoch).permutation(n_images)
    return order[place * batch_size : (place + 1) * batch_size]


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


def to_grid(features: np.ndarray, device) -> torch.Tensor:
    """(B, h, w, C) -> (B, C, h, w), the same bytes in channels-last order."""
    return torch.from_numpy(np.ascontiguousarray(features)).to(device).permute(0, 3, 1, 2)


def to_images(images: np.ndarray, device) -> torch.Tensor:
    """uint8 (B, H, W, 3) -> float (B, 3, H, W) in [0, 1]."""
    return torch.from_numpy(np.ascontiguousarray(images)).to(device).permute(0, 3, 1, 2).float() / 255
