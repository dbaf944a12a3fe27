"""Features of a frozen backbone, computed once and kept in bounded memory; and what memory a process took."""

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

from adlib.errors import InputError
from adlib.images.files import Resize, batches, to_tensor

STATUS = Path("/proc/self/status")  # Linux only
MAX_MEMORY = 8.0  # GiB of features of one kind; larger ones lie in a memory-mapped temporary file


def peak_memory_mib() -> float:
    """Return the largest resident memory of this process so far, in MiB.

    On Linux this is `VmHWM`: `ru_maxrss` also counts what the parent held when it started this process.
    """
    if STATUS.is_file():
        for line in STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10  # kB
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error says that memory, of the processor or of a GPU, ran out."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    words = str(error).lower()
    return isinstance(error, RuntimeError) and ("out of memory" in words or "can't allocate memory" in words)


def allocate(shape) -> np.ndarray:
    """Allocate float32 of `shape`; above `MAX_MEMORY` as a memory-mapped file that goes with its last user."""
    if 4 * np.prod(shape, dtype=np.int64) <= MAX_MEMORY * 2**30:
        return np.empty(shape, dtype=np.float32)
    return np.memmap(tempfile.TemporaryFile(), dtype=np.float32, shape=tuple(shape), mode="w+")


def resize_of(settings) -> Resize:
    """The geometry of the input that a method's settings ask for."""
    size = settings.image_size if isinstance(settings.image_size, int) else tuple(settings.image_size)
    way = getattr(settings, "interpolation", "area")
    if isinstance(settings.resize, int):
        return Resize(size, "short_side", settings.resize, way, settings.bit_depth)
    return Resize(size, settings.resize, None, way, settings.bit_depth)


def check_finite(features, owner) -> None:
    """Refuse features (tensor or array) that are NaN or infinite: broken weights, or an image that is no picture."""
    if not bool(torch.isfinite(torch.as_tensor(features)).all()):
        raise InputError(f"features of {owner} are not finite (NaN); check the weights of the backbone and the image")


def frozen_features(image_paths, resize: Resize, embed, batch_size: int = 8, images: bool = False):
    """Embed every image once: a frozen backbone gives the same features in every epoch.

    Args:
        image_paths: N image files.
        embed: images (B, 3, H, W) in [0, 1] -> features (B, C, h, w).
        images: also return the images themselves.

    Returns:
        features float32 (N, h, w, C), and images uint8 (N, H, W, 3) or None. Of no image: (0, 0, 0, 0).

    Raises:
        InputError: features are NaN or infinite: broken weights, or an image that is no picture.
    """
    features = np.empty((0, 0, 0, 0), np.float32)
    pictures = np.empty((len(image_paths), *resize.hw, 3), np.uint8) if images else None
    start = 0
    for batch in batches(image_paths, resize, batch_size, progress="features"):
        block = embed(batch.images).permute(0, 2, 3, 1).cpu().numpy()  # (B, h, w, C)
        check_finite(block, f"{batch.paths[0]} and its batch")
        if not len(features):
            features = allocate((len(image_paths), *block.shape[1:]))
        rows = slice(start, start + len(block))
        features[rows] = block
        if images:
            pictures[rows] = (batch.images * 255).round().byte().permute(0, 2, 3, 1).numpy()
        start += len(block)
    return features, pictures


def picture_features(images: np.ndarray, embed, batch_size: int) -> np.ndarray:
    """Embed images uint8 (N, H, W, 3) that are no files -> float32 (N, h, w, C); `embed` as above."""
    parts = [embed(to_tensor(images[i : i + batch_size])) for i in range(0, len(images), batch_size)]
    return torch.cat(parts).permute(0, 2, 3, 1).cpu().numpy()


def channel_statistics(blocks) -> tuple[np.ndarray, np.ndarray]:
    """Return mean and standard deviation (C,) of every channel over all images and positions, summed in float64.

    Args:
        blocks: arrays (..., C); all but the last axis are averaged over.

    A channel that never varies has no scale of its own; its standard deviation is set to 1, so that it becomes 0
    after standardisation instead of NaN.
    """
    count, total, squares = 0, 0.0, 0.0
    for block in blocks:
        rows = np.asarray(block, dtype=np.float64).reshape(-1, block.shape[-1])
        count, total, squares = count + len(rows), total + rows.sum(axis=0), squares + (rows**2).sum(axis=0)
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    std[std <= 1e-6 * np.maximum(np.abs(mean), 1e-6)] = 1.0
    return mean.astype(np.float32), std.astype(np.float32)


def channels_first(array: np.ndarray, device) -> torch.Tensor:
    """(B, h, w, C) -> tensor (B, C, h, w) of the same type, the same bytes in channels-last order."""
    return torch.from_numpy(np.ascontiguousarray(array)).to(device).permute(0, 3, 1, 2)
