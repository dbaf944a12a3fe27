"""From what ULSAD's networks leave over to a map: residuals, their normal range, quantiles (arXiv 2410.16255, 3.4)."""

import numpy as np
import torch
import torch.nn.functional as F

from adlib.methods.ulsad.step import dissimilarity


def small_maps(features, reconstructed, from_image) -> torch.Tensor:
    """Local and global map on the feature grid: d(F, R_l) and d(G, R_g), both with direction 0.5 -> (B, 2, h, w).

    Of R_l alone (B, C, h, w) the local map only.
    """
    pairs = [features, from_image][: reconstructed.shape[1] // features.shape[1]]
    parts = zip(pairs, reconstructed.split(features.shape[1], dim=1), strict=True)
    return torch.stack([dissimilarity(one, other) for one, other in parts], dim=1)


def residuals(features, reconstructed, from_image, global_residual: str = "imitation", area: float = 0.0):
    """The residual vectors whose length makes the maps -> (B, 2, C, h, w), local and global.

    Args:
        features, reconstructed, from_image: F, R and G.
        global_residual: `imitation` G - R_g (paper), or `features` F - G.
        area: standard deviation in cells of a Gaussian that averages the global residual. A part may lie anywhere in
            its place, so no single cell tells that one is missing; but the *sum* over the place does.
    """
    c = features.shape[1]
    far = from_image - reconstructed[:, c:] if global_residual == "imitation" else features - from_image
    if area:
        reach = min(int(3 * area + 0.5), min(far.shape[-2:]) - 1)
        weights = torch.exp(-0.5 * (torch.arange(-reach, reach + 1).to(far) / area) ** 2)
        weights = (weights / weights.sum()).expand(c, 1, 1, -1)
        padded = F.pad(far, (reach,) * 4, mode="reflect")
        far = F.conv2d(F.conv2d(padded, weights, groups=c), weights.transpose(2, 3), groups=c)
    return torch.stack([features - reconstructed[:, :c], far], dim=1)


def whitening(normal: torch.Tensor, ridge: float = 0.01, prior: float = 10.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and whitening matrix of residuals, so that ||(r - mean) W||^2 / C is about 1 for normal images.

    The plain d weighs every channel alike. But a channel whose residual is always small tells more when it is large,
    and channels that err together tell one thing, not many. Dividing by the covariance accounts for both.

    Args:
        normal: residuals (N, M, C, h, w) of normal images, for M maps.
        ridge: added to the diagonal of the covariance, as a share of its mean.
        prior: the mean at every position is drawn to the mean of all positions by so many images.

    Returns:
        mean (M, C, h, w) and matrix (M, C, C), float32.
    """
    mean = level_of(normal, prior)  # (M, C, h, w)
    matrices = []
    for i in range(len(mean)):  # one map at a time: residuals of many images are large
        rows = (normal[:, i] - mean[i]).transpose(0, 1).flatten(1)  # (C, N h w)
        covariance = (rows @ rows.T).double() / rows.shape[1]
        scale = covariance.diagonal().mean().clamp_min(1e-12)
        values, vectors = torch.linalg.eigh(covariance + ridge * scale * torch.eye(len(covariance)).to(covariance))
        matrices.append((vectors / values.clamp_min(1e-12).sqrt()).float())
    return mean, torch.stack(matrices)


def whitened_maps(residual: torch.Tensor, mean: torch.Tensor, matrix: torch.Tensor) -> torch.Tensor:
    """Residuals (B, M, C, h, w) -> squared length in units of the normal covariance, per channel (B, M, h, w)."""
    rows = (residual - mean).flatten(3).transpose(2, 3)  # (B, M, h w, C)
    return (rows @ matrix).square().mean(dim=3).unflatten(2, residual.shape[-2:])


def level_of(normal: torch.Tensor, prior: float = 10.0) -> torch.Tensor:
    """Mean of N normal images at every position, drawn to the mean over positions by `prior` images.

    (N, ..., h, w) -> (..., h, w).
    """
    overall = normal.mean(dim=(0, -2, -1))[..., None, None]
    return (normal.sum(dim=0) + prior * overall) / (len(normal) + prior)


def place_statistics(normal: torch.Tensor, prior: float = 10.0) -> torch.Tensor:
    """Mean and standard deviation of N normal maps at every place, both drawn to those of all places by `prior` images.

    (N, M, h, w) -> (2, M, h, w).
    """
    mean = level_of(normal, prior)
    return torch.stack([mean, level_of((normal - mean).square(), prior).clamp_min(1e-12).sqrt()])


def peaks_at_the_border(maps: torch.Tensor, cells: int = 2) -> bool:
    """Tell whether most normal maps (N, h, w) have their maximum in the outer ring of `cells` cells.

    The padding of the backbone makes features there unlike any others, in every image in the same way.
    """
    height, width = maps.shape[-2:]
    peak = maps.flatten(1).argmax(dim=1)
    row, column = peak // width, peak % width
    edge = torch.minimum(torch.minimum(row, height - 1 - row), torch.minimum(column, width - 1 - column))
    return bool((edge < cells).float().mean() > 0.5)


def map_quantiles(blurred_maps: np.ndarray, quantiles=(0.9, 0.995)) -> np.ndarray:
    """Quantiles of all pixels of normal maps (N, M, H, W), blurred but not normalised -> float32 (M, 2)."""
    pixels = np.moveaxis(blurred_maps, 1, 0).reshape(blurred_maps.shape[1], -1)
    return np.quantile(pixels, quantiles, axis=1).T.astype(np.float32)


def normalise(maps: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """0.1 (map - q_a) / (q_b - q_a), for maps (B, M, H, W) and quantiles (M, 2): two maps on one scale.

    Where both quantiles are equal the normal maps are flat and say nothing about scale: the map is only shifted.
    """
    low, high = (quantiles[:, i].reshape(1, -1, 1, 1) for i in (0, 1))
    span = np.where(high > low, (high - low) / 0.1, 1.0).astype(np.float32)
    return (maps - low) / span
