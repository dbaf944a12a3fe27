"""Natural synthetic anomalies (Schlueter et al., ECCV 2022): a patch of another normal image, blended without a seam.

Poisson blending carries the gradients of the patch into the host: no edge gives the defect away, and its colours are
those of the product. AnomalyGPT trains on a variant.
"""

from dataclasses import dataclass, replace

import cv2
import numpy as np

from adlib.errors import InputError, suggest
from adlib.settings import choice
from adlib.synthesis.draws import overlap, pixel
from adlib.synthesis.foregrounds import Rule
from adlib.synthesis.foregrounds import foreground as product_mask
from adlib.synthesis.registry import register

MODES = ("normal", "mixed", "swap")
SMALLEST = 50  # pixels; seamlessClone fails on smaller masks
MIN_OVERLAP = 0.25  # smallest share of a patch's product that must land on the host's product


@dataclass(frozen=True)
class NsaClass:
    """What NSA sets for each category of MVTec AD.

    Attributes:
        bounds: smallest and largest half-size of a patch, ((rows), (columns)), as shares of the image.
        patches: most patches per image; the first is always there, each further one with probability 0.5.
        scale: bounds of the factor by which a patch is resized.
        mode: Poisson mode, "normal" (gradients of the patch; objects) or "mixed" (stronger ones of both; textures).
        background: (grey level, tolerance) of the plain background, None where there is none.
    """

    bounds: tuple = ((0.03, 0.4), (0.03, 0.4))
    patches: int = 3
    scale: tuple = (0.7, 1.3)
    mode: str = "normal"
    background: tuple | None = None


OBJECT = NsaClass()
TEXTURE = NsaClass(patches=4, scale=(0.5, 2.0), mode="mixed")
_WIDE, _MIDDLE, _NARROW = (0.03, 0.4), (0.03, 0.2), (0.03, 0.15)
CLASSES = {
    "bottle": replace(OBJECT, background=(200, 60)),
    "cable": replace(OBJECT, bounds=((0.05, 0.4), (0.05, 0.4))),
    "capsule": replace(OBJECT, bounds=(_NARROW, _WIDE), background=(200, 60)),
    "hazelnut": replace(OBJECT, bounds=((0.03, 0.35), (0.03, 0.35)), background=(20, 20)),
    "metal_nut": replace(OBJECT, background=(20, 20)),
    "pill": replace(OBJECT, bounds=(_MIDDLE, _WIDE), background=(20, 20)),
    "screw": replace(OBJECT, bounds=((0.03, 0.12), (0.03, 0.12)), patches=4, background=(200, 60)),
    "toothbrush": replace(OBJECT, bounds=(_WIDE, _MIDDLE), background=(20, 20)),
    "transistor": OBJECT,
    "zipper": replace(OBJECT, bounds=(_WIDE, _MIDDLE), patches=4, background=(200, 60)),
    **dict.fromkeys(("carpet", "grid", "leather", "tile", "wood"), TEXTURE),
}


@register("nsa")
def nsa(image, rng, foreground, sources, category="", patches=None, mode=None, min_object=0.25, tries=200):
    """NSA: patches of another normal image (`sources.normals`, or the image itself), resized, shifted, blended.

    A pixel belongs to the mask where it changed by more than a grey level (mean over the channels), after a median
    filter of 5x5.

    Args:
        category: a key of `CLASSES`; "" takes `OBJECT` where a foreground that is smaller than the image is given, else
            `TEXTURE`.
        patches, mode: as in `NsaClass`, to change one of them. `mode` may also be "swap": pasted hard.
        min_object: smallest share of product pixels in a patch; product pixels of the source are those off its plain
            `background`, or the host's foreground where no background is known.
        tries: patches drawn before giving up; then the image stays as it is, the mask is empty, and
            info["fallback"] says so.
    """
    settings = _class(category, foreground)
    settings = replace(settings, patches=patches or settings.patches, mode=mode or settings.mode)
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
    result, region, draws = host, np.zeros(foreground.shape, bool), []
    tried = 0
    while len(draws) < number and tried < tries:
        tried += 1
        patch = _draw_patch(source, source_product, product, rng, settings, min_object)
        if patch is None:
            continue
        pixels, patch_mask, corner, values = patch
        blended = paste(result, pixels, patch_mask, corner, settings.mode)
        if blended is None:
            continue
        reached = region.copy()
        inside, of_patch = overlap(*corner, patch_mask.shape, region.shape)
        reached[inside] |= patch_mask[of_patch]
        if (changed_mask(result, blended, reached) & foreground).any():
            result, region = blended, reached
            draws.append(values)
    mask = changed_mask(host, result, region) & foreground
    info |= {"category": category, "mode": settings.mode, "patches": draws, "tries": tried}
    if not mask.any():
        info["fallback"] = f"no patch changed the product in {tried} tries: the image stays as it is"
    return result.astype(np.float32) / np.float32(255), mask, info


@register("anomalygpt_nsa")
def anomalygpt_nsa(image, rng, foreground, sources, category="", patches=2, mode="normal", tries=200):
    """AnomalyGPT's variant of NSA (Gu et al., AAAI 2024): up to two patches, background allowed, normal blending."""
    return nsa(image, rng, foreground, sources, category, patches, mode, 0.0, tries)


def _class(category: str, foreground: np.ndarray) -> NsaClass:
    if not category:
        return TEXTURE if foreground.all() else OBJECT
    if category not in CLASSES:
        raise InputError(
            f"category {category!r} is unknown to NSA{suggest(category, CLASSES)}; "
            f"choose one of {', '.join(CLASSES)}, or '' and set the parameters yourself"
        )
    return CLASSES[category]


def _draw_patch(source, source_product, product, rng, settings, min_object):
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
    if patch_product.sum() <= min_object * patch_product.size:
        return None

    factor = float(np.clip(rng.normal(1, 0.5), *settings.scale))
    size = [max(1, min(round(side * factor), limit)) for side, limit in zip(patch_product.shape, shape, strict=True)]
    pixels = cv2.resize(pixels, size[::-1], interpolation=cv2.INTER_LINEAR)
    patch_product = cv2.resize(patch_product.astype(np.uint8), size[::-1], interpolation=cv2.INTER_NEAREST) > 0
    row, column = pixel(product, rng)
    # Kept whole inside the image: seamlessClone refuses a patch that reaches over the edge.
    corner = tuple(
        int(np.clip(c - length // 2, 0, side - length))
        for c, length, side in zip((row, column), size, shape, strict=True)
    )
    inside, _ = overlap(*corner, size, shape)
    if min_object and (patch_product & product[inside]).sum() <= MIN_OVERLAP * patch_product.sum():
        return None
    # Background over background is no anomaly.
    patch_mask = patch_product | product[inside] if min_object else np.ones(size, bool)
    center = (corner[0] + size[0] // 2, corner[1] + size[1] // 2)
    return pixels, patch_mask, corner, {"center": center, "size": tuple(size), "scale": factor}


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
