"""Families that blend a texture or another image into a random region: DRAEM, GLASS, MemSeg, RealNet, splice.

How many samples of a training run are anomalous is the caller's choice (half in DRAEM, MemSeg and RealNet, all in
GLASS); a call here always makes an anomaly.
"""

import cv2
import numpy as np

from adlib.errors import InputError
from adlib.settings import choice
from adlib.synthesis.draws import pixel, uniform
from adlib.synthesis.perlin import TRIES, combine, perlin_mask
from adlib.synthesis.registry import register
from adlib.synthesis.textures import DRAEM_AUGMENTATIONS, GLASS_AUGMENTATIONS, augment


def blend(image: np.ndarray, foreign: np.ndarray, mask: np.ndarray, opacity: float) -> np.ndarray:
    """Mix foreign material into an image: (1 - opacity) image + opacity foreign inside the mask, image outside.

    Args:
        image, foreign: float (H, W, 3) in the same range of values.
        mask: bool (H, W).
        opacity: share of the foreign material; beta of DRAEM and GLASS is 1 - opacity.
    """
    result = image.copy()
    result[mask] = (1 - opacity) * image[mask] + opacity * foreign[mask]
    return result


def as_float(image: np.ndarray) -> np.ndarray:
    """uint8 to float32 in [0, 1]."""
    return image.astype(np.float32) / np.float32(255)


def _blend_texture(image, rng, sources, mask, info, opacity, augmentations, fit="stretch"):
    texture, source = sources.texture(mask.shape, rng, fit)
    texture, draws = augment(texture, rng, augmentations)
    info = info | source | {"augmentations": draws, "opacity": opacity}
    return blend(image, as_float(texture), mask, opacity), mask, info


@register("realnet_dtd")
@register("perlin_dtd")
def perlin_dtd(
    image, rng, foreground, sources, opacity=(0.2, 1.0), exponents=(0, 5), threshold=0.5, area=(0.01, 0.10),
    backend="lattice", octaves=1,
):  # fmt: skip
    """DRAEM (Zavrtanik et al., ICCV 2021): an augmented texture behind a Perlin mask, beta ~ U(0, 0.8).

    DRAEM also rotates the normal image now and then; that is an augmentation of the host and left to the caller. The
    texture variant of RealNet (Zhang et al., CVPR 2024) is the same, meant with a foreground (see `foreground`).
    """
    mask, info = perlin_mask(foreground.shape, rng, foreground, exponents, threshold, area, backend, octaves)
    opacity = uniform("opacity", opacity, rng, 0, 1)
    return _blend_texture(image, rng, sources, mask, info, opacity, DRAEM_AUGMENTATIONS)


@register("glass_las")
def glass_las(
    image, rng, foreground, sources, opacity=None, exponents=(0, 5), threshold=0.5, area=(0.01, 0.10),
    backend="lattice", octaves=1,
):  # fmt: skip
    """GLASS's local anomaly synthesis (Chen et al., ECCV 2024): one or two Perlin masks, a texture.

    Two masks are united, intersected or the first used alone, a third each. `opacity` None draws the paper's beta ~
    N(0.5, 0.1^2) clipped to [0.2, 0.8]; a number fixes it. The mask of feature cells is `perlin.cell_mask(mask)`.
    """
    mask, info = dual_mask(foreground.shape, rng, foreground, exponents, threshold, area, backend, octaves)
    if opacity is None:
        beta = float(np.clip(rng.normal(0.5, 0.1), 0.2, 0.8))
        opacity = 1 - beta
    else:
        opacity = uniform("opacity", opacity, rng, 0, 1)
    return _blend_texture(image, rng, sources, mask, info, opacity, GLASS_AUGMENTATIONS, fit="crop")


def dual_mask(shape, rng, foreground, exponents, threshold, area, backend, octaves) -> tuple[np.ndarray, dict]:
    """GLASS's mask: union, intersection or the first of two Perlin masks, inside the foreground, never empty.

    Either mask is drawn until it is not empty, where the original draws the pair until its combination is not.
    """
    for tries in range(1, TRIES + 1):
        pair = [perlin_mask(shape, rng, None, exponents, threshold, area, backend, octaves) for _ in range(2)]
        mask, how = combine(pair[0][0], pair[1][0], rng.random())
        mask = mask & foreground
        if mask.any():
            return mask, {"masks": [draws for _, draws in pair], "combination": how, "tries": tries}
    mask, draws = perlin_mask(shape, rng, foreground, exponents, None, area, backend, octaves)
    how = f"no pixel in {TRIES} combined masks: one mask by area instead"
    return mask, {"masks": [draws], "combination": "first", "tries": TRIES, "fallback": how}


@register("memseg")
def memseg(
    image, rng, foreground, sources, opacity=(0.15, 1.0), structure=0.5, grid=8, exponents=(0, 5), threshold=0.5,
    area=(0.01, 0.10), backend="lattice", octaves=1,
):  # fmt: skip
    """MemSeg (Yang et al., 2023): a texture as it is, or with probability `structure` the host itself, shuffled.

    The shuffled host has three augmentations and then its grid x grid tiles in random order: the right colours at the
    wrong place.
    """
    mask, info = perlin_mask(foreground.shape, rng, foreground, exponents, threshold, area, backend, octaves)
    opacity = uniform("opacity", opacity, rng, 0, 1)
    if rng.random() < structure:
        foreign, draws = augment(np.rint(image * 255).astype(np.uint8), rng)
        foreign = shuffle_tiles(foreign, grid, rng)
        info |= {"source": "same image, shuffled", "augmentations": draws}
    else:
        foreign, source = sources.texture(mask.shape, rng)
        info |= source
    return blend(image, as_float(foreign), mask, opacity), mask, info | {"opacity": opacity}


def shuffle_tiles(image: np.ndarray, grid: int, rng: np.random.Generator) -> np.ndarray:
    """Cut an image into grid x grid tiles and put them back in random order (the border is mirrored to fit)."""
    height, width = image.shape[:2]
    rows, columns = -(-height // grid), -(-width // grid)
    padded = cv2.copyMakeBorder(image, 0, rows * grid - height, 0, columns * grid - width, cv2.BORDER_REFLECT)
    tiles = padded.reshape(grid, rows, grid, columns, 3).swapaxes(1, 2).reshape(grid * grid, rows, columns, 3)
    tiles = rng.permutation(tiles).reshape(grid, grid, rows, columns, 3).swapaxes(1, 2)
    return np.ascontiguousarray(tiles.reshape(rows * grid, columns * grid, 3)[:height, :width])


@register("splice")
def splice(
    image, rng, foreground, sources, shape="perlin", area=(0.01, 0.10), exponents=(0, 5), jpeg_quality=None,
    backend="lattice", octaves=1,
):  # fmt: skip
    """A hard cut-out of another image, at the same place: what forgery detectors such as FOCAL look for.

    The other image is drawn from `sources.normals`, or is a texture where there are none. `shape` is "perlin" or
    "polygon"; `area` is the share of the foreground, of the image for a polygon. `jpeg_quality` (1 to 100) saves the
    foreign part as JPEG once more, the trace that such detectors are sensitive to. FOCAL itself trains on forgery
    data sets; this is our stand-in.
    """
    choice("splice shape", shape, ("perlin", "polygon"))
    if shape == "polygon":
        mask, info = polygon_mask(foreground, rng, area)
    else:
        mask, info = perlin_mask(foreground.shape, rng, foreground, exponents, None, area, backend, octaves)
    foreign, source = sources.normal(foreground.shape, rng)
    if foreign is None:
        foreign, source = sources.texture(foreground.shape, rng)
    if jpeg_quality is not None:
        if not 1 <= jpeg_quality <= 100:
            raise InputError(f"jpeg_quality {jpeg_quality!r} must be 1 to 100, or None")
        code = cv2.imencode(".jpg", foreign[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, int(jpeg_quality)])[1]
        foreign = cv2.imdecode(code, cv2.IMREAD_COLOR)[..., ::-1]
    return blend(image, as_float(foreign), mask, 1.0), mask, info | source | {"opacity": 1.0}


def polygon_mask(foreground: np.ndarray, rng: np.random.Generator, area) -> tuple[np.ndarray, dict]:
    """A random star-shaped polygon around a pixel of the foreground, about `area` (share of the image) large."""
    share = uniform("area", area, rng, 0, 1)
    row, column = pixel(foreground, rng)
    corners = int(rng.integers(5, 12))
    angles = (np.arange(corners) + rng.uniform(0.2, 0.8, corners)) * (2 * np.pi / corners)
    radii = rng.uniform(0.6, 1.4, corners) * np.sqrt(share * foreground.size / np.pi)
    points = np.stack([column + radii * np.cos(angles), row + radii * np.sin(angles)], axis=1)
    mask = cv2.fillPoly(np.zeros(foreground.shape, np.uint8), [np.rint(points).astype(np.int32)], 1) > 0
    mask[row, column] = True
    return mask & foreground, {"center": (row, column), "corners": corners, "area": share}
