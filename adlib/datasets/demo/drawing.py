"""Drawing tools of the demo data: shaded surfaces, camera, and defects that are drawn onto a picture.

Nothing here is shared with `adlib.synthesis`. A detector trained on pseudo-anomalies would otherwise be tested on the
very shapes it was trained on, and the comparison of methods would be circular.

Pictures are float32 arrays (H, W, 3) in [0, 1]. A defect returns the picture and its coverage (H, W) in [0, 1]; the
mask is where the coverage is above `COVERED`. `strength` in (0, 1] grades size and contrast: the weakest defects are
meant to be missed by some methods.
"""

import cv2
import numpy as np

COVERED = 0.2
SUPERSAMPLING = 3


def shrink(picture: np.ndarray, size: int) -> np.ndarray:
    """Average a supersampled picture down to `size` x `size` pixels: this is what smooths every edge."""
    return cv2.resize(picture.astype(np.float32), (size, size), interpolation=cv2.INTER_AREA)


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur with a standard deviation in pixels."""
    return cv2.GaussianBlur(picture, (0, 0), sigma)


def mix(picture: np.ndarray, colour, coverage: np.ndarray) -> np.ndarray:
    """Lay a colour over a picture: coverage 0 keeps the picture, 1 shows the colour."""
    coverage = coverage[..., None]
    return picture * (1 - coverage) + np.asarray(colour, np.float32) * coverage


def coverage_of(polygon: np.ndarray, size: int, thickness: float | None = None) -> np.ndarray:
    """Return how much of each pixel a polygon (N, 2; x, y in pixels) covers, or an open line of some thickness."""
    canvas = np.zeros((size * SUPERSAMPLING,) * 2, np.uint8)
    points = np.round(polygon * SUPERSAMPLING).astype(np.int32)[:, None]
    if thickness is None:
        cv2.fillPoly(canvas, [points], 255)
    else:
        cv2.polylines(canvas, [points], False, 255, max(1, round(thickness * SUPERSAMPLING)), cv2.LINE_AA)
    return shrink(canvas, size) / 255


def blob(rng, centre, radius: float, roughness: float = 0.25) -> np.ndarray:
    """Return the outline (N, 2) of an irregular round shape: a circle whose radius wobbles in low frequencies."""
    angle = np.linspace(0, 2 * np.pi, 96, endpoint=False)
    wobble = np.ones_like(angle)
    for frequency in range(2, 7):
        wobble += roughness * rng.normal() / frequency * np.cos(frequency * angle + rng.uniform(0, 2 * np.pi))
    reach = radius * wobble.clip(0.45, 1.6)
    return np.stack([centre[0] + reach * np.cos(angle), centre[1] + reach * np.sin(angle)], axis=1)


def shade(
    height: np.ndarray, light: float, gloss: float = 0.0, steepness: float = 1.0
) -> tuple[np.ndarray, np.ndarray]:
    """Light a height map (H, W) from the direction `light` (radians in the image plane).

    Returns:
        diffuse (H, W), 1 on flat ground, and specular (H, W) light of `gloss` at most.
    """
    height = np.asarray(height, np.float32)
    across = steepness * cv2.Sobel(height, cv2.CV_32F, 1, 0, scale=1 / 8)
    down = steepness * cv2.Sobel(height, cv2.CV_32F, 0, 1, scale=1 / 8)
    norm = np.sqrt(1 + across**2 + down**2)
    direction = np.array([0.6 * np.cos(light), 0.6 * np.sin(light), 0.8], np.float32)
    diffuse = (direction[2] - across * direction[0] - down * direction[1]) / norm
    half = direction + np.float32([0, 0, 1])
    half /= np.linalg.norm(half)
    specular = ((half[2] - across * half[0] - down * half[1]) / norm).clip(0, 1) ** 40
    return (diffuse / direction[2]).clip(0, 2), gloss * specular


def photograph(picture: np.ndarray, rng, noise: float = 0.012) -> np.ndarray:
    """Take the picture with a camera: exposure, slightly uneven light, soft lens, sensor noise.

    Returns:
        uint8 array (H, W, 3).
    """
    height, width = picture.shape[:2]
    down, across = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j].astype(np.float32)
    light = rng.uniform(0.96, 1.04) + rng.uniform(-0.04, 0.04) * across + rng.uniform(-0.04, 0.04) * down
    picture = blur(picture * light[..., None], 0.6) + rng.normal(0, noise, picture.shape)
    return (picture * 255).round().clip(0, 255).astype(np.uint8)


# -- defects ----------------------------------------------------------------------------------------------------------


def place(rng, where: np.ndarray) -> np.ndarray:
    """Draw a point (x, y) from the true pixels of `where` (H, W): a defect's centre."""
    down, across = np.nonzero(where)
    pixel = rng.integers(len(down))
    return np.array([across[pixel], down[pixel]], dtype=float)


def scratch(picture, strength, rng, where):
    """A bent line, light with a dark lip."""
    start, angle = place(rng, where), rng.uniform(0, 2 * np.pi)
    along, aside = np.array([np.cos(angle), np.sin(angle)]), np.array([-np.sin(angle), np.cos(angle)])
    length = 14 + 46 * strength * rng.uniform(0.7, 1.2)
    step = np.linspace(-0.5, 0.5, 40)[:, None]
    bend = rng.normal(0, 0.18) * (step**2 - 0.08) + 0.02 * np.sin(8 * step + rng.uniform(0, 6))
    line = start + length * (step * along + bend * aside)
    coverage = coverage_of(line, len(picture), 1.2 + 1.6 * strength)
    lip = coverage_of(line + 1.2, len(picture), 1.0) * (coverage > COVERED)
    picture = mix(picture, (0.08, 0.08, 0.08), 0.5 * strength * lip)
    return mix(picture, (0.93, 0.92, 0.88), (0.18 + 0.62 * strength) * coverage), coverage


def hole(picture, strength, rng, where):
    """A pit: dark, with its far wall lit."""
    centre, radius = place(rng, where), 2.5 + 8 * strength * rng.uniform(0.8, 1.2)
    coverage = coverage_of(blob(rng, centre, radius), len(picture))
    depth = blur(coverage, radius / 4)
    wall, _ = shade(-depth * radius * 2.5, -2.2)
    dark = picture * (1 - (0.35 + 0.5 * strength) * depth[..., None])
    return picture + coverage[..., None] * (dark * wall[..., None] - picture), coverage


def stain(picture, strength, rng, where):
    """A translucent patch, cloudy inside, darker at its rim like a dried drop."""
    centre, radius = place(rng, where), 6 + 14 * strength * rng.uniform(0.7, 1.2)
    coverage = blur(coverage_of(blob(rng, centre, radius, 0.4), len(picture)), 1.0)
    clouds = blur(rng.normal(0, 1, coverage.shape).astype(np.float32), 4)
    rim = coverage - blur(coverage, 2.5).clip(0, 1)
    density = (0.16 + 0.5 * strength) * (1 + 1.6 * clouds + rim.clip(0, 1)).clip(0.3, 1.5)
    pigment = [(0.36, 0.22, 0.10), (0.10, 0.12, 0.20), (0.30, 0.27, 0.08)][rng.integers(3)]
    return mix(picture, pigment, (density * coverage).clip(0, 0.9)), coverage


def dent(picture, strength, rng, where):
    """A pressed-in place: the surface is warped as by a lens and shaded like a bowl."""
    centre, radius = place(rng, where), 9 + 12 * strength * rng.uniform(0.8, 1.2)
    down, across = np.mgrid[: picture.shape[0], : picture.shape[1]].astype(np.float32)
    away = np.hypot(across - centre[0], down - centre[1]) / radius
    bowl = (1 - away**2).clip(0, None).astype(np.float32) ** 2
    pull = 0.55 * strength * bowl
    pulled = [(c + (grid - c) * (1 + pull)).astype(np.float32) for c, grid in zip(centre, (across, down), strict=True)]
    warped = cv2.remap(picture, *pulled, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT)
    diffuse, _ = shade(-bowl * radius * (0.12 + 0.42 * strength), -2.2)
    return warped * diffuse[..., None], (away < 0.9).astype(np.float32)


SURFACE_DEFECTS = {"scratch": scratch, "hole": hole, "stain": stain, "dent": dent}
