"""Perlin noise and the blob masks that are cut from it.

Two backends make the same kind of field. `lattice` draws a fresh lattice of gradients for every field; `pnoise2` of
the `noise` package walks through one fixed, endless field, so a new mask is a new place in it.
"""

import cv2
import numpy as np

from adlib.errors import InputError
from adlib.settings import choice

BACKENDS = ("lattice", "pnoise2")
TRIES = 10
ROTATION = 90.0  # a mask is turned by U(-90, 90) degrees


def lattice_noise(shape, cells, angles) -> np.ndarray:
    """Perlin noise from a lattice of unit gradients (the form that DRAEM and GLASS use).

    Each pixel mixes, over the four lattice points around it, the dot product of their gradient with the offset to
    the pixel; the weight is the quintic fade 6t^5 - 15t^4 + 10t^3. Columns are mixed first, on the few lattice rows,
    and whole rows after that, so no pixel is visited one by one; any size goes with any number of cells.

    Args:
        shape: (H, W) in pixels.
        cells: lattice cells along rows and columns; H and W need not be multiples of them.
        angles: (cells[0] + 1, cells[1] + 1), direction of each gradient in radians; 0 points down the rows.

    Returns:
        (H, W) of the type of `angles`, about -1 to 1 with standard deviation 0.3; 0 at lattice points.
    """
    angles = np.asarray(angles)
    row, y, fade_y = _position(shape[0], cells[0], angles.dtype)  # (H,) each
    column, x, fade_x = _position(shape[1], cells[1], angles.dtype)
    down, right = np.cos(angles), np.sin(angles)  # (cells + 1, cells + 1)
    # dot product = down * offset_y + right * offset_x; mixed between the lattice points left and right of a pixel
    down = down[:, column] * (1 - fade_x) + down[:, column + 1] * fade_x  # (cells[0] + 1, W)
    right = right[:, column] * (x * (1 - fade_x)) + right[:, column + 1] * ((x - 1) * fade_x)
    y, fade_y = y[:, None], fade_y[:, None]
    above = down[row] * y + right[row]  # (H, W)
    below = down[row + 1] * (y - 1) + right[row + 1]
    return (above + fade_y * (below - above)) * angles.dtype.type(np.sqrt(2))


def _position(n_pixels: int, cells: int, dtype) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Per pixel: the lattice line before it, the offset from that line in cells, and the fade weight of the next."""
    position = np.arange(n_pixels) * (cells / n_pixels)
    line = np.minimum(position.astype(int), cells - 1)
    t = position - line
    return line, t.astype(dtype), (t**3 * (t * (6 * t - 15) + 10)).astype(dtype)


def pnoise2_noise(shape, cells, offset, octaves: int = 1) -> np.ndarray:
    """Perlin noise of the `noise` package, one call per pixel: slow, kept for those who need that very noise.

    Args:
        shape, cells: as for `lattice_noise`.
        offset: (rows, columns) in cells, where in the endless field to look. This, not the argument `base`, is how
            one field differs from the next: `base` shifts table indices and reads past the table when large.
        octaves: layers of ever finer noise. More than one narrows the range to about -0.45 to 0.45.

    Returns:
        float32 (H, W), about -0.76 to 0.76 for one octave.
    """
    try:
        from noise import pnoise2
    except ImportError:
        raise InputError(
            "Perlin backend 'pnoise2' needs the package noise: pip install noise, or use 'lattice'"
        ) from None
    rows = (offset[0] + np.arange(shape[0]) * (cells[0] / shape[0])).tolist()
    columns = (offset[1] + np.arange(shape[1]) * (cells[1] / shape[1])).tolist()
    values = np.fromiter((pnoise2(x, y, octaves) for y in rows for x in columns), np.float32, shape[0] * shape[1])
    return values.reshape(shape)


def perlin_noise(shape, cells, rng: np.random.Generator, backend: str = "lattice", octaves: int = 1) -> np.ndarray:
    """A random field of either backend, float32 (H, W)."""
    choice("Perlin backend", backend, BACKENDS)
    if backend == "pnoise2":
        return pnoise2_noise(shape, cells, rng.uniform(0, 256, 2), octaves)
    field = np.zeros(shape, np.float32)
    amplitudes = 0.5 ** np.arange(octaves)  # persistence 0.5, lacunarity 2, as pnoise2 has them
    for k, amplitude in enumerate(amplitudes):
        finer = (cells[0] << k, cells[1] << k)
        angles = rng.uniform(0, 2 * np.pi, (finer[0] + 1, finer[1] + 1)).astype(np.float32)
        field += np.float32(amplitude / amplitudes.sum()) * lattice_noise(shape, finer, angles)
    return field


def rotate(field: np.ndarray, degrees: float, border: int = cv2.BORDER_CONSTANT) -> np.ndarray:
    """Rotate a picture about its centre (clockwise on screen), bilinear, same size, empty corners 0."""
    height, width = field.shape[:2]
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    return cv2.warpAffine(field, matrix, (width, height), flags=cv2.INTER_LINEAR, borderMode=border)


def perlin_mask(
    shape,
    rng: np.random.Generator,
    foreground=None,
    exponents: tuple[int, int] = (0, 5),
    threshold: float | None = 0.5,
    area: tuple[float, float] = (0.01, 0.10),
    backend: str = "lattice",
    octaves: int = 1,
) -> tuple[np.ndarray, dict]:
    """A random blob mask: Perlin noise, rotated, above a threshold, inside the foreground. Never empty.

    Args:
        shape: (H, W) in pixels.
        foreground: bool (H, W) or None.
        exponents: lowest and highest e of the 2^e lattice cells, drawn for each axis (0 to 5 in DRAEM and GLASS).
        threshold: fixed level of the noise (0.5 in DRAEM and GLASS: about 5 % of the image, and 3 % of all masks are
            empty at first). None takes the level that marks the share `area` of the foreground instead. Octaves and
            `pnoise2` narrow the range of the noise; with them None is the choice that works.
        area: share of the foreground drawn from U(area), for threshold None and for the fall-back.
        backend, octaves: see `perlin_noise`.

    Returns:
        bool (H, W) and the drawn parameters. When a fixed threshold finds nothing inside the foreground in 10 fields,
        an eleventh is cut by area, and info["fallback"] says so.
    """
    _check_grid(shape, exponents)
    low, high = area
    if not 0 < low <= high <= 1:
        raise InputError(f"area {area!r} must be two shares of the foreground, 0 < smallest <= largest <= 1")

    def field(border):
        cells = tuple(1 << int(e) for e in rng.integers(exponents[0], exponents[1] + 1, 2))
        degrees = float(rng.uniform(-ROTATION, ROTATION))
        noise = rotate(perlin_noise(shape, cells, rng, backend, octaves), degrees, border)
        return noise, {"cells": cells, "rotation": degrees}

    fallback = {}
    if threshold is not None:
        for tries in range(1, TRIES + 1):
            noise, info = field(cv2.BORDER_CONSTANT)
            mask = noise > threshold
            if foreground is not None:
                mask &= foreground
            if mask.any():
                return mask, info | {"tries": tries}
        fallback = {"fallback": f"no noise above {threshold} in {TRIES} fields: threshold by area instead"}
    noise, info = field(cv2.BORDER_REFLECT_101)  # constant corners would tie at the level
    share = float(rng.uniform(low, high))
    return _largest_share(noise, share, foreground), info | {"area": share} | fallback


def _largest_share(field: np.ndarray, share: float, foreground) -> np.ndarray:
    """The `share` of the foreground's pixels where the field is highest, at least one pixel."""
    inside = field.ravel() if foreground is None else field[foreground]
    count = max(1, round(share * inside.size))
    level = np.partition(inside, inside.size - count)[inside.size - count]
    mask = field >= level
    return mask if foreground is None else mask & foreground


def _check_grid(shape, exponents) -> None:
    low, high = exponents
    if not (isinstance(low, int | np.integer) and isinstance(high, int | np.integer) and 0 <= low <= high):
        raise InputError(f"exponents {exponents!r} must be two whole numbers, 0 <= lowest <= highest")
    if min(shape) < 1 << high:
        raise InputError(
            f"image of {shape[0]}x{shape[1]} pixels is smaller than the mask grid of {1 << high} cells; "
            f"use a larger image or exponents up to {max(0, int(min(shape)).bit_length() - 1)}"
        )


def combine(first: np.ndarray, second: np.ndarray, draw: float) -> tuple[np.ndarray, str]:
    """GLASS's three ways to use two masks, a third of the draws in [0, 1) each: union, intersection, first alone."""
    if draw > 2 / 3:
        return first | second, "union"
    if draw > 1 / 3:
        return first & second, "intersection"
    return first, "first"


def cell_mask(mask: np.ndarray, stride: int = 8) -> np.ndarray:
    """Mask of feature cells: true where any pixel of the cell's square is (max-pooling of stride x stride).

    Args:
        mask: bool (H, W).
        stride: pixels per cell; the last cell of a row or column may cover fewer.

    Returns:
        bool (ceil(H / stride), ceil(W / stride)).
    """
    height, width = mask.shape
    mask = np.pad(mask, ((0, -height % stride), (0, -width % stride)))
    return mask.reshape(mask.shape[0] // stride, stride, -1, stride).any(axis=(1, 3))
