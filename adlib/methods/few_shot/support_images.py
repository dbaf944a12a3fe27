"""The support: a handful of normal images that says what is normal, and what all methods do that rely on one.

support, held_out = choose_support(train, k=4, seed=0)      k distinct normal images, others to set the threshold
describe(backbone(images))                                  patches, normalised at each location
"""

import copy

import cv2
import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from adlib.datasets import check_training_table
from adlib.errors import InputError
from adlib.images import Resize, batches, stored_values, to_tensor
from adlib.methods.normals import collect, split_normals

# Categories whose defects include a wrong orientation (MVTec AD): a turned support would declare it normal.
ORIENTED = ("metal_nut", "transistor")
N_NORMALS = 50  # held-out normals that are scored for the threshold, at most


def choose_support(table, k: int, seed: int, n_held_out: int = N_NORMALS) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Choose `k` support images at random, all different in their pixels, and others to hold out.

    Args:
        table: normal training images.
        k: support images.
        seed: the same seed and table give the same images.
        n_held_out: at most so many of the other images are held out.

    Returns:
        (support, held_out), rows of `table`. Copies of an image already taken are in neither: a copy in the support
        would make the distance between supports zero, a copy among the held-out normals would score zero. Where there
        are fewer than `k` different images, all of them are the support, and a line says so.
    """
    digests, rows = set(), []
    for i in np.random.default_rng(seed).permutation(len(table)):
        if len(rows) == k + n_held_out:
            break
        key = pixel_hash(stored_values(table.image_path.iloc[i]))
        if key not in digests:
            digests.add(key)
            rows.append(i)
    if len(rows) < k:
        print(f"k {k}: there are {len(rows)} different normal images, and all of them are the support", flush=True)
    return table.iloc[rows[:k]], table.iloc[sorted(rows[k:])]


def split_support(table: pd.DataFrame, settings, validation=None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Split normals into those to fit on (`k` as a support, or all but a share) and those to set the threshold.

    Of the latter, `validation` where given, there are at most `N_NORMALS`.
    """
    if settings.k is None:
        fit, held_out = split_normals(table, settings, validation)
    else:
        n_held_out = N_NORMALS if validation is None else 0
        fit, held_out = choose_support(table, settings.k, settings.seed, n_held_out)
        if validation is not None:
            check_training_table(validation, "the validation table")
            held_out = validation
    return fit, held_out.iloc[:N_NORMALS]


def pixel_hash(image) -> int:
    """Return a hash of an image's pixels and shape (array or tensor): equal pictures in different files agree."""
    pixels = np.ascontiguousarray(image)
    return hash((pixels.shape, pixels.tobytes()))


def distinct(images: torch.Tensor) -> torch.Tensor:
    """Drop images (k, 3, H, W) that repeat an earlier one pixel by pixel."""
    first_rows: dict[int, int] = {}
    for i, image in enumerate(images):
        first_rows.setdefault(pixel_hash(image.cpu()), i)
    return images[sorted(first_rows.values())]


def support_ids(table: pd.DataFrame) -> list[str]:
    """Name support images by the last three parts of their paths, for records: no folder of this machine."""
    return ["/".join(str(path).replace("\\", "/").split("/")[-3:]) for path in table.image_path]


def read_images(paths, resize: Resize) -> torch.Tensor:
    """Read image files as one tensor (k, 3, H, W) in [0, 1]."""
    return to_tensor([resize.read(path)[0] for path in paths])


def jittered(images: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Return slightly changed copies of images (k, 3, H, W): what a second picture of the same product could be.

    Rotation by up to 4 degrees, a shift by up to 3 %, a gain within 5 %; edges mirrored.
    """
    copies = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():  # (H, W, 3)
        height, width = image.shape[:2]
        matrix = cv2.getRotationMatrix2D((width / 2, height / 2), rng.uniform(-4, 4), 1.0)
        matrix[:, 2] += rng.uniform(-0.03, 0.03, 2) * (width, height)
        moved = cv2.warpAffine(image, matrix, (width, height), borderMode=cv2.BORDER_REFLECT)
        copies.append((moved * rng.uniform(0.95, 1.05)).clip(0, 1))
    return torch.from_numpy(np.stack(copies)).permute(0, 3, 1, 2).float().contiguous()


def describe(features: list[torch.Tensor], window: int = 3, layer_norm: bool = True) -> list[torch.Tensor]:
    """Normalise each location over its channels (LayerNorm without parameters), then average windows.

    Zeros beyond the border count, as in PatchCore. Cells at the border look at the network's own padding; they differ
    from picture to picture for no reason of the product, and would be the most suspicious of all. Counted zeros shorten
    them by a third, in a corner by more than a half, and with them their distances.

    Args:
        features: (B, C_l, h_l, w_l) per stage.
        window: cells averaged over, an odd number; 1: none.
        layer_norm: for transformers, whose stages are streams that no normalisation has seen yet. In a CNN the length
            of a feature says how much there is to see at this place; normalising makes noise of plain background.
    """
    averages = []
    for feature in features:
        if not feature.isfinite().all():
            raise InputError("features of these images are NaN or infinite; check the backbone's weights")
        if layer_norm:
            feature = F.layer_norm(feature.movedim(1, -1), feature.shape[1:2]).movedim(-1, 1)
        averages.append(F.avg_pool2d(feature, window, 1, window // 2))
    return averages


def nearest_similarity(query: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Largest cosine similarity of each query row to the memory.

    Args:
        query: (N, C), memory: (M, C), both of unit length.

    Returns:
        (N,), in [-1, 1].
    """
    return (query @ memory.T).amax(dim=1)


def check_support(images: torch.Tensor, size: tuple[int, int]) -> None:
    """Refuse a support that is empty or of another shape than (k, 3, *size)."""
    if images.ndim != 4 or images.shape[1] != 3 or tuple(images.shape[2:]) != tuple(size) or not len(images):
        raise InputError(f"support of shape {tuple(images.shape)} given; expected (k, 3, {size[0]}, {size[1]}), k >= 1")


def check_rotations(rotations, table) -> None:
    """Refuse turned supports for categories where orientation is what can be wrong."""
    oriented = sorted(set(table.category) & set(ORIENTED))
    if oriented and tuple(rotations) != (0,):
        raise InputError(
            f"rotations {rotations} hide defects of orientation in category {oriented[0]!r}; use rotations=[0]"
        )


def rotated(images: torch.Tensor, rotations: tuple[int, ...]) -> torch.Tensor:
    """Turn images (k, 3, H, W) by each angle, a multiple of 90 degrees: (angles k, 3, H, W); oblong ones stretched."""
    views = [torch.rot90(images, angle // 90, (2, 3)) for angle in rotations]
    size = images.shape[2:]
    return torch.cat([v if v.shape[2:] == size else F.interpolate(v, size=size, mode="bilinear") for v in views])


def score_normals(method, support: pd.DataFrame, held_out: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Image scores and map maxima of held-out normals; where there are fewer than two, of each image by the others.

    For that, a copy of the method takes in all images but one, at most `k`: the memory is an image smaller than the
    real one, so that scores err on the high side. A single image leaves nothing to score: both arrays are empty.
    """
    s = method.settings
    if len(held_out) > 1 or (s.k is None and len(support) > 3):
        return collect(method.score(batch) for batch in batches(held_out.image_path, method.resize, 8))
    few, others, scores = pd.concat([support, held_out]), copy.copy(method), []
    for i in range(len(few) if len(few) > 1 else 0):
        others.take_in(few.iloc[np.delete(np.arange(len(few)), i)[: s.k]])
        scores.append(others.score(read_images(few.image_path.iloc[i : i + 1], method.resize)))
    return collect(scores)
