"""What ULSAD and DFR share: which normals to train on, cached features, and held-out pseudo-anomalies to select on."""

import numpy as np
import torch

from adlib import metrics, training
from adlib.datasets import hold_out
from adlib.errors import InputError
from adlib.methods import check_training_table
from adlib.settings import as_dict
from adlib.synthesis import SyntheticSplit


def split_normals(table, validation, share: float, seed: int):
    """Return (train, held_out): `table` and `validation`, or a seeded split of `table` with at least 2 held out.

    Raises:
        InputError: an anomalous or a test image in either, or too few normal images to train on and to hold out.
    """
    check_training_table(table)
    if validation is not None:
        check_training_table(validation)
        if len(validation) < 2 or len(table) < 2:
            raise InputError(
                f"{len(table)} training and {len(validation)} validation images; at least 2 of each are needed"
            )
        return table, validation
    if len(table) < 4:
        raise InputError(f"{len(table)} normal training images; at least 4 are needed: 2 to train on, 2 to hold out")
    return hold_out(table, max(share, 2 / len(table)), seed)


def epoch_rows(n_images: int, batch_size: int, seed: int, step: int) -> np.ndarray:
    """Return the images of a step: every epoch is a new shuffle that follows from the seed; a short rest is dropped."""
    epoch, place = divmod(step, max(1, n_images // batch_size))
    order = training.step_generator(seed, epoch).permutation(n_images)
    return order[place * batch_size : (place + 1) * batch_size]


def train_options(settings, backbone, checkpoint, checkpoint_every: int) -> dict:
    """What a method hands to `training.train` as it is; refuses a checkpoint of other settings or backbone weights.

    A run at a constant rate may go on longer than its checkpoint was meant to.
    """
    if checkpoint:
        falling = getattr(settings, "schedule", "constant") != "constant"  # then the rate depends on the length
        fixed = {key: value for key, value in as_dict(settings).items() if falling or key != "n_steps"}
        training.check_checkpoint(checkpoint, fixed | {"backbone weights": backbone.fingerprint})
    names = ("seed", "selection", "validate_every", "snapshot_every", "precision")
    options = {name: getattr(settings, name) for name in names}
    return options | {"checkpoint": checkpoint, "checkpoint_every": checkpoint_every}


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
