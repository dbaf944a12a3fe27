"""CutPaste (Li et al., CVPR 2021): a piece of the image itself, at the wrong place."""

import cv2
import numpy as np

from adlib.synthesis.draws import overlap, pixel, uniform
from adlib.synthesis.registry import register

TRIES = 20


@register("cutpaste")
def cutpaste(image, rng, foreground, sources, area=(0.02, 0.15), aspect=3.3, jitter=0.1):
    """Copy a rectangle of the image, change its colours a little, and paste it somewhere else.

    Args:
        area: size of the rectangle as a share of the image.
        aspect: height over width is drawn from (1 / aspect, 1) or (1, aspect) with equal odds.
        jitter: largest relative change of brightness, contrast and saturation, and of hue as a share of the circle.
    """
    height, width = foreground.shape
    share = uniform("area", area, rng, 0, 1)
    ratio = float(rng.uniform(1 / aspect, 1) if rng.random() < 0.5 else rng.uniform(1, aspect))
    rows = int(np.clip(round(np.sqrt(share * height * width * ratio)), 1, height))
    columns = int(np.clip(round(np.sqrt(share * height * width / ratio)), 1, width))
    info = {"area": share, "aspect": ratio}
    return _cut_and_paste(image, rng, foreground, np.ones((rows, columns), bool), jitter, info, degrees=0.0)


@register("cutpaste_scar")
def cutpaste_scar(image, rng, foreground, sources, width=(2, 16), length=(10, 25), rotation=45.0, jitter=0.1):
    """The scar: a long thin rectangle of the image, turned.

    Args:
        width, length: pixels on an image whose shorter side has 256; they grow and shrink with the image.
        rotation: degrees, drawn from U(-rotation, rotation).
        jitter: as for `cutpaste`.
    """
    scale = min(foreground.shape) / 256
    columns = max(1, round(uniform("width", width, rng, 0, 256) * scale))
    rows = max(1, round(uniform("length", length, rng, 0, 256) * scale))
    info = {"width": columns, "length": rows}
    degrees = float(rng.uniform(-rotation, rotation))
    return _cut_and_paste(image, rng, foreground, np.ones((rows, columns), bool), jitter, info, degrees)


def _cut_and_paste(image, rng, foreground, shape_mask, jitter, info, degrees):
    shape, (rows, columns) = foreground.shape, shape_mask.shape
    top, left = (int(rng.integers(0, max(1, shape[k] - shape_mask.shape[k] + 1))) for k in range(2))
    patch = image[top : top + rows, left : left + columns]
    patch, draws = jitter_colours(patch, rng, jitter)
    patch, patch_mask = turn(patch, shape_mask[: patch.shape[0], : patch.shape[1]], degrees)
    info |= {"cut_at": (top, left), "rotation": degrees, "jitter": draws}

    for _ in range(TRIES):
        top, left = (int(rng.integers(0, max(1, shape[k] - patch.shape[k] + 1))) for k in range(2))
        inside, of_patch = overlap(top, left, patch.shape, shape)
        if (patch_mask[of_patch] & foreground[inside]).any():
            break
    else:
        info["fallback"] = f"no overlap with the foreground in {TRIES} places: centred on a pixel of it"
        row, column = pixel(foreground, rng)
        anchor = pixel(patch_mask, rng)  # some pixel of the piece lands on the foreground
        top, left = row - anchor[0], column - anchor[1]
        inside, of_patch = overlap(top, left, patch.shape, shape)
    result, mask = image.copy(), np.zeros(shape, bool)
    mask[inside] = patch_mask[of_patch] & foreground[inside]
    result[inside][mask[inside]] = patch[of_patch][mask[inside]]
    return result, mask, info | {"paste_at": (top, left)}


def turn(patch: np.ndarray, mask: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """Rotate a patch (h, w, 3) and its mask (h, w) about their centre, on a canvas that holds all of them."""
    if degrees == 0:
        return patch, mask
    height, width = mask.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), -degrees, 1)
    cosine, sine = abs(matrix[0, 0]), abs(matrix[0, 1])
    size = max(1, int(np.ceil(width * cosine + height * sine))), max(1, int(np.ceil(width * sine + height * cosine)))
    matrix[:, 2] += (size[0] - width) / 2, (size[1] - height) / 2
    # The border is repeated under the mask, or black would bleed into its edge.
    turned = cv2.warpAffine(np.ascontiguousarray(patch), matrix, size, borderMode=cv2.BORDER_REPLICATE)
    turned_mask = cv2.warpAffine(mask.astype(np.float32), matrix, size) >= 0.5
    if not turned_mask.any():  # thinner than the sampling
        turned_mask[size[1] // 2, size[0] // 2] = True
    return turned, turned_mask


def jitter_colours(patch: np.ndarray, rng: np.random.Generator, amount: float) -> tuple[np.ndarray, dict]:
    """Change brightness, contrast, saturation (factors 1 +- amount) and hue (+- amount of the circle).

    Args:
        patch: float32 (h, w, 3) in [0, 1].
    """
    uniform("jitter", amount, rng, 0, 1)
    factors = rng.uniform(1 - amount, 1 + amount, 3).astype(np.float32)
    hue = float(rng.uniform(-amount, amount))
    patch = np.ascontiguousarray(patch) * factors[0]
    mean = cv2.cvtColor(patch, cv2.COLOR_RGB2GRAY).mean()
    patch = (mean + factors[1] * (patch - mean)).clip(0, 1)
    hsv = cv2.cvtColor(patch, cv2.COLOR_RGB2HSV)  # hue in degrees
    hsv[..., 0] = (hsv[..., 0] + 360 * hue) % 360
    hsv[..., 1] = (hsv[..., 1] * factors[2]).clip(0, 1)
    draws = dict(zip(("brightness", "contrast", "saturation"), factors.tolist(), strict=True))
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB).clip(0, 1), draws | {"hue": hue}
