"""Textures made by the project itself, and the augmentations that DRAEM and GLASS apply to any texture.

Augmentations map uint8 (H, W, 3) to the same and return what they drew. Nearly all act on one value at a time, so
each is a table of 256 entries.
"""

import cv2
import numpy as np

from adlib.synthesis.perlin import perlin_noise, rotate

# -- augmentations ----------------------------------------------------------------------------------------------------


def gamma(image, rng):
    """Gamma 0.5 to 2, a different one for each channel."""
    exponents = rng.uniform(0.5, 2.0, 3)
    tables = np.stack([(np.arange(256) / 255) ** g * 255 for g in exponents], axis=-1)  # (256, 3)
    return _look_up(image, tables), {"gamma": exponents.tolist()}


def brightness(image, rng):
    """Multiply by 0.8 to 1.2 and add -30 to 30 grey levels."""
    factor, shift = float(rng.uniform(0.8, 1.2)), float(rng.uniform(-30, 30))
    return _look_up(image, np.arange(256) * factor + shift), {"factor": factor, "shift": shift}


def sharpness(image, rng):
    """Blend with a smoothed copy: factor 0.1 nearly smooth, 1 unchanged, 1.9 sharpened."""
    factor = float(rng.uniform(0.1, 1.9))
    kernel = np.float32([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13
    return cv2.addWeighted(image, factor, cv2.filter2D(image, -1, kernel), 1 - factor, 0), {"factor": factor}


def hue_and_saturation(image, rng):
    """Shift hue and saturation by -50 to 50, each of 256 levels for its full range."""
    hue, saturation = rng.uniform(-50, 50, 2).tolist()
    return shift_hsv(image, hue / 256, saturation=saturation / 256), {"hue": hue, "saturation": saturation}


def solarise(image, rng):
    """With probability 0.5 invert every value above a threshold of 32 to 128."""
    threshold = int(rng.integers(32, 129)) if rng.random() < 0.5 else 256
    values = np.arange(256)
    return _look_up(image, np.where(values >= threshold, 255 - values, values)), {"threshold": threshold}


def posterise(image, rng):
    """Keep the highest 1 to 8 bits of each value."""
    bits = int(rng.integers(1, 9))
    return image & np.uint8(256 - (1 << (8 - bits))), {"bits": bits}


def invert(image, rng):
    """255 minus each value."""
    return 255 - image, {}


def autocontrast(image, rng):
    """Stretch each channel to the full range after cutting 0 to 20 % of its values at either end."""
    cut = float(rng.uniform(0, 0.2))
    return _stretch(image, cut), {"cut": cut}


def equalise(image, rng):
    """Make the histogram of each channel flat."""
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(image)]), {}


def rotation(image, rng):
    """Rotate by -45 to 45 degrees; the corners turn black, as in the original code."""
    degrees = float(rng.uniform(-45, 45))
    return rotate(image, degrees), {"degrees": degrees}


def contrast_jitter(image, rng):
    """Contrast 0.8 to 1.2 about the mean grey value."""
    factor = float(rng.uniform(0.8, 1.2))
    mean = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).mean()
    return _look_up(image, mean + factor * (np.arange(256) - mean)), {"factor": factor}


def brightness_jitter(image, rng):
    """Multiply by 0.8 to 1.2."""
    factor = float(rng.uniform(0.8, 1.2))
    return _look_up(image, np.arange(256) * factor), {"factor": factor}


def colour_jitter(image, rng):
    """Saturation times 0.8 to 1.2 and hue shifted by up to a fifth of the circle."""
    factor, hue = float(rng.uniform(0.8, 1.2)), float(rng.uniform(-0.2, 0.2))
    return shift_hsv(image, hue, factor), {"factor": factor, "hue": hue}


def flip_left_right(image, rng):
    """Mirror left and right."""
    return np.ascontiguousarray(image[:, ::-1]), {}


def flip_up_down(image, rng):
    """Mirror up and down."""
    return np.ascontiguousarray(image[::-1]), {}


def grey(image, rng):
    """Grey value in all three channels."""
    return cv2.cvtColor(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), {}


def full_contrast(image, rng):
    """Stretch each channel to the full range."""
    return _stretch(image, 0.0), {}


DRAEM_AUGMENTATIONS = (
    gamma, brightness, sharpness, hue_and_saturation, solarise, posterise, invert, autocontrast, equalise, rotation,
)  # fmt: skip
GLASS_AUGMENTATIONS = (
    contrast_jitter, brightness_jitter, colour_jitter, flip_left_right, flip_up_down, grey, full_contrast, equalise,
    rotation,
)  # fmt: skip


def augment(image: np.ndarray, rng: np.random.Generator, augmentations=DRAEM_AUGMENTATIONS, number: int = 3):
    """Apply `number` different augmentations, drawn without repetition, one after the other.

    Returns:
        uint8 (H, W, 3), and a list of (name, drawn values), one per augmentation.
    """
    draws = []
    for index in rng.permutation(len(augmentations))[:number]:
        operation = augmentations[index]
        image, values = operation(image, rng)
        draws.append((operation.__name__, values))
    return image, draws


def shift_hsv(image: np.ndarray, hue: float, factor: float = 1.0, saturation: float = 0.0) -> np.ndarray:
    """Shift the hue by a share of the circle; multiply the saturation, then shift it by a share of its range."""
    h, s, v = cv2.split(cv2.cvtColor(image, cv2.COLOR_RGB2HSV_FULL))  # all 0 to 255
    table = np.rint(np.arange(256) * factor + saturation * 255).clip(0, 255).astype(np.uint8)
    h = h + np.uint8(round(hue * 256) % 256)  # the circle of hues wraps like the type does
    return cv2.cvtColor(cv2.merge([h, cv2.LUT(s, table), v]), cv2.COLOR_HSV2RGB_FULL)


def _look_up(image: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Replace values by a table, (256,) for all channels or (256, 3)."""
    table = np.rint(table).clip(0, 255).astype(np.uint8)
    return cv2.LUT(image, table if table.ndim == 1 else table[:, None, :])


def _stretch(image: np.ndarray, cut: float) -> np.ndarray:
    values, tables = np.arange(256), []
    for channel in cv2.split(image):
        below = cv2.calcHist([channel], [0], None, [256], [0, 256]).ravel().cumsum() / channel.size
        low = int(np.searchsorted(below, cut, side="right"))  # first value that is kept
        high = int(np.searchsorted(below, 1 - cut, side="left"))
        tables.append((values - low) * (255 / (high - low)) if high > low else values)
    return _look_up(image, np.stack(tables, axis=-1))


# -- textures made here -----------------------------------------------------------------------------------------------


def procedural_texture(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Make a texture: one of six patterns between two random colours, with a little grain.

    Returns:
        uint8 (H, W, 3) and the name of the pattern.
    """
    name = TEXTURES[int(rng.integers(len(TEXTURES)))]
    pattern = PATTERNS[name](shape, rng) * 255  # (H, W)
    pattern += rng.standard_normal(shape, dtype=np.float32) * np.float32(rng.uniform(0, 16))
    mix = np.linspace(0, 1, 256)[:, None]
    first, second = rng.uniform(0, 255, (2, 3))
    levels = cv2.cvtColor(pattern.clip(0, 255).astype(np.uint8), cv2.COLOR_GRAY2RGB)  # (H, W, 3)
    return _look_up(levels, first + mix * (second - first)), name


def spectral_texture(shape: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """Make a texture of random phases under a spectrum that falls by f^-a, a from 0.5 to 1.5: photographs have about 1.

    Returns:
        uint8 (H, W, 3) and "spectral" with its a.
    """
    power = rng.uniform(0.5, 1.5)
    frequency = np.hypot(np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1]))
    falling = np.where(frequency > 0, np.maximum(frequency, 1e-9) ** -power, 0)
    planes = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((3, *shape))) * falling, shape)  # (3, H, W)
    planes /= np.maximum(planes.std(axis=(1, 2), keepdims=True), 1e-9)
    colours = rng.uniform(60, 196, 3) + np.moveaxis(planes, 0, 2) @ rng.normal(0, 30, (3, 3))  # channels vary together
    return colours.clip(0, 255).astype(np.uint8), f"spectral {power:.2f}"


def _coordinates(shape, rng) -> tuple[np.ndarray, np.ndarray]:
    """Row and column in units of the shorter side, turned by a random angle."""
    y = np.arange(shape[0], dtype=np.float32)[:, None] / min(shape)
    x = np.arange(shape[1], dtype=np.float32) / min(shape)
    angle = rng.uniform(0, np.pi)
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return cosine * y + sine * x, cosine * x - sine * y


def _cloud(shape, rng, cells=None, octaves=4):
    """Fractal noise stretched to [0, 1]."""
    most = max(1, min(shape) >> 4)
    cells = (int(rng.integers(1, most + 1)),) * 2 if cells is None else cells
    noise = perlin_noise(shape, cells, rng, octaves=octaves)
    return (noise - noise.min()) / max(float(np.ptp(noise)), 1e-6)


def _stripes(shape, rng):
    across, _ = _coordinates(shape, rng)
    return 0.5 + 0.5 * np.sin(2 * np.pi * np.float32(rng.uniform(4, 24)) * across)


def _checks(shape, rng):
    across, along = _coordinates(shape, rng)
    n = np.float32(rng.uniform(3, 14))
    return (np.floor(across * n) + np.floor(along * n)) % 2


def _cells(shape, rng):
    """Flat cells around random points: a cobble of grey values."""
    seeds = np.ones(shape, np.uint8)
    n = int(rng.integers(20, 200))
    seeds[rng.integers(0, shape[0], n), rng.integers(0, shape[1], n)] = 0
    distance, labels = cv2.distanceTransformWithLabels(seeds, cv2.DIST_L2, 5, labelType=cv2.DIST_LABEL_PIXEL)
    values = rng.random(labels.max() + 1, dtype=np.float32)[labels]
    return values * (0.6 + 0.4 * distance / max(float(distance.max()), 1e-6))


def _marble(shape, rng):
    across, _ = _coordinates(shape, rng)
    cloud = _cloud(shape, rng, (2, 2), 5)
    return 0.5 + 0.5 * np.sin(
        2 * np.pi * (np.float32(rng.uniform(1, 5)) * across + np.float32(rng.uniform(1, 3)) * cloud)
    )


def _weave(shape, rng):
    across, along = _coordinates(shape, rng)
    n = np.float32(rng.uniform(8, 30) * 2 * np.pi)
    over, under = np.sin(n * across), np.sin(n * along)
    return np.where(np.sin(n * across / 2) * np.sin(n * along / 2) > 0, over, under) * 0.5 + 0.5


PATTERNS = {
    "cloud": _cloud,
    "stripes": _stripes,
    "checks": _checks,
    "cells": _cells,
    "marble": _marble,
    "weave": _weave,
}
TEXTURES = tuple(PATTERNS)
