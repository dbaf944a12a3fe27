"""Manifold or hypersphere? What GLASS decides for each category before training (image-level spectrogram analysis).

Normal features of a texture spread out like a sheet, those of an aligned object gather in a ball. GLASS guesses which
from the mean of all training images: where parts are aligned, the mean keeps the contrast of a compact object, and its
spectrum shows a dense round blob of strong low frequencies. Where they are not, everything averages out to grey.
"""

from functools import cache
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import pandas as pd

from adlib.errors import InputError
from adlib.images import Resize
from adlib.settings import choice

# The five modes of the original by name (0 to 4 there). What mode 1 does apart from deciding is to stop; ours trains.
MODES = ("stored", "analyse", "manifold", "hypersphere", "opposite")
HYPOTHESES = ("manifold", "hypersphere")
# Data sets that show the same categories as another one.
SAME_CATEGORIES = {"mvtec": "mvtec_ad", "mad_man": "mvtec_ad", "mad_sys": "mvtec_ad"}

STRONG = 170  # dB, 20 ln |F|: a frequency above is strong
DENSE, WIDE, MANY = 0.21, 12, 60  # density, radius in bins and number of strong bins that a blob exceeds


class Verdict(NamedTuple):
    """A decision and the numbers behind it.

    Attributes:
        hypothesis: "manifold" or "hypersphere".
        why: one clause of plain words.
        n: number of strong frequencies; radius: distance of the outermost from the zero frequency, in bins.
        density_box, density_disc: share of strong bins in their bounding box and in their disc.
            All four are None where the decision was stored or asked for.
    """

    hypothesis: str
    why: str
    n: int | None = None
    radius: float | None = None
    density_box: float | None = None
    density_disc: float | None = None

    def __str__(self):
        return f"{self.hypothesis} hypothesis: {self.why}"


def decide(table: pd.DataFrame, mode: str = "stored", bit_depth: int | None = None) -> Verdict:
    """Decide for a category by one of the five modes.

    Args:
        table: sample table of normal training images; `attrs["dataset"]` and the category find the stored decision.
        mode: "stored" (the authors' decision; analyse where there is none), "analyse", "manifold", "hypersphere", or
            "opposite" (of the stored or analysed decision: the paper's ablation).
    """
    choice("hypothesis", mode, MODES)
    if mode in HYPOTHESES:
        return Verdict(mode, "asked for")
    if mode == "analyse":
        return judge(average_image(table.image_path, bit_depth=bit_depth))
    dataset, categories = str(table.attrs.get("dataset", "")), table.category.unique()
    decision = stored(dataset, categories[0]) if len(categories) == 1 else None
    if decision:
        verdict = Verdict(decision, f"stored decision for {dataset} / {categories[0]}")
    else:
        verdict = judge(average_image(table.image_path, bit_depth=bit_depth))
    if mode == "opposite":
        other = HYPOTHESES[int(verdict.hypothesis == "manifold")]
        return Verdict(other, f"the opposite was asked for; {verdict.why} says {verdict.hypothesis}")
    return verdict


def stored(dataset: str, category: str) -> str | None:
    """Return the authors' decision for a category of MVTec AD, VisA, MPDD or WFDD, or None.

    >>> stored("mvtec_ad", "screw")
    'hypersphere'
    """
    return _decisions().get((published_name(dataset), category))


def published_name(dataset: str) -> str:
    """The data set whose categories `dataset` shows: "mvtec_ad" for MAD-man, MAD-sys and the layout "mvtec"."""
    return SAME_CATEGORIES.get(dataset, dataset)


@cache
def _decisions() -> dict:
    table = pd.read_csv(Path(__file__).with_name("distribution.csv"))
    return {(row.dataset, row.category): row.hypothesis for row in table.itertuples()}


def average_image(image_paths, size: int = 288, bit_depth: int | None = None) -> np.ndarray:
    """Mean of all images, each resized to a square without a crop.

    Returns:
        uint8 (size, size, 3), RGB.
    """
    paths = list(image_paths)
    if not paths:
        raise InputError("no training image to average; expected at least one normal image")
    total, resize = np.zeros((size, size, 3)), Resize(size, bit_depth=bit_depth)
    for path in paths:
        total += resize.read(path)[0]
    return (total / len(paths)).astype(np.uint8)


def judge(average: np.ndarray) -> Verdict:
    """Decide from the mean training image.

    1. Resize to 289 x 289, grey, box blur of 39 x 39.
    2. Spectrum in decibels; a bin is strong above 170 dB.
    3. Hypersphere if the strong bins are many (n > 60), reach far (radius > 12) and fill their bounding box or their
       disc (density > 0.21). Otherwise manifold.

    Args:
        average: uint8 (H, W, 3), RGB.
    """
    decibel = spectrum(average)
    rows, columns = np.nonzero(decibel > STRONG)
    middle = decibel.shape[0] // 2
    dy, dx = rows - middle, columns - middle
    n = len(rows)
    radius = float(np.hypot(dy, dx).max(initial=0))
    box = 4 * max(np.abs(dx).max(initial=0), 1) * max(np.abs(dy).max(initial=0), 1)
    # The disc is counted on a canvas twice as wide, so that a radius beyond the spectrum's edge is not cut off.
    offsets = np.arange(2 * decibel.shape[0]) - decibel.shape[0]
    disc = np.count_nonzero(np.hypot(offsets[:, None], offsets[None]) <= radius)
    density_box, density_disc = n / box, n / disc
    dense = max(density_box, density_disc)
    blob = dense > DENSE and radius > WIDE and n > MANY
    why = f"{n} strong frequencies within {radius:.1f} bins of zero, density {dense:.2f}"
    needed = f"a compact aligned object has more than {MANY}, {WIDE} and {DENSE}"
    return Verdict(HYPOTHESES[int(blob)], f"{why} ({needed})", n, radius, density_box, density_disc)


def spectrum(average: np.ndarray) -> np.ndarray:
    """Spectrum of the blurred grey mean image: float64 (289, 289), 20 ln |F|, zero frequency in the middle."""
    if average.dtype != np.uint8 or average.ndim != 3 or average.shape[2] != 3:
        raise InputError(f"average image must be uint8 (H, W, 3), got {average.dtype} {average.shape}")
    image = cv2.resize(average, (289, 289), interpolation=cv2.INTER_LINEAR)
    blurred = cv2.blur(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (39, 39))
    magnitude = np.abs(np.fft.fftshift(np.fft.fft2(blurred.astype(np.float64))))
    return 20 * np.log(np.maximum(magnitude, 1e-12))
