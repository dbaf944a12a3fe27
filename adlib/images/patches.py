"""From feature maps to patch embeddings: neighbourhood, alignment, pooling (PatchCore section 3.1).

    list of feature maps (B, C_l, H_l, W_l)  ->  one grid of embeddings (B, D, H, W), H and W of the first map

Two ways lead there. `adaptive_pool_embedding` is the original: it pools over the *flattened channel-and-window
vector*, so channels are averaged as well as positions. `mean_embedding` is the plain form that most ports use: the
mean of each window, all channels kept.
"""

import torch
import torch.nn.functional as F

from adlib.images.maps import align


def embed(features: list[torch.Tensor], patch_size: int = 3, embedding_dim: int | None = 1024) -> torch.Tensor:
    """Embed patches as the settings ask: without a width `mean_embedding`, else the original's pooling.

    Returns:
        float32 tensor (B, D, H, W).
    """
    if embedding_dim is None:
        return mean_embedding(features, patch_size)
    channels = tuple(feature.shape[1] for feature in features)
    if (channels, patch_size, embedding_dim) == ((512, 1024), 3, 1024):
        return paper_embedding(features)
    return adaptive_pool_embedding(features, patch_size, 1, embedding_dim, embedding_dim)


def mean_embedding(features: list[torch.Tensor], patch_size: int = 3) -> torch.Tensor:
    """Average every window (zero padding counted), bring all maps to the first one's grid, concatenate channels.

    Returns:
        float32 tensor (B, sum of C_l, H, W).
    """
    pooled = features
    if patch_size > 1:  # a window of one changes nothing
        pooled = [F.avg_pool2d(feature, patch_size, 1, (patch_size - 1) // 2) for feature in features]
    grid = pooled[0].shape[-2:]
    return torch.cat([pooled[0], *(align(p, grid) for p in pooled[1:])], dim=1)


def adaptive_pool_embedding(
    features: list[torch.Tensor], patch_size: int, patch_stride: int, pretrain_dim: int, target_dim: int
) -> torch.Tensor:
    """The original's embedding for any layers and dimensions (memory: patch_size^2 times the feature maps).

    1. unfold windows: (C, p, p) at each location, zero padded;
    2. resize every later layer's planes bilinearly to the first layer's grid;
    3. per layer, flatten channel-major to C p p and pool adaptively to `pretrain_dim`;
    4. stack the layers, flatten and pool adaptively to `target_dim`.

    Bin i of an adaptive pool from L to n averages elements floor(i L / n) ... ceil((i + 1) L / n) - 1.

    Returns:
        float32 tensor (B, target_dim, H, W).
    """
    padding = (patch_size - 1) // 2
    grid, vectors = None, []
    for feature in features:
        batch, channels = feature.shape[:2]
        size = [(n + 2 * padding - (patch_size - 1) - 1) // patch_stride + 1 for n in feature.shape[-2:]]
        windows = F.unfold(feature, patch_size, padding=padding, stride=patch_stride)  # (B, C p p, H W)
        windows = windows.view(batch, channels * patch_size**2, *size)  # (B, C p p, H, W)
        grid = grid or tuple(size)
        windows = align(windows, grid).flatten(2).transpose(1, 2)  # (B, H W, C p p)
        vectors.append(F.adaptive_avg_pool1d(windows, pretrain_dim))  # (B, H W, pretrain_dim)
    stacked = torch.cat(vectors, dim=2)  # (B, H W, layers * pretrain_dim)
    pooled = F.adaptive_avg_pool1d(stacked, target_dim)  # (B, H W, target_dim)
    return pooled.transpose(1, 2).reshape(len(pooled), target_dim, *grid)


def paper_embedding(features: list[torch.Tensor]) -> torch.Tensor:
    """The paper's default case (512 and 1024 channels, window 3, 1024, 1024) without unfolding.

    At these sizes the two pools collapse into something simple. 512 * 9 -> 1024 takes two overlapping half windows
    a channel (positions 0-4 and 4-8), which the second pool averages: a 3x3 kernel of weights 0.1 with 0.2 at the
    centre. 1024 * 9 -> 1024 is the plain window mean, and the second pool averages channels 2j and 2j + 1. So
    *channels* of the deep layer are merged, not only positions.

    Returns:
        float32 tensor (B, 1024, H, W), equal to the general path within rounding, with a ninth of its memory.
    """
    shallow, deep = features
    channels = shallow.shape[1]
    kernel = shallow.new_full((3, 3), 0.1)
    kernel[1, 1] = 0.2
    shallow = F.conv2d(shallow, kernel.expand(channels, 1, 3, 3), padding=1, groups=channels)  # (B, 512, H, W)
    deep = F.avg_pool2d(deep, 3, 1, 1)  # padding counted
    deep = deep.unflatten(1, (-1, 2)).mean(dim=2)  # (B, 512, H/2, W/2): merging channels first halves the upsampling
    return torch.cat([shallow, align(deep, shallow.shape[-2:])], dim=1)


def to_rows(grid: torch.Tensor) -> torch.Tensor:
    """(B, D, H, W) -> (B H W, D): one row per patch, image by image, row by row."""
    return grid.permute(0, 2, 3, 1).reshape(-1, grid.shape[1])


def to_grid(rows: torch.Tensor, shape: tuple[int, int]) -> torch.Tensor:
    """(B H W,) patch scores -> (B, H, W) for a patch grid of `shape` = (H, W)."""
    return rows.reshape(-1, *shape)
