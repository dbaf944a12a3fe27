"""Small draws that several families share: a value from a range, a pixel from a mask, where a patch lands."""

import numpy as np

from adlib.errors import InputError


def uniform(name: str, value, rng: np.random.Generator, low: float, high: float) -> float:
    """Return `value` if it is a number, or a draw from U(value) if it is a pair; both must lie in [low, high]."""
    pair = (value, value) if np.isscalar(value) and not isinstance(value, str) else value
    try:
        first, last = (float(v) for v in pair)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a number or a pair (lowest, highest), got {value!r}") from None
    if not low <= first <= last <= high:
        raise InputError(f"{name} {value!r} must lie between {low:g} and {high:g}, the lower value first")
    return first if first == last else float(rng.uniform(first, last))


def pixel(mask: np.ndarray, rng: np.random.Generator) -> tuple[int, int]:
    """Draw a true pixel of a mask, (row, column), all equally likely."""
    inside = np.flatnonzero(mask)
    row, column = divmod(int(inside[rng.integers(inside.size)]), mask.shape[1])
    return row, column


def overlap(top: int, left: int, patch_shape, shape):
    """Where a patch whose corner lies at (top, left) meets an image.

    Returns:
        a pair of slices into the image and the matching pair into the patch; both empty when they do not meet.
    """
    inside, of_patch = [], []
    for start, length, limit in zip((top, left), patch_shape[:2], shape[:2], strict=True):
        first, last = max(start, 0), min(start + length, limit)
        inside.append(slice(first, max(first, last)))
        of_patch.append(slice(first - start, max(first, last) - start))
    return tuple(inside), tuple(of_patch)
