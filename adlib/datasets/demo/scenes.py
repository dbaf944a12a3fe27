"""The scenes of the demo data: three textures, a gear and a tray of pins.

`scene` draws one picture. The scene and its defect have generators of their own, so the same scene can be drawn with
and without its defect: that is how the tests show that the masks are exact.
"""

import math
from functools import cache

import cv2
import numpy as np
import skimage.data

from adlib.datasets.demo.drawing import (
    COVERED,
    SUPERSAMPLING,
    SURFACE_DEFECTS,
    blob,
    blur,
    coverage_of,
    photograph,
    shade,
    shrink,
)

SIZE = 160  # pixels of an image's side
FRONTIER = 272  # column of the photographs where the training part ends and the test part begins
TEXTURES = ("brick", "grass", "gravel")
DEFECTS = {
    "brick": ("dent", "hole", "scratch", "stain"),
    "gear": ("break", "dent", "scratch", "stain"),
    "grass": ("dent", "hole", "scratch", "stain"),
    "gravel": ("dent", "hole", "scratch", "stain"),
    "tray": ("misplaced", "missing", "scratch", "stain", "surplus"),
}
# Dark and light end of the tint: the photographs are grey, real surfaces are not.
TINTS = {
    "brick": ((0.20, 0.08, 0.06), (0.96, 0.74, 0.62)),
    "grass": ((0.05, 0.10, 0.03), (0.80, 0.92, 0.55)),
    "gravel": ((0.10, 0.10, 0.12), (0.93, 0.90, 0.85)),
}


def scene(category, split, rng, defect=None, strength=1.0, defect_rng=None) -> tuple[np.ndarray, np.ndarray]:
    """Draw one picture.

    Args:
        category: a key of `DEFECTS`.
        split: "train" or "test": textures are cut from different halves of the photograph.
        rng: generator of pose, light and noise.
        defect: one of `DEFECTS[category]`, or None for a normal picture.
        strength: how easy the defect is to see, in (0, 1].
        defect_rng: generator of the defect.

    Returns:
        uint8 image (160, 160, 3) and bool mask (160, 160).
    """
    everywhere = np.ones((SIZE, SIZE), np.float32)
    if category in TEXTURES:
        picture, mask, surface = texture(category, split, rng), None, everywhere
    elif category == "gear":
        picture, mask, surface = gear(rng, defect, strength, defect_rng)
    else:
        picture, mask, surface = *tray(rng, defect, defect_rng), everywhere
    if defect in SURFACE_DEFECTS and mask is None:
        # Centres stay off the image's border and on the surface; a defect ends where its surface ends.
        inner = np.zeros((SIZE, SIZE), bool)
        inner[12:-12, 12:-12] = (cv2.erode(surface, np.ones((9, 9))) > 0.9)[12:-12, 12:-12]
        changed, coverage = SURFACE_DEFECTS[defect](picture, strength, defect_rng, inner)
        picture = picture + surface[..., None] * (changed - picture)
        mask = coverage * surface > COVERED
    return photograph(picture, rng), np.zeros((SIZE, SIZE), bool) if mask is None else mask


# -- textures ---------------------------------------------------------------------------------------------------------


@cache
def _photo(name: str) -> np.ndarray:
    return getattr(skimage.data, name)().astype(np.float32) / 255  # (512, 512), in the wheel, CC0


def texture(category: str, split: str, rng) -> np.ndarray:
    """Cut a crop from the training or the test part of a photograph and tint it."""
    photo = _photo(category)
    photo = photo[:, :FRONTIER] if split == "train" else photo[:, FRONTIER:]
    top, left = (rng.integers(extent - SIZE + 1) for extent in photo.shape)
    grey = photo[top : top + SIZE, left : left + SIZE, None]
    dark, light = (np.asarray(colour, np.float32) for colour in TINTS[category])
    return dark + grey * (light - dark)


# -- gear -------------------------------------------------------------------------------------------------------------


def gear(rng, defect, strength, defect_rng):
    """A machined steel gear on a dark mat, in a loose fixture: a few pixels, degrees and per cent of play.

    Returns the picture, the mask of a defect that changes the shape (else None) and the metal surface.
    """
    n = SIZE * SUPERSAMPLING
    centre = (n / 2 + rng.uniform(-3, 3, 2) * SUPERSAMPLING).tolist()
    turn, unit = math.radians(rng.uniform(-6, 6)), 60 * SUPERSAMPLING * rng.uniform(0.98, 1.02)
    light = -2.2 + rng.uniform(-0.25, 0.25)
    teeth = 16

    def polygon(angles, radii):
        return np.stack(
            [centre[0] + unit * radii * np.cos(angles + turn), centre[1] + unit * radii * np.sin(angles + turn)], 1
        )

    def filled(*polygons):
        canvas = np.zeros((n, n), np.uint8)
        for points in polygons:
            cv2.fillPoly(canvas, [np.round(points).astype(np.int32)[:, None]], 1)
        return canvas.astype(np.float32)

    circle = np.linspace(0, 2 * np.pi, 180)

    def disc(radius, at=0.0, angle=0.0):
        offset = unit * at * np.array([np.cos(angle + turn), np.sin(angle + turn)])
        return polygon(circle, np.full(180, radius)) + offset

    pitch = 2 * np.pi / teeth
    profile = np.array([-0.34, -0.17, 0.17, 0.34]) * pitch  # root, tip, tip, root: a trapezoid
    angles = (np.arange(teeth)[:, None] * pitch + profile).ravel()
    outline = filled(polygon(angles, np.tile([0.84, 1.0, 1.0, 0.84], teeth)))
    bores = filled(disc(0.17), *[disc(0.085, 0.47, k * np.pi / 3) for k in range(6)])
    keyway = filled(polygon(np.array([-0.25, 0.25, 0.2, -0.2]), np.array([0.1, 0.1, 0.235, 0.235])))
    metal = outline * (1 - np.maximum(bores, keyway))
    body, mask = metal, None

    if defect == "break":  # a tooth is lost, wholly or in part
        angle = defect_rng.integers(teeth) * pitch
        tip = polygon(np.array([angle]), np.array([1.02]))[0]
        lost = filled(blob(defect_rng, tip, unit * (0.06 + 0.16 * strength)))
        body = metal * (1 - lost)
        mask = shrink(metal * lost, SIZE) > COVERED

    web = filled(disc(0.70)) * (1 - filled(disc(0.30)))  # the recess between rim and hub
    height = blur(SUPERSAMPLING * (2.5 * body - web * body), 0.8 * SUPERSAMPLING)
    if defect == "dent":
        down, across = np.mgrid[:n, :n].astype(np.float32)
        angle = defect_rng.uniform(0, 2 * np.pi)
        spot = polygon(np.array([angle]), np.array([0.77 if defect_rng.random() < 0.6 else 0.24]))[0].tolist()
        radius = SUPERSAMPLING * (3.5 + 5 * strength)
        bowl = (1 - ((across - spot[0]) ** 2 + (down - spot[1]) ** 2) / radius**2).clip(0, None) ** 1.5
        height = height - (0.12 + 0.38 * strength) * radius * bowl
        mask = shrink((bowl > 0) * body, SIZE) > COVERED
    diffuse, specular = shade(height, light, gloss=0.22, steepness=0.9)

    # Turning leaves rings: a function of the radius alone.
    down, across = np.mgrid[:n, :n].astype(np.float32)
    away = np.hypot(across - centre[0], down - centre[1])
    grooves = blur(rng.normal(0, 1, (1, n)).astype(np.float32), 1.0)[0]
    rings = grooves[away.astype(np.int32).clip(0, n - 1)]
    sheen = 0.05 * np.cos(2 * (np.arctan2(down - centre[1], across - centre[0]) - light))
    tone = (0.56 - 0.10 * web + 0.022 * rings + sheen) * diffuse
    steel = tone[..., None] * np.float32([0.98, 1.0, 1.04]) + specular[..., None]

    fibre = blur(rng.normal(0, 1, (n // 2, n // 2)).astype(np.float32), 1.2)
    mat = 0.20 + 0.05 * cv2.resize(fibre, (n, n))
    shadow = np.roll(blur(body, 2.0 * SUPERSAMPLING), (3 * SUPERSAMPLING, 3 * SUPERSAMPLING), (0, 1))
    mat = (mat * (1 - 0.65 * shadow))[..., None] * np.float32([0.82, 0.98, 1.25])
    edge = blur(body, 0.8)
    picture = shrink(mat * (1 - edge[..., None]) + steel * edge[..., None], SIZE)
    return picture, mask, shrink(edge, SIZE)


# -- tray -------------------------------------------------------------------------------------------------------------

COLOURS = np.float32([[0.78, 0.13, 0.12], [0.93, 0.70, 0.10], [0.12, 0.32, 0.72]])  # red, yellow, blue
COUNTS = ((1, 2, 3), (3, 2, 1))  # pins in each well; the column gives the colour
WELLS = [(10 + 48 * column, 12 + 72 * row, 44, 64) for row in range(2) for column in range(3)]  # x, y, width, height
RADIUS = 6.5


@cache
def _empty_tray() -> np.ndarray:
    """The tray without pins, supersampled."""
    n = SIZE * SUPERSAMPLING
    floor = np.zeros((n, n), np.float32)
    for x, y, width, height in (np.array(well) * SUPERSAMPLING for well in WELLS):
        corner = 8 * SUPERSAMPLING
        for dx, dy in ((0, corner), (corner, 0)):
            cv2.rectangle(floor, (x + dx, y + dy), (x + width - dx, y + height - dy), 1, -1)
        for cx in (x + corner, x + width - corner):
            for cy in (y + corner, y + height - corner):
                cv2.circle(floor, (int(cx), int(cy)), corner, 1, -1)
    diffuse, specular = shade(blur(-3.5 * SUPERSAMPLING * floor, 1.2 * SUPERSAMPLING), -2.2, gloss=0.10, steepness=0.8)
    shadow = np.roll(blur(1 - floor, 2 * SUPERSAMPLING), (3 * SUPERSAMPLING, 3 * SUPERSAMPLING), (0, 1)) * floor
    tone = (0.74 - 0.14 * floor) * diffuse * (1 - 0.45 * shadow) + specular
    return tone[..., None] * np.float32([0.98, 1.0, 1.0])


def _set_pin(picture, at, colour) -> None:
    """Set a pin with a domed head and a shadow onto a supersampled picture, in place."""
    side = 32  # pixels of the window around the pin; nothing outside changes
    corner = [int(coordinate) - side // 2 for coordinate in at]
    at = [float(coordinate) - start for coordinate, start in zip(at, corner, strict=True)]
    left, top = (start * SUPERSAMPLING for start in corner)
    n = side * SUPERSAMPLING
    window = picture[top : top + n, left : left + n]
    head = cv2.resize(coverage_of(_circle(at), side), (n, n), interpolation=cv2.INTER_LINEAR)[..., None]
    shadow = cv2.resize(blur(coverage_of(_shadow(at), side), 1.0), (n, n), interpolation=cv2.INTER_LINEAR)[..., None]
    down, across = np.mgrid[:n, :n].astype(np.float32) / SUPERSAMPLING
    away = (np.hypot(across - at[0], down - at[1]) / RADIUS).clip(0, 1)
    diffuse, specular = shade(SUPERSAMPLING * RADIUS * 0.75 * np.sqrt(1 - 0.97 * away**2), -2.2, 0.55)
    dome = colour * (0.35 + 0.65 * diffuse.clip(0.2, 1.5))[..., None] + specular[..., None]
    window[:] = window * (1 - 0.45 * shadow) * (1 - head) + dome * head


def _circle(at, radius: float = RADIUS) -> np.ndarray:
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    return np.stack([at[0] + radius * np.cos(angle), at[1] + radius * np.sin(angle)], axis=1)


def _shadow(at) -> np.ndarray:
    return _circle(np.add(at, 2.0), 1.05 * RADIUS)


def _spot(rng, well: int, spots: list) -> np.ndarray:
    """Draw a free place for a pin in a well, away from the pins that are there."""
    x, y, width, height = WELLS[well]
    for _ in range(1000):
        spot = rng.uniform((x + RADIUS + 3, y + RADIUS + 3), (x + width - RADIUS - 4, y + height - RADIUS - 4))
        if all(np.hypot(*(spot - other)) > 2.2 * RADIUS for other in spots):
            return spot
    raise RuntimeError("no free place in the well")  # four pins of this size always fit in practice


def tray(rng, defect, defect_rng):
    """A moulded tray with six wells. The rule: 1, 2, 3 pins above, 3, 2, 1 below; one colour per column.

    Returns the picture and the mask of a logical defect (else None).

    Pins lie anywhere in their well. A picture that breaks the rule therefore looks normal in every small window:
    that is what makes its anomaly logical.
    """
    pins = []  # (well, place, colour)
    for well in range(6):
        spots = []
        for _ in range(COUNTS[well // 3][well % 3]):
            spots.append(_spot(rng, well, spots))
        pins += [(well, at, well % 3) for at in spots]
    changed, mask = [], None  # changed: places where a pin is or should be
    if defect in ("missing", "misplaced"):
        well, at, colour = pins.pop(defect_rng.integers(len(pins)))
        changed.append(at)
    if defect in ("surplus", "misplaced"):
        if defect == "misplaced":
            well = defect_rng.choice([w for w in range(6) if w % 3 != colour])
        else:
            well = defect_rng.integers(6)
            colour = well % 3
        at = _spot(defect_rng, well, [p for w, p, _ in pins if w == well] + changed)
        pins.append((well, at, colour))
        changed.append(at)

    if changed:
        mask = np.zeros((SIZE, SIZE), bool)
        for at in changed:
            for outline in (_circle(at), _shadow(at)):
                mask |= coverage_of(outline, SIZE) > COVERED
    picture = _empty_tray().copy()
    for _, at, colour in sorted(pins, key=lambda pin: tuple(pin[1])):
        _set_pin(picture, at, COLOURS[colour])
    return shrink(picture, SIZE), mask
