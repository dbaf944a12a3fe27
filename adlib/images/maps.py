"""From a grid of scores to a map of the image and to one number: the same operations for every method."""

import cv2
import numpy as np
import torch
import torch.nn.functional as F

from adlib.errors import InputError
from adlib.images.files import Batch


def enlarge(grid: torch.Tensor, size: tuple[int, int], align_corners: bool = False) -> torch.Tensor:
    """(B, h, w) -> float32 (B, H, W), bilinear."""
    return F.interpolate(grid[:, None].float(), size=size, mode="bilinear", align_corners=align_corners)[:, 0]


def smooth(maps: np.ndarray, sigma: float, border: int = cv2.BORDER_REFLECT) -> np.ndarray:
    """Blur maps (..., H, W) with a Gaussian of `sigma` pixels, cut off at 4 sigma; 0 leaves them as they are."""
    if sigma == 0:
        return maps
    width = 2 * int(4 * sigma + 0.5) + 1
    flat = maps.reshape(-1, *maps.shape[-2:])
    blurred = [cv2.GaussianBlur(one, (width, width), sigma, borderType=border) for one in flat]
    return np.stack(blurred).reshape(maps.shape) if blurred else maps


def upsample_and_smooth(grid: torch.Tensor, size: tuple[int, int], sigma: float) -> np.ndarray:
    """(B, h, w) -> float32 array (B, H, W): bilinear, then a Gaussian with mirrored edges."""
    return smooth(enlarge(grid, size).cpu().numpy(), sigma)


def top_mean(maps: torch.Tensor, share: float = 0.01) -> torch.Tensor:
    """Mean of the highest `share` of each of (B, h, w) -> (B,); the maximum where that is less than one value."""
    flat = maps.flatten(1)
    return flat.topk(max(1, int(share * flat.shape[1])), dim=1).values.mean(1)


def align(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Bring feature maps (B, C, h, w) to another grid, bilinear; unchanged where they have it."""
    if tuple(maps.shape[-2:]) == tuple(grid):
        return maps
    return F.interpolate(maps, size=tuple(grid), mode="bilinear", align_corners=False)


def check_images(batch: Batch | torch.Tensor) -> torch.Tensor:
    """The images of a batch; what is not a stack of colour images (B, 3, H, W) of at least one is refused."""
    images = batch.images if isinstance(batch, Batch) else batch
    if images.ndim != 4 or images.shape[1] != 3 or not len(images):
        raise InputError(f"images of shape {tuple(images.shape)} given; expected (B, 3, H, W), B >= 1")
    return images
