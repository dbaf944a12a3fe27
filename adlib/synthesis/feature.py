"""Pseudo-anomalies among features instead of pixels: noise on the cells of a normal image.

Cells are numpy arrays or torch tensors of one of the shapes (L, C), (C, H, W) or (B, C, H, W); the mask has the
shape without C. The result has the type, device and shape of what was given. For the gradients of a torch tensor
the noise is a constant.
"""

import numpy as np
import torch

from adlib.errors import InputError
from adlib.synthesis.draws import uniform
from adlib.synthesis.perlin import perlin_mask
from adlib.synthesis.registry import register


@register("feature_gauss", kind="feature")
def feature_gauss(features, rng, sigma=0.015):
    """SimpleNet (Liu et al., CVPR 2023): N(0, sigma^2) on every value of every cell.

    The length of the noise on a cell grows with the root of its width C: 0.015 on 1536 values makes 0.588. For
    another width, keep sigma * sqrt(C).
    """
    shape = _token_shape(features)
    return features + _noise(features, rng, sigma), np.ones(shape, bool), {"sigma": sigma}


@register("feature_perlin", kind="feature")
def feature_perlin(features, rng, sigma=0.015, probability=0.5, threshold=0.2, exponents=(0, 6)):
    """SuperSimpleNet (Rolih et al., 2024): Gaussian noise on blobs of cells.

    Each image of the batch is anomalous with `probability`; its mask is Perlin noise on the cell grid above
    `threshold`. Exponents that would make more lattice cells than the map has cells are left out. Needs (C, H, W) or
    (B, C, H, W).
    """
    shape = _token_shape(features)
    if len(shape) == 1:
        raise InputError(
            f"feature_perlin needs a grid of cells, (C, H, W) or (B, C, H, W), got {tuple(features.shape)}"
        )
    probability = uniform("probability", probability, rng, 0, 1)
    highest = min(exponents[1], min(shape[-2:]).bit_length() - 1)
    exponents = (min(exponents[0], highest), highest)
    mask = np.zeros(shape, bool)  # (H, W) or (B, H, W)
    anomalous = rng.random(mask.reshape(-1, *shape[-2:]).shape[0]) < probability
    for index in np.flatnonzero(anomalous):
        blob, _ = perlin_mask(shape[-2:], rng, exponents=exponents, threshold=threshold)
        mask.reshape(-1, *shape[-2:])[index] = blob
    return features + _noise(features, rng, sigma, mask), mask, {"sigma": sigma, "anomalous": anomalous.tolist()}


def _token_shape(features) -> tuple[int, ...]:
    shape = tuple(getattr(features, "shape", ()))
    if len(shape) not in (2, 3, 4) or 0 in shape:
        raise InputError(f"features must be (L, C), (C, H, W) or (B, C, H, W), got shape {shape}")
    return {2: shape[:1], 3: shape[1:], 4: shape[:1] + shape[2:]}[len(shape)]


def _noise(features, rng, sigma: float, mask=None):
    """Gaussian noise like the features, 0 outside the mask; drawn by numpy so that it is the same on every device."""
    if sigma < 0:
        raise InputError(f"sigma {sigma!r} must not be negative")
    noise = rng.standard_normal(tuple(features.shape), dtype=np.float32) * np.float32(sigma)
    if mask is not None:
        noise *= np.expand_dims(mask, -3)  # (1, H, W) or (B, 1, H, W)
    if isinstance(features, torch.Tensor):
        return torch.from_numpy(noise).to(features.device, features.dtype)
    return noise.astype(features.dtype)
