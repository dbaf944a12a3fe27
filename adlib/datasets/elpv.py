"""ELPV: 2,624 grey images of solar cells (300 x 300) from the package `elpv-dataset`, with image labels only.

Experts gave each cell a probability of being defective. Cells of probability 0 are normal, those above 0.5 ("likely"
2/3, "certain" 1) anomalous; the "possible" ones (1/3) are left out, since nobody knows what they are. The data set has
no split of its own: a seeded 80 % of the normal cells train, all others test. Categories: mono- and polycrystalline.

Source: Deitsch et al., "Segmentation of photovoltaic module cells in uncalibrated electroluminescence images", 2021.
"""

import importlib.util
from pathlib import Path

import numpy as np

from adlib.datasets.table import MASK_THRESHOLD, sample
from adlib.errors import InputError, suggest

__all__ = ["CATEGORIES", "MASK_THRESHOLD", "categories", "mask_files", "package_folder", "rows"]

CATEGORIES = ("mono", "poly")
NAMES = {0: "good", 1: "possible", 2: "likely", 3: "certain"}  # by three times the probability


def package_folder() -> Path | None:
    """Return the folder of labels and images in the installed package, or None."""
    spec = importlib.util.find_spec("elpv_dataset")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def categories(root=None) -> list[str]:
    """Return the two kinds of cells."""
    return list(CATEGORIES)


def rows(root=None, category="mono", train_share=0.8, seed=0, possible=False) -> list[tuple]:
    """Return the rows of a kind of cells.

    Args:
        root: not used; the images lie in the package and have no masks.
        category: "mono" or "poly".
        train_share: share of the normal cells that train.
        seed: which ones.
        possible: keep the cells of probability 1/3, as anomalous test images of defect "possible".
    """
    if category not in CATEGORIES:
        raise InputError(f"category {category!r} is not in elpv{suggest(category, CATEGORIES)}; there are: mono, poly")
    folder = package_folder()
    if folder is None:
        raise InputError("data set 'elpv' needs its package: pip install elpv-dataset")
    # The package's own load_dataset() reads every image and drops the file names; the table needs only the names.
    try:
        lines = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines() if line]
        cells = [(folder / name, NAMES[round(3 * float(p))]) for name, p, kind in lines if kind == category]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'labels.csv'}: not as expected ({error}); install elpv-dataset again") from None
    normal = [image for image, kind in cells if kind == "good"]
    train = np.zeros(len(normal), dtype=bool)
    train[np.random.default_rng(seed).permutation(len(normal))[: round(train_share * len(normal))]] = True
    found = [
        sample(image, None, "good", "train", category) for image, chosen in zip(normal, train, strict=True) if chosen
    ]
    found += [
        sample(image, None, "good", "test", category) for image, chosen in zip(normal, train, strict=True) if not chosen
    ]
    for wanted in ("possible", "likely", "certain") if possible else ("likely", "certain"):
        found += [sample(image, None, kind, "test", category) for image, kind in cells if kind == wanted]
    return found


def mask_files(root=None, category="mono") -> list[Path]:
    """Return no file: there are no masks."""
    return []
