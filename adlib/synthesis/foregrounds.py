"""Which pixels show the product: thresholding rules by data set and category, and a rule for anything else.

Industrial backgrounds are plain, so a threshold is enough. The rules are those of RealNet's released code for
MVTec AD, VisA, MPDD and BTAD.
"""

from dataclasses import dataclass

import cv2
import numpy as np

from adlib.datasets.catalogue import layout_of
from adlib.errors import InputError
from adlib.settings import choice
from adlib.synthesis.objects import border, object_side, separation

METHODS = ("ones", "otsu", "triangle", "background")
CHANNELS = {"red": 0, "green": 1, "blue": 2}


@dataclass(frozen=True)
class Rule:
    """How to find the product.

    Args:
        method: "ones" (everything), "otsu", "triangle", or "background": further than `tolerance` grey levels from
            `level`, smoothed by a 7x7 median (NSA).
        side: "bright" or "dark": which side of the threshold is the product.
        channel: "grey", "red", "green" or "blue".
        close, open: side of the square in pixels for closing, then opening; 0 for none.
        level, tolerance: grey levels for "background".
    """

    method: str = "otsu"
    side: str = "bright"
    channel: str = "grey"
    close: int = 0
    open: int = 0
    level: int = 0
    tolerance: int = 0

    def __post_init__(self):
        choice("foreground method", self.method, METHODS)
        choice("foreground side", self.side, ("bright", "dark"))
        choice("foreground channel", self.channel, ("grey", *CHANNELS))


ONES = Rule("ones")
_OTSU_DARK = Rule("otsu", "dark", close=6, open=6)
_TRIANGLE = Rule("triangle", close=6, open=6)
_PCB = Rule("triangle", channel="blue", close=8, open=3)

# layout -> category -> rule; "*" stands for every other category.
RULES = {
    "mvtec": {
        **dict.fromkeys(("carpet", "leather", "tile", "wood", "cable", "transistor"), ONES),
        **dict.fromkeys(("hazelnut", "metal_nut", "toothbrush"), _TRIANGLE),
        **dict.fromkeys(("bottle", "capsule", "grid", "screw", "zipper"), _OTSU_DARK),
        "pill": Rule("otsu", close=6, open=6),
        # MPDD, which comes in the same layout
        **dict.fromkeys(("bracket_black", "bracket_brown", "connector"), Rule("otsu", "dark", "green")),
        **dict.fromkeys(("bracket_white", "tubes"), Rule("otsu", channel="blue")),
        "metal_plate": Rule("otsu", "dark", close=6),
    },
    "visa": {
        "capsules": ONES,
        **dict.fromkeys(("pcb1", "pcb2", "pcb3", "pcb4"), _PCB),
        "*": Rule("otsu", close=3, open=3),
    },
    "btad": {"02": ONES, "*": Rule("otsu", close=15, open=6)},
}


def rule_for(dataset: str, category: str) -> Rule | str:
    """Return the published rule of a category, "auto" where none was published.

    Args:
        dataset: a layout ("mvtec"), or a data set of the catalogue ("mvtec_ad", "mpdd").

    >>> rule_for("mvtec", "pill").method
    'otsu'
    """
    rules = RULES.get(layout_of(dataset), {})
    return rules.get(category, rules.get("*", "auto"))


def foreground(image: np.ndarray, rule: Rule | str = "auto") -> np.ndarray:
    """Mask of the product.

    Args:
        image: uint8 or float in [0, 1], (H, W, 3) or grey (H, W).
        rule: a `Rule`, or "auto": Otsu on the grey value or the saturation, whichever separates better, the side that
            holds less of the border; believed when it looks like an object (see `looks_like_object`), otherwise the
            whole image. So textures get the whole image.

    Returns:
        bool (H, W), never empty: a rule that finds nothing, as on an image without a product, gives the whole image.
    """
    image = _uint8_rgb(image)
    if isinstance(rule, str):
        choice("foreground rule", rule, ("auto",))
        mask = auto_mask(image)
        return mask if looks_like_object(mask) else np.ones(image.shape[:2], bool)
    if rule.method == "ones":
        return np.ones(image.shape[:2], bool)
    if rule.channel == "grey":
        channel = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    else:
        channel = np.ascontiguousarray(image[..., CHANNELS[rule.channel]])
    mask = _threshold(channel, rule)
    mask = _close_and_open(mask, rule.close, rule.open)
    return mask > 0 if mask.any() else np.ones(image.shape[:2], bool)


def _threshold(channel: np.ndarray, rule: Rule) -> np.ndarray:
    if rule.method == "background":
        distance = cv2.absdiff(channel, np.full_like(channel, rule.level))
        return cv2.medianBlur(np.uint8(distance > rule.tolerance), 7)
    kind = cv2.THRESH_BINARY if rule.side == "bright" else cv2.THRESH_BINARY_INV
    kind |= {"otsu": cv2.THRESH_OTSU, "triangle": cv2.THRESH_TRIANGLE}[rule.method]
    return cv2.threshold(channel, 0, 1, kind)[1]


def _close_and_open(mask: np.ndarray, close: int, open_: int) -> np.ndarray:
    """Closing, then opening by squares of these sides, 0 for none."""
    return _by_square(_by_square(mask, close, cv2.dilate, cv2.erode), open_, cv2.erode, cv2.dilate)


def _by_square(mask: np.ndarray, size: int, first, second) -> np.ndarray:
    """Two steps by a square; the second has the mirrored anchor, or an even square would shift the mask."""
    if not size:
        return mask
    square, half = np.ones((size, size), np.uint8), size // 2
    return second(first(mask, square, anchor=(half, half)), square, anchor=(size - 1 - half, size - 1 - half))


def auto_mask(image: np.ndarray) -> np.ndarray:
    """The automatic guess before it is judged: bool (H, W) from uint8 (H, W, 3)."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    saturation = cv2.cvtColor(image, cv2.COLOR_RGB2HSV)[..., 1]
    # A small blur and a closing by 2 % of the shorter side: print, reflections and grain are part of the product.
    size = max(3, round(min(image.shape[:2]) * 0.02)) | 1
    channels = [cv2.GaussianBlur(channel, (size, size), 0) for channel in (grey, saturation)]
    mask = object_side(max(channels, key=separation)).astype(np.uint8)
    return _close_and_open(mask, size, size) > 0


def looks_like_object(mask: np.ndarray) -> bool:
    """Whether a mask looks like an object: it covers 5 to 85 % of the image and keeps away from the border.

    One side of a threshold on a texture covers the border about as densely as the rest; an object in the middle of
    a picture does not. So the share of the border that is covered must be below a third of the share of the image.
    """
    area = mask.mean()
    return bool(0.05 <= area <= 0.85 and border(mask).mean() < area / 3)


def _uint8_rgb(image: np.ndarray) -> np.ndarray:
    image = np.asarray(image)
    if image.ndim not in (2, 3) or (image.ndim == 3 and image.shape[2] != 3):
        raise InputError(f"image must be (H, W, 3) or grey (H, W), got shape {image.shape}")
    if image.dtype != np.uint8:
        image = np.rint(image * 255).clip(0, 255).astype(np.uint8)
    return image if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
