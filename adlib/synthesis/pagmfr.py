"""PAGMFR's adaptive generator: foreign textures for texture categories, foreign objects for object categories.

The public description fixes the two generators and that the category decides between them. All numbers here are our
choice after their relatives (MemSeg, RealNet, CutPaste), so this is an implementation after the README, not a
reproduction.
"""

import cv2
import numpy as np

from adlib.errors import InputError
from adlib.settings import choice
from adlib.synthesis.blends import as_float, perlin_dtd
from adlib.synthesis.cutpaste import jitter_colours, turn
from adlib.synthesis.draws import overlap, pixel, uniform
from adlib.synthesis.foregrounds import auto_mask, looks_like_object
from adlib.synthesis.nsa import changed_mask, paste
from adlib.synthesis.registry import register

TRIES = 20


def judge_kind(images) -> str:
    """Judge from normal training images whether a category shows an object or a texture.

    Each image votes by its automatic foreground: an object covers part of the image and keeps away from the border
    (`foregrounds.looks_like_object`). Only training images may be given.

    Args:
        images: uint8 (H, W, 3) each; a dozen are enough.

    Returns:
        "object" where more than half of the images vote for it, else "texture".
    """
    votes = [looks_like_object(auto_mask(image)) for image in images]
    if not votes:
        raise InputError("no image to judge the kind of category from; give at least one normal training image")
    return "object" if sum(votes) * 2 > len(votes) else "texture"


# The texture strategy: a Perlin mask filled with an augmented texture. The authors' masks come from `noise`'s pnoise2
# (`backend="pnoise2"`); the lattice draws the same kind of field faster, and is what the method trains on.
pagmfr_texture = register("pagmfr_texture")(perlin_dtd)


@register("pagmfr_object")
def pagmfr_object(
    image, rng, foreground, sources, area=(0.005, 0.12), opacity=(0.4, 1.0), number=3, jitter=0.2, transfer=0.5,
    poisson=0.2, feather=(1.0, 2.0),
):  # fmt: skip
    """The object strategy: regions of external objects, scaled, turned, blended onto the product.

    Args:
        area: size of an object as a share of the foreground, drawn on a logarithmic scale.
        opacity: share of the object's pixels in the mixture.
        number: most objects; one is certain, each further one has probability 0.5.
        jitter: colour changes, as for `cutpaste`.
        transfer: probability that mean and spread of the colours are taken from the host beneath.
        poisson: probability of Poisson blending instead of mixing.
        feather: pixels over which the edge fades in.
    """
    uniform("area", area, rng, 1e-6, 1)
    bounds = np.broadcast_to(np.log(area), 2)
    result, mask, draws = image, np.zeros(foreground.shape, bool), []
    n_objects = 1
    while n_objects < number and rng.random() < 0.5:
        n_objects += 1
    for _ in range(n_objects):
        share = float(np.exp(rng.uniform(*bounds)))
        pixels, shape, info = _scaled_object(rng, sources, share * foreground.sum(), foreground.shape)
        place = _place(shape, foreground, rng)
        if place is None:
            continue
        inside, of_patch, corner, tries = place
        patch, colours = jitter_colours(as_float(pixels), rng, jitter)
        region = np.zeros(foreground.shape, bool)
        region[inside] = shape[of_patch] & foreground[inside]
        info |= {"area": share, "corner": corner, "tries": tries, "jitter": colours}
        info["transfer"] = bool(rng.random() < transfer)
        if info["transfer"]:
            patch = match_colours(patch, shape, result[region])
        info["poisson"] = bool(rng.random() < poisson)
        info["opacity"] = uniform("opacity", opacity, rng, 0, 1)
        info["feather"] = uniform("feather", feather, rng, 0, 64)
        result, changed = _mix(result, patch, shape, region, inside, of_patch, info)
        mask |= changed
        draws.append(info)
    info = {"objects": draws}
    if not mask.any():
        info["fallback"] = f"no object met the foreground in {TRIES} places each: the image stays as it is"
    return result, mask, info


@register("pagmfr")
def pagmfr(image, rng, foreground, sources, kind="auto"):
    """The adaptive choice: `pagmfr_texture` or `pagmfr_object`.

    Args:
        kind: "texture" or "object", best taken from `category_kind` or, for a category of one's own, from
            `judge_kind(training_images)`. "auto" judges this one image: an object where a foreground smaller than
            the image is given, or where the image looks like one.
    """
    choice("kind", kind, ("auto", "texture", "object"))
    if kind == "auto":
        is_object = not foreground.all() or looks_like_object(auto_mask(np.rint(image * 255).astype(np.uint8)))
        kind = "object" if is_object else "texture"
    family = pagmfr_object if kind == "object" else pagmfr_texture
    result, mask, info = family(image, rng, foreground, sources)
    return result, mask, {"kind": kind, **info}


def _scaled_object(rng, sources, area: float, limit) -> tuple[np.ndarray, np.ndarray, dict]:
    """Draw an object and bring its region to about `area` pixels at a random angle."""
    pixels, shape, info = sources.object(rng)
    factor = float(np.sqrt(area / shape.sum()))
    factor = min(factor, min(limit) / max(shape.shape))
    size = tuple(max(1, round(side * factor)) for side in shape.shape[::-1])
    way = cv2.INTER_AREA if factor < 1 else cv2.INTER_LINEAR
    pixels = cv2.resize(pixels, size, interpolation=way)
    shape = cv2.resize(shape.astype(np.float32), size, interpolation=way) >= 0.5
    degrees = float(rng.uniform(0, 360))
    pixels, shape = turn(pixels, shape, degrees)
    if not shape.any():  # a region thinner than a pixel
        shape[shape.shape[0] // 2, shape.shape[1] // 2] = True
    return pixels, shape, info | {"rotation": degrees}


def _place(shape: np.ndarray, foreground: np.ndarray, rng):
    """Centre the object on a random pixel of the foreground, until half of it lies on the foreground."""
    for tries in range(1, TRIES + 1):
        row, column = pixel(foreground, rng)
        corner = (row - shape.shape[0] // 2, column - shape.shape[1] // 2)
        inside, of_patch = overlap(*corner, shape.shape, foreground.shape)
        covered = (shape[of_patch] & foreground[inside]).sum()
        if covered * 2 > shape.sum() or (tries == TRIES and covered):
            return inside, of_patch, corner, tries
    return None


def match_colours(patch: np.ndarray, shape: np.ndarray, beneath: np.ndarray) -> np.ndarray:
    """Give the object's pixels the mean and standard deviation, per channel, of the host's pixels beneath (n, 3)."""
    own = patch[shape]
    spread = own.std(axis=0)
    factor = np.where(spread > 1e-3, beneath.std(axis=0) / np.maximum(spread, 1e-3), 1)
    return ((patch - own.mean(axis=0)) * factor + beneath.mean(axis=0)).clip(0, 1).astype(np.float32)


def _mix(image, patch, shape, region, inside, of_patch, info):
    """Blend the patch into the region; return the image and the pixels that belong to the anomaly."""
    canvas = image.copy()
    canvas[inside] = np.where(shape[of_patch][..., None], patch[of_patch], image[inside])
    if info["poisson"]:
        host = np.rint(image * 255).astype(np.uint8)
        corner = (inside[0].start, inside[1].start)
        cloned = paste(host, np.rint(canvas[inside] * 255).astype(np.uint8), region[inside], corner, "normal")
        if cloned is not None:
            changed = changed_mask(host, cloned, region)
            if changed.any():
                return np.where(changed[..., None], as_float(cloned), image), changed
        info["poisson"] = False  # too small or refused, or nothing changed: mixed instead
    distance = cv2.distanceTransform(np.pad(region.astype(np.uint8), 1), cv2.DIST_L2, 3)[1:-1, 1:-1]
    # At the centre of the outermost pixels the distance is 1, so they keep a part of the object.
    alpha = np.clip(distance[region] / (info["feather"] + 1), 0, 1)[:, None] * info["opacity"]
    result = image.copy()
    result[region] = (1 - alpha) * image[region] + alpha * canvas[region]
    return result, region
