"""MAD-man and MAD-sys: test sets of faint defects on categories of MVTec AD, which also has their training images.

    <root>/Person_1/<category>/test/{good,<defect>}/000.png    MAD-man: what each of five persons picked
    <root>/Beta_0.1/<category>/...                             MAD-sys: 0.1, 0.3, 0.5, 0.7, the share of the original

Each of these parts is a root in MVTec layout. The root may be one part, or their folder: then the parts are taken
together, and a kind of defect is called by its part ("Person_1/crack"). The training images are those of MVTec AD where
it lies in `mvtec_ad` beside the root, beside the folder of the parts, or in `data/`; without it there are none.
"""

import re
from pathlib import Path

from adlib.datasets import mvtec
from adlib.datasets.mvtec import MASK_THRESHOLD, is_category
from adlib.datasets.table import category_folder, sample, subfolders
from adlib.images import list_images
from adlib.paths import data_dir

__all__ = ["MASK_THRESHOLD", "NAMES", "categories", "is_category", "mask_files", "name_of", "rows"]

NAMES = ("mad_man", "mad_sys")
TRAINED_ON = "mvtec_ad"
PART = re.compile(r"Person_[1-5]|Beta_0\.[1357]")  # Beta_0.9 is released too, but not in the paper


def name_of(root: Path) -> str | None:
    """Return "mad_man" or "mad_sys" where `root` or the folder above it is called so ("MAD-man" too), else None."""
    for folder in (root, root.parent):
        name = folder.name.lower().replace("-", "_")
        if name in NAMES and categories(root):
            return name
    return None


def categories(root: Path) -> list[str]:
    """Return the names of the categories of all parts, sorted."""
    return sorted({name for part in _parts(root) for name in mvtec.categories(part)})


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category: training images, then the test images of each part."""
    parts = _parts_with(root, category)
    found = [(part, row) for part in parts for row in mvtec.rows(part, category)]
    test = [(part, row) for part, row in found if row[4] == "test"]
    own = [row for _, row in found if row[4] == "train"]
    if len(parts) > 1:
        test = [(part, (*row[:3], f"{part.name}/{row[3]}" if row[2] else row[3], *row[4:])) for part, row in test]
    return (own or _training_rows(root, category)) + [row for _, row in test]


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a category."""
    return [file for part in _parts_with(root, category) for file in mvtec.mask_files(part, category)]


def _parts(root: Path) -> list[Path]:
    if mvtec.categories(root):
        return [root]
    return [folder for folder in subfolders(root) if PART.fullmatch(folder.name)]


def _parts_with(root: Path, category: str) -> list[Path]:
    parts = [part for part in _parts(root) if category in mvtec.categories(part)]
    return parts or [category_folder(root, category, categories(root), is_category)]  # says what is there


def _training_rows(root: Path, category: str) -> list[tuple]:
    """The training images of MVTec AD in the nearest `mvtec_ad`, none where there is none."""
    above = [root, *list(root.parents)[:3]]  # of a category's folder: part, data set, folder of data sets
    for folder in (*(folder / TRAINED_ON for folder in above), data_dir() / TRAINED_ON):
        images = list_images(folder / category / "train" / "good")
        if images:
            return [sample(image, None, "good", "train", category) for image in images]
    return []
