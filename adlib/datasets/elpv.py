"""ELPV: 2,624 grey images of solar cells (300 x 300) from the package `elpv-dataset`, with image labels only.

Experts gave each cell a probability of being defective. Cells of probability 0 are normal, those above 0.5 ("likely"
2/3, "certain" 1) anomalous; the "possible" ones (1/3) are left out, since nobody knows what they are. The data set has
no split of its own: a seeded 80 % of the normal cells train, all others test. Categories: mono- and polycrystalline.

Source: Deitsch et al., "Segmentation of photovoltaic module cells in uncalibrated electroluminescence images", 2021.
"""

import importlib.util
from pathlib import Path

import numpy as np

from adlib.datasets.table import sample, unknown_category
from adlib.errors import InputError

CATEGORIES = ("mono", "poly")
DEFECTS = {0: "good", 1: "possible", 2: "likely", 3: "certain"}  # by three times the probability
TRAIN_SHARE = 0.8  # of the normal cells


def package_folder() -> Path | None:
    """Return the folder of labels and images in the installed package, or None."""
    spec = importlib.util.find_spec("elpv_dataset")
    return Path(spec.origin).parent / "data" if spec and spec.origin else None


def categories(root=None) -> list[str]:
    """Return the two kinds of cells."""
    return list(CATEGORIES)


def rows(root=None, category="mono") -> list[tuple]:
    """Return the rows of a kind of cells; `root` is not used, the images lie in the package."""
    if category not in CATEGORIES:
        raise unknown_category(category, "elpv", CATEGORIES)
    folder = package_folder()
    if folder is None:
        raise InputError("data set 'elpv' needs its package: pip install elpv-dataset")
    # The package's own load_dataset() reads every image and drops the file names; the table needs only the names.
    try:
        lines = [line.split() for line in (folder / "labels.csv").read_text(encoding="utf-8").splitlines() if line]
        cells = [(folder / name, DEFECTS[round(3 * float(p))]) for name, p, kind in lines if kind == category]
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{folder / 'labels.csv'}: not as expected ({error}); install elpv-dataset again") from None
    normal = [image for image, defect in cells if defect == "good"]
    order, n_train = np.random.default_rng(0).permutation(len(normal)), round(TRAIN_SHARE * len(normal))
    rows = []
    for split, numbers in (("train", order[:n_train]), ("test", order[n_train:])):
        rows += [sample(normal[i], None, "good", split, category) for i in sorted(numbers)]
    for likelihood in ("likely", "certain"):
        rows += [sample(image, None, defect, "test", category) for image, defect in cells if defect == likelihood]
    return rows


def mask_files(root=None, category="mono") -> list[Path]:
    """Return no file: there are no masks."""
    return []
