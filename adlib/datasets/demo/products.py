"""Products that are drawn by code, as many as one wants: what a model of all products learns from.

    good, defective, masks, kinds = product(7, (256, 256))

A product is a material and what lies on it: nothing, a flat print, one object, or a tray of equal ones. Its normal
variation is its own: pose, light, grain, tone. Materials are procedural; some have the structure of scikit-image's
photographs (CC0). A defect is a shape with an effect on it, faint or strong. Neither come from `adlib.synthesis` or
from the scenes of the demo data, which are for tests.
"""

from functools import cache

import cv2
import numpy as np
import skimage.data

from adlib.datasets.demo.drawing import blob, blur, coverage_of, photograph, shade

VERSION = 1  # raise it when the same number gives other pictures
N_GOOD, N_DEFECTIVE = 8, 8
LAYOUTS = {"material": (0, 0), "print": (0.02, 0.12), "object": (0.03, 0.15), "tray": (0.07, 0.1)}  # radii of parts
MATERIALS = ("plain", "cloud", "brushed", "grain", "cells", "weave", "camera", "chelsea", "coffee", "moon")
SHAPES = ("blob", "line", "crack", "dots", "ring")


def product(number: int, size: tuple[int, int]):
    """Draw the pictures of a product; the same number and size give the same.

    Returns:
        list of `N_GOOD` uint8 (H, W, 3), list of `N_DEFECTIVE` of the same, masks bool (N_DEFECTIVE, H, W), and the
        kind of each defect, for example "crack darker".
    """
    design, side = _design(np.random.default_rng([VERSION, number])), max(size)
    pictures, masks, kinds = [], [], []
    for i in range(N_GOOD + N_DEFECTIVE):
        rng = np.random.default_rng([VERSION, number, i])
        picture, surface = _scene(design, rng, side)
        if i >= N_GOOD:
            picture, mask, kind = _damaged(picture, surface, design, rng)
            masks.append(cv2.resize(mask.astype(np.uint8), size[::-1], interpolation=cv2.INTER_AREA) > 0)
            kinds.append(kind)
        picture = photograph(picture, rng, design["noise"])
        pictures.append(cv2.resize(picture, size[::-1], interpolation=cv2.INTER_AREA))
    return pictures[:N_GOOD], pictures[N_GOOD:], np.stack(masks), tuple(kinds)


# -- what all pictures of a product share -----------------------------------------------------------------------------


def _design(rng) -> dict:
    layout = str(rng.choice(list(LAYOUTS)))
    rows = int(rng.integers(2, 5))
    n = {"material": 0, "print": rng.integers(4, 16), "object": rng.integers(1, 6), "tray": rows**2}[layout]
    radii, centres = rng.uniform(*LAYOUTS[layout], n), rng.uniform(-0.32, 0.32, (n, 2))
    if layout == "object":  # one whole, and what is on it
        radii[0], centres = rng.uniform(0.26, 0.38), centres * np.minimum(np.arange(n), 0.5)[:, None]
    parts = [(_outline(rng, radius), int(rng.integers(2)), _colours(rng), rng.uniform(-1, 1)) for radius in radii]
    if layout == "tray":  # the same part everywhere
        parts, centres = n * parts[:1], (np.stack(np.divmod(np.arange(n), rows), 1) + 0.5) / rows - 0.5
    ground, foreign, *materials = [_material(rng) for _ in range(4)]
    pose = {"turn": 0.0 if layout == "tray" else rng.choice([0.0, 0.05, np.pi]), "shift": rng.uniform(0, 0.06)}
    light = {"light": rng.uniform(0, 2 * np.pi), "tone": rng.uniform(0, 0.03), "noise": rng.uniform(0.003, 0.02)}
    own = {"layout": layout, "parts": list(zip(centres, parts, strict=True)), "ground": ground, "foreign": foreign}
    return own | {"materials": materials[: 2 * (n > 0)]} | pose | light


def _outline(rng, radius: float) -> np.ndarray:
    """A rough disc, a polygon or a bar, (N, 2)."""
    if rng.random() < 0.5:
        return blob(rng, (0, 0), radius, rng.uniform(0, 0.6))
    angles = np.linspace(0, 2 * np.pi, rng.integers(3, 9), endpoint=False)
    return radius * np.stack([np.cos(angles), np.sin(angles) * rng.uniform(0.25, 1)], 1)


def _colours(rng) -> np.ndarray:
    """A dark and a light colour (2, 3), near each other and near grey as those of most products are."""
    lightness = rng.uniform(0.1, 0.9) + np.array([[-0.5], [0.5]]) * rng.uniform(0.05, 0.6)
    return (lightness + rng.normal(0, 1, 3) * rng.choice([0.0, 0.03, 0.15])).clip(0.02, 0.98).astype(np.float32)


def _material(rng) -> dict:
    """A kind of surface; `free`: it lies any way round."""
    looks = {"kind": str(rng.choice(MATERIALS)), "colours": _colours(rng), "contrast": rng.uniform(0.15, 1)}
    return looks | {"scale": rng.uniform(0.006, 0.05), "turn": rng.uniform(0, 360), "free": rng.random() < 0.2}


# -- one picture ------------------------------------------------------------------------------------------------------


@cache
def _photo(name: str) -> np.ndarray:
    photo = getattr(skimage.data, name)().astype(np.float32)
    photo = photo if photo.ndim == 2 else photo.mean(2)
    return photo - blur(photo, 6)  # its structure, not what it shows


def _field(material: dict, rng, side: int) -> np.ndarray:
    """Another piece of a material, float32 (side, side): the share of its light colour."""
    big, scale, kind = int(1.5 * side), material["scale"] * side, material["kind"]

    def noise(down, across):
        grid = rng.normal(0, 1, (max(3, int(big / down)), max(3, int(big / across)))).astype(np.float32)
        return cv2.resize(grid, (big, big), interpolation=cv2.INTER_CUBIC)

    if kind in ("plain", "grain"):
        field = noise(max(1.5, scale / 4), max(1.5, scale / 4)) + (kind == "plain") * 2 * noise(side, side)
    elif kind == "cloud":
        field = sum(noise(scale * 2**i, scale * 2**i) * 2**i for i in range(3))
    elif kind == "brushed":
        field = noise(1.5, 20 * scale)
    elif kind == "cells":
        field = np.abs(noise(scale, scale)) ** 0.5
    elif kind == "weave":
        down, across = (axis / scale + rng.uniform(0, 6) for axis in np.ogrid[:big, :big])
        field = np.sin(across) * np.sin(down) + 0.3 * np.sin(across + down) + 0.2 * noise(2, 2)
    else:
        photo = _photo(kind)
        cut = min(photo.shape) // 3
        top, left = (rng.integers(extent - cut + 1) for extent in photo.shape)
        field = cv2.resize(photo[top : top + cut, left : left + cut], (big, big), interpolation=cv2.INTER_LINEAR)
    turn = cv2.getRotationMatrix2D((big / 2, big / 2), rng.uniform(0, 360) if material["free"] else material["turn"], 1)
    field = cv2.warpAffine(field.astype(np.float32), turn, (big, big), borderMode=cv2.BORDER_REFLECT)
    start = (big - side) // 2
    field = field[start : start + side, start : start + side]
    return 0.5 + 0.25 * material["contrast"] * (field - field.mean()) / max(float(field.std()), 1e-6)


def _coloured(field, colours) -> np.ndarray:
    """Colours (2, 3) mixed by a field (side, side): (side, side, 3)."""
    return colours[0] + field.clip(0, 1)[..., None] * (colours[1] - colours[0])


def _scene(design: dict, rng, side: int) -> tuple[np.ndarray, np.ndarray]:
    """A picture (side, side, 3) of the product without a defect, and where it lies, float (side, side)."""
    picture = _coloured(_field(design["ground"], rng, side), design["ground"]["colours"])
    surface, height = np.ones((side, side), np.float32), np.zeros((side, side), np.float32)
    fields, tray = [_field(m, rng, side) for m in design["materials"]], design["layout"] == "tray"
    pose, shift = rng.uniform(-1, 1) * design["turn"], rng.uniform(-1, 1, 2) * design["shift"]
    body = np.zeros_like(surface)
    for i, (centre, (outline, number, colours, rise)) in enumerate(design["parts"]):
        # All turn as one about the middle; in a tray each lies a little askew in its place.
        points = _turned(outline, rng.uniform(-0.1, 0.1) * tray) + centre + rng.normal(0, 0.004, 2)
        covered = coverage_of((_turned(points, pose) + shift + 0.5) * side, side)
        picture = picture + covered[..., None] * (_coloured(fields[number], colours) - picture)
        height = height + (design["layout"] != "print") * rise * covered
        body = np.maximum(body, covered * (tray or i == 0))
    surface = body if design["layout"] in ("object", "tray") else surface
    picture = picture * shade(4 * blur(height, 1.5), design["light"])[0][..., None]
    return (picture * (1 + rng.normal(0, design["tone"], 3))).clip(0, 1).astype(np.float32), surface


def _turned(points: np.ndarray, angle: float) -> np.ndarray:
    """Points (N, 2) turned about zero."""
    return points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


# -- defects ----------------------------------------------------------------------------------------------------------


def _shape(kind: str, centre, extent: float, rng, side: int) -> np.ndarray:
    """Where a defect is, (side, side) in [0, 1]."""
    if kind in ("blob", "ring"):
        return coverage_of(blob(rng, centre, extent, 0.5), side, None if kind == "blob" else rng.uniform(1, 3))
    if kind == "dots":
        spots = [blob(rng, centre + rng.normal(0, extent, 2), rng.uniform(1, 3)) for _ in range(rng.integers(3, 14))]
        return np.max([coverage_of(spot, side) for spot in spots], axis=0)
    directions = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.05 if kind == "line" else 0.6, 24))
    steps = np.stack([np.cos(directions), np.sin(directions)], 1) * extent / 8
    return coverage_of(centre + np.cumsum(steps, 0) - steps.sum(0) / 2, side, rng.uniform(1, 3.5))


def _damaged(picture, surface, design: dict, rng):
    """The picture with a defect, its mask bool (side, side) and its kind; drawn anew until something is to be seen."""
    side, (down, across), foreign = len(picture), np.nonzero(surface > 0.5), design["foreign"]
    effects = {
        "darker": lambda alpha: 0.25 * picture,
        "lighter": lambda alpha: 0.25 * picture + 0.75,
        "colour": lambda alpha: rng.uniform(0, 1, 3),
        "blurred": lambda alpha: blur(picture, 6),
        "foreign": lambda alpha: _coloured(_field(foreign, rng, side), foreign["colours"]),
        "moved": lambda alpha: np.roll(picture, tuple(rng.integers(side // 8, side // 2, 2)), (0, 1)),
        "raised": lambda alpha: picture * shade(blur(alpha, 2) * rng.choice([-8, 8]), design["light"])[0][..., None],
        "rough": lambda alpha: picture + rng.normal(0, 0.25, picture.shape),
    }
    while True:
        shape, effect = str(rng.choice(SHAPES)), str(rng.choice(list(effects)))
        pixel, strength = rng.integers(len(down)), rng.uniform(0.25, 1)
        centre = np.array([across[pixel], down[pixel]], float)
        alpha = _shape(shape, centre, side * rng.uniform(0.015, 0.09), rng, side) * surface
        alpha = blur(alpha, rng.uniform(0.3, 1.5)) * strength
        damaged = (picture + alpha[..., None] * (effects[effect](alpha) - picture)).clip(0, 1).astype(np.float32)
        mask = alpha > 0.3 * strength
        if mask.sum() > 8 and np.abs(damaged - picture).mean(2)[mask].mean() > 0.03:
            return damaged, mask, f"{shape} {effect}"
