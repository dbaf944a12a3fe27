"""Foreign objects: the region of an object in a picture, and objects that the project draws itself."""

import cv2
import numpy as np

LONGEST = 256  # pixels; regions are found, and objects kept, at this size


def extract_object(image: np.ndarray) -> tuple[np.ndarray, np.ndarray, str]:
    """Find the main object of a picture and cut it out.

    Otsu's threshold on the grey value or on the saturation, whichever separates better; the largest 8-connected
    component, holes filled. A region below 1 % or above 60 % of the picture, or one that runs along the border, is
    not believed: then GrabCut with a border of 10 % as certain background, and as the last resort an ellipse.

    Args:
        image: uint8 (H, W, 3).

    Returns:
        pixels uint8 (h, w, 3) and mask bool (h, w) of the region's box, at most 256 pixels long, and how it was
        found: "otsu grey", "otsu saturation", "grabcut" or "ellipse".
    """
    factor = LONGEST / max(image.shape[:2])
    if factor < 1:
        size = (max(1, round(image.shape[1] * factor)), max(1, round(image.shape[0] * factor)))
        image = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    channels = {
        "otsu grey": cv2.cvtColor(image, cv2.COLOR_RGB2GRAY),
        "otsu saturation": cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1],
    }
    how = max(channels, key=lambda name: separation(channels[name]))
    mask = largest_region(object_side(channels[how]))
    if not _plausible(mask):
        how, mask = "grabcut", largest_region(_grabcut(image))
    if not _plausible(mask):
        how, mask = "ellipse", _ellipse(image.shape[:2])
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    return np.ascontiguousarray(image[box]), np.ascontiguousarray(mask[box]), how


def separation(channel: np.ndarray) -> float:
    """How well Otsu's threshold separates a uint8 channel: variance between the classes over all variance, 0 to 1."""
    level, _ = cv2.threshold(channel, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    above = channel > level
    share, variance = above.mean(), channel.var()
    if variance == 0 or share in (0, 1):
        return 0.0
    return float(share * (1 - share) * (channel[above].mean() - channel[~above].mean()) ** 2 / variance)


def object_side(channel: np.ndarray) -> np.ndarray:
    """Otsu's threshold on uint8 (H, W); the side that holds less of the image border is the object (bool)."""
    level, _ = cv2.threshold(channel, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    above = channel > level
    return ~above if border(above).mean() > 0.5 else above


def border(mask: np.ndarray) -> np.ndarray:
    """The pixels of the image border as one row."""
    return np.concatenate([mask[0], mask[-1], mask[1:-1, 0], mask[1:-1, -1]])


def largest_region(mask: np.ndarray) -> np.ndarray:
    """The largest 8-connected region of a bool mask, its holes filled; all false stays all false."""
    n_regions, labels, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    if n_regions == 1:
        return np.zeros_like(mask)
    region = (labels == 1 + stats[1:, cv2.CC_STAT_AREA].argmax()).astype(np.uint8)
    outline, _ = cv2.findContours(region, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    return cv2.drawContours(region, outline, -1, 1, cv2.FILLED) > 0


def _plausible(mask: np.ndarray) -> bool:
    return 0.01 <= mask.mean() <= 0.60 and border(mask).mean() < 0.25


def _grabcut(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    margin_y, margin_x = max(1, height // 10), max(1, width // 10)
    if height <= 2 * margin_y + 2 or width <= 2 * margin_x + 2:
        return np.zeros((height, width), bool)
    labels = np.zeros((height, width), np.uint8)
    cv2.setRNGSeed(0)  # GrabCut's clustering draws from OpenCV's own generator
    box = (margin_x, margin_y, width - 2 * margin_x, height - 2 * margin_y)
    cv2.grabCut(image, labels, box, None, None, 3, cv2.GC_INIT_WITH_RECT)
    return (labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD)


def _ellipse(shape: tuple[int, int]) -> np.ndarray:
    y, x = np.indices(shape) + 0.5
    return ((2 * y / shape[0] - 1) / 0.8) ** 2 + ((2 * x / shape[1] - 1) / 0.8) ** 2 <= 1


def procedural_object(rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray, str]:
    """Draw a small object: a pebble, a ring, a bar or a star, shaded from one side.

    Returns:
        pixels uint8 (size, size, 3), mask bool (size, size), and the name of the shape.
    """
    name = ("pebble", "ring", "bar", "star")[int(rng.integers(4))]
    y, x = (np.indices((size, size)) + 0.5) / (size / 2) - 1  # -1 to 1
    radius, angle = np.hypot(y, x), np.arctan2(y, x)
    if name == "bar":
        mask = (np.abs(x) < 0.95) & (np.abs(y) < rng.uniform(0.08, 0.35))
    elif name == "ring":
        mask = (radius < 0.95) & (radius > rng.uniform(0.3, 0.7))
    else:
        points = rng.integers(4, 8) if name == "star" else 2
        depth = rng.uniform(0.3, 0.5) if name == "star" else rng.uniform(0.05, 0.2)
        outline = 1 - depth + depth * np.cos(points * angle + rng.uniform(0, 6.3))
        outline += 0.06 * np.cos(3 * angle + rng.uniform(0, 6.3))
        mask = radius < 0.9 * outline
    light = rng.uniform(0, 2 * np.pi)
    shade = 1 + 0.35 * (np.cos(light) * y + np.sin(light) * x) + rng.normal(0, 0.04, (size, size))
    colour = rng.uniform(20, 235, 3)
    pixels = np.rint((shade[..., None] * colour).clip(0, 255)).astype(np.uint8)
    return pixels, mask, name
