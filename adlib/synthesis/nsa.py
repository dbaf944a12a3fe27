"""Natural synthetic anomalies (Schlueter et al., ECCV 2022): a patch of another normal image, blended without a seam.

Poisson blending carries the gradients of the patch into the host: no edge gives the defect away, and its colours are
those of the product. AnomalyGPT trains on a variant.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy import ndimage

from adlib.errors import InputError, suggest
from adlib.settings import choice
from adlib.synthesis.draws import overlap, pixel
from adlib.synthesis.foregrounds import Rule
from adlib.synthesis.foregrounds import foreground as product_mask
from adlib.synthesis.registry import register

MODES = ("normal", "mixed", "swap")
SMALLEST = 50  # pixels; seamlessClone fails on smaller masks


@dataclass(frozen=True)
class NsaClass:
    """What NSA sets for each category of MVTec AD.

    Attributes:
        bounds: smallest and largest half-size of a patch, ((rows), (columns)), as shares of the image.
        patches: most patches an image; the first is always there, each further one with probability 0.5.
        scale: bounds of the factor by which a patch is resized.
        mode: Poisson mode, "normal" (gradients of the patch; objects) or "mixed" (stronger ones of both; textures).
        logistic: (k, x0) of the soft label 1 / (1 + exp(-k (change - x0))), change in grey levels.
        background: (grey level, tolerance) of the plain background, None where there is none.
    """

    bounds: tuple = ((0.03, 0.4), (0.03, 0.4))
    patches: int = 3
    scale: tuple = (0.7, 1.3)
    mode: str = "normal"
    logistic: tuple = (1 / 6, 15)
    background: tuple | None = None


OBJECT = NsaClass()
TEXTURE = NsaClass(patches=4, scale=(0.5, 2.0), mode="mixed", logistic=(1 / 3, 7))
_WIDE, _MIDDLE, _NARROW = (0.03, 0.4), (0.03, 0.2), (0.03, 0.15)
CLASSES = {
    "bottle": replace(OBJECT, logistic=(1 / 12, 24), background=(200, 60)),
    "cable": replace(OBJECT, bounds=((0.05, 0.4), (0.05, 0.4)), logistic=(1 / 12, 24)),
    "capsule": replace(OBJECT, bounds=(_NARROW, _WIDE), logistic=(1 / 2, 4), background=(200, 60)),
    "hazelnut": replace(OBJECT, bounds=((0.03, 0.35), (0.03, 0.35)), logistic=(1 / 12, 24), background=(20, 20)),
    "metal_nut": replace(OBJECT, logistic=(1 / 3, 7), background=(20, 20)),
    "pill": replace(OBJECT, bounds=(_MIDDLE, _WIDE), logistic=(1 / 3, 7), background=(20, 20)),
    "screw": replace(OBJECT, bounds=((0.03, 0.12), (0.03, 0.12)), patches=4, logistic=(1, 3), background=(200, 60)),
    "toothbrush": replace(OBJECT, bounds=(_WIDE, _MIDDLE), background=(20, 20)),
    "transistor": OBJECT,
    "zipper": replace(OBJECT, bounds=(_WIDE, _MIDDLE), patches=4, background=(200, 60)),
    "carpet": TEXTURE,
    "grid": TEXTURE,
    "leather": TEXTURE,
    "tile": TEXTURE,
    "wood": replace(TEXTURE, logistic=(1 / 6, 15)),
}


@register("nsa")
def nsa(
    image, rng, foreground, sources, category="", bounds=None, patches=None, scale=None, mode=None, logistic=None,
    background=None, ellipses=0, min_object=0.25, min_overlap=0.25, tolerance=1.0, soft_label=False, tries=200,
):  # fmt: skip
    """NSA: patches of another normal image (`sources.normals`, or the image itself), resized, shifted, blended.

    Args:
        category: a key of `CLASSES` sets the five parameters below; "" takes `OBJECT` where a foreground that is
            smaller than the image is given, else `TEXTURE`.
        bounds, patches, scale, mode, logistic, background: as in `NsaClass`, to change one of them. `mode` may also
            be "swap": pasted hard.
        ellipses: 0 for rectangles, n for the union of n random ellipses inside each rectangle.
        min_object: smallest share of product pixels in a patch; product pixels of the source are those off its plain
            `background`, or the host's foreground where no background is known.
        min_overlap: smallest share of the patch's product that must land on the host's product.
        tolerance: a pixel belongs to the mask where it changed by more than this many grey levels (mean over the
            channels), after a median filter of 5x5.
        soft_label: put the paper's soft label into info["soft_label"], float32 (H, W).
        tries: patches drawn before giving up; then the image stays as it is, the mask is empty, and
            info["fallback"] says so.
    """
    given = {"bounds": bounds, "patches": patches, "scale": scale, "mode": mode, "logistic": logistic,
             "background": background}  # fmt: skip
    settings = replace(_class(category, foreground), **{k: v for k, v in given.items() if v is not None})
    choice("NSA mode", settings.mode, MODES)
    host = np.rint(image * 255).astype(np.uint8)
    source, info = sources.normal(foreground.shape, rng)
    other = source is not None
    source = source if other else host
    product = source_product = foreground
    if settings.background is not None:
        rule = Rule("background", level=settings.background[0], tolerance=settings.background[1])
        product = product_mask(host, rule)
        source_product = product_mask(source, rule) if other else product

    number = 1 + int((rng.random(max(0, settings.patches - 1)) < 0.5).sum())
    result, region, drawn = host, np.zeros(foreground.shape, bool), []
    tried = 0
    while len(drawn) < number and tried < tries:
        tried += 1
        patch = _draw_patch(source, source_product, product, rng, settings, ellipses, min_object, min_overlap)
        if patch is None:
            continue
        pixels, patch_mask, corner, values = patch
        blended = paste(result, pixels, patch_mask, corner, settings.mode)
        if blended is None:
            continue
        reached = region.copy()
        inside, of_patch = overlap(*corner, patch_mask.shape, region.shape)
        reached[inside] |= patch_mask[of_patch]
        if (changed_mask(result, blended, reached, tolerance) & foreground).any():
            result, region = blended, reached
            drawn.append(values)
    mask = changed_mask(host, result, region, tolerance) & foreground
    info |= {"category": category, "mode": settings.mode, "patches": drawn, "tries": tried}
    if not mask.any():
        info["fallback"] = f"no patch changed the product in {tried} tries: the image stays as it is"
    if soft_label:
        info["soft_label"] = logistic_label(host, result, mask, *settings.logistic)
    return result.astype(np.float32) / np.float32(255), mask, info


@register("anomalygpt_nsa")
def anomalygpt_nsa(image, rng, foreground, sources, category="", patches=2, mode="normal", tries=200):
    """AnomalyGPT's variant of NSA (Gu et al., AAAI 2024): up to two patches, background allowed, normal blending.

    info["positions"] names the place of each patch on a 3x3 grid in words, for answers in text.
    """
    result, mask, info = nsa(
        image, rng, foreground, sources, category, patches=patches, mode=mode, min_object=0.0, tries=tries
    )
    info["positions"] = [position_in_words(patch["center"], foreground.shape) for patch in info["patches"]]
    return result, mask, info


def position_in_words(center: tuple[int, int], shape: tuple[int, int]) -> str:
    """Name the cell of a 3x3 grid that holds a pixel.

    >>> position_in_words((10, 10), (90, 90)), position_in_words((45, 45), (90, 90))
    ('top left', 'center')
    """
    row = ("top", "center", "bottom")[min(2, 3 * center[0] // shape[0])]
    column = ("left", "center", "right")[min(2, 3 * center[1] // shape[1])]
    words = [word for word in (row, column) if word != "center"]
    return " ".join(words) or "center"


def _class(category: str, foreground: np.ndarray) -> NsaClass:
    if not category:
        return TEXTURE if foreground.all() else OBJECT
    if category not in CLASSES:
        raise InputError(
            f"category {category!r} is unknown to NSA{suggest(category, CLASSES)}; "
            f"choose one of {', '.join(CLASSES)}, or '' and set the parameters yourself"
        )
    return CLASSES[category]


def _draw_patch(source, source_product, product, rng, settings, ellipses, min_object, min_overlap):
    """Draw a patch of the source and its place on the host; None when it shows too little of the product."""
    shape = product.shape
    half = [
        np.clip(0.03 + rng.gamma(2, 0.05), low, high) * side
        for (low, high), side in zip(settings.bounds, shape, strict=True)
    ]
    center = [int(rng.integers(side)) for side in shape]
    box = tuple(
        slice(max(0, c - max(1, round(h))), min(side, c + max(1, round(h))))
        for c, h, side in zip(center, half, shape, strict=True)
    )
    pixels, patch_product = source[box], source_product[box]
    patch_mask = _ellipses(pixels.shape[:2], ellipses, rng) if ellipses else np.ones(pixels.shape[:2], bool)
    if (patch_mask & patch_product).sum() <= min_object * patch_mask.sum():
        return None

    factor = float(np.clip(rng.normal(1, 0.5), *settings.scale))
    size = [max(1, min(round(side * factor), limit)) for side, limit in zip(patch_mask.shape, shape, strict=True)]
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    patch_mask, patch_product = (
        cv2.resize(m.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
        for m in (patch_mask, patch_product)
    )
    row, column = pixel(product, rng)
    # Kept whole inside the image: seamlessClone refuses a patch that reaches over the edge.
    corner = tuple(
        int(np.clip(c - length // 2, 0, side - length))
        for c, length, side in zip((row, column), size, shape, strict=True)
    )
    inside, _ = overlap(*corner, size, shape)
    both = patch_mask & patch_product
    if min_object and (both & product[inside]).sum() <= min_overlap * both.sum():
        return None
    if min_object:  # background over background is no anomaly
        patch_mask = patch_mask & (patch_product | product[inside])
    center = (corner[0] + size[0] // 2, corner[1] + size[1] // 2)
    return pixels, patch_mask, corner, {"center": center, "size": tuple(size), "scale": factor}


def _ellipses(shape, number: int, rng) -> np.ndarray:
    mask = np.zeros(shape, np.uint8)
    for _ in range(number):
        center = tuple(int(rng.integers(side)) for side in shape[::-1])
        axes = tuple(max(1, int(side * rng.uniform(0.15, 0.5))) for side in shape[::-1])
        cv2.ellipse(mask, center, axes, float(rng.uniform(0, 180)), 0, 360, 1, cv2.FILLED)
    return mask > 0


def paste(host: np.ndarray, patch: np.ndarray, mask: np.ndarray, corner: tuple[int, int], mode: str):
    """Paste a patch (h, w, 3) whose top left corner lands at `corner` = (row, column) of the host; None if impossible.

    Poisson modes use OpenCV's seamlessClone, which needs 50 pixels and a mask that does not touch the patch's edge.

    Args:
        host, patch: uint8; mask: bool (h, w); the patch must lie inside the host.
    """
    inside, _ = overlap(*corner, mask.shape, host.shape)
    if mode == "swap":
        result = host.copy()
        result[inside][mask] = patch[mask]
        return result
    mask = np.pad(mask[1:-1, 1:-1], 1).astype(np.uint8) * 255  # also a copy, which seamlessClone may change
    if np.count_nonzero(mask) < SMALLEST:
        return None
    # seamlessClone puts the centre of the mask's bounding box, not of the patch, at the given point.
    left, top, width, height = cv2.boundingRect(mask)
    center = (corner[1] + left + width // 2, corner[0] + top + height // 2)
    return poisson_clone(host, patch, mask, center, mode)


def poisson_clone(host: np.ndarray, patch: np.ndarray, mask: np.ndarray, center: tuple[int, int], mode: str):
    """OpenCV's seamlessClone, or None where it refuses the patch.

    Args:
        host, patch: uint8 (H, W, 3) and (h, w, 3); mask: uint8 (h, w), 255 inside; center: (x, y) in the host.
        mode: "normal" or "mixed".
    """
    flag = {"normal": cv2.NORMAL_CLONE, "mixed": cv2.MIXED_CLONE}[mode]
    try:
        return cv2.seamlessClone(np.ascontiguousarray(patch), host, mask.copy(), center, flag)
    except cv2.error:
        return None


def change(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Mean absolute difference over the channels in grey levels, float64 (H, W)."""
    return np.abs(before.astype(np.int16) - after.astype(np.int16)).mean(axis=2)


def changed_mask(before: np.ndarray, after: np.ndarray, region: np.ndarray, tolerance: float = 1.0) -> np.ndarray:
    """Pixels of the region that changed by more than `tolerance` grey levels, after a 5x5 median: bool (H, W)."""
    changed = (change(before, after) > tolerance) & region
    return cv2.medianBlur(changed.astype(np.uint8), 5) > 0


def intensity_label(before: np.ndarray, after: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Change inside the mask in grey levels, smoothed by a median over a disc of radius 5: float64 (H, W).

    The median may carry a value a few pixels beyond the mask.
    """
    label = np.zeros(mask.shape)
    if mask.any():
        y, x = np.indices((11, 11)) - 5
        rows, columns = (np.flatnonzero(mask.any(axis=k)) for k in (1, 0))
        # Only the box around the mask, with the filter's radius: a large footprint is slow.
        box = tuple(slice(max(0, f[0] - 5), f[-1] + 6) for f in (rows, columns))
        inside = change(before, after)[box] * mask[box]
        label[box] = ndimage.median_filter(inside, footprint=y**2 + x**2 <= 25, mode="nearest")
    return label


def logistic_label(before: np.ndarray, after: np.ndarray, mask: np.ndarray, k: float, x0: float) -> np.ndarray:
    """NSA's soft label: 1 / (1 + exp(-k (change - x0))) inside the mask, 0 outside; float32 (H, W)."""
    return (mask / (1 + np.exp(-k * (intensity_label(before, after, mask) - x0)))).astype(np.float32)
