"""MAD-man and MAD-sys: test sets of faint defects on categories of MVTec AD, which also has their training images.

    <root>/Person_1/<category>/test/{good,<defect>}/000.png    MAD-man: what each of five persons picked
    <root>/Beta_0.1/<category>/...                             MAD-sys: 0.1, 0.3, 0.5, 0.7, the share of the original

Each of these parts is a root in MVTec layout. The root may be one part, or their folder: then the parts are taken
together, and a kind of defect is called by its part ("Person_1/crack"). The training images are those of MVTec AD where
it lies in `mvtec_ad` beside the root, beside the folder of the parts, or in `data/`; without it there are none.
"""

import re
from pathlib import Path

from adlib.datasets.layouts import MVTEC
from adlib.datasets.table import sample, subfolders, unknown_category
from adlib.images import list_images
from adlib.paths import data_dir

NAMES = ("mad_man", "mad_sys")
TRAINED_ON = "mvtec_ad"
# Beta_0.9 is released too, but not in the paper: it is read as a root of its own.
PART = re.compile(r"Person_[1-5]|Beta_0\.[1357]")


def name_of(root: Path) -> str | None:
    """Return "mad_man" or "mad_sys" where `root` or the folder above it is called so ("MAD-man" too), else None."""
    names = [folder.name.lower().replace("-", "_") for folder in (root, root.parent)]
    return next((name for name in names if name in NAMES and categories(root)), None)


def categories(root: Path) -> list[str]:
    """Return the names of the categories of all parts, sorted."""
    return sorted({name for part in _parts(root) for name in MVTEC.categories(part)})


def trainable(root: Path) -> list[str]:
    """Return the categories that have training images, their own or MVTec AD's."""
    return [name for name in categories(root) if any(row[4] == "train" for row in rows(root, name))]


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category: training images, then the test images of each part."""
    train, test, parts = [], [], _parts_with(root, category)
    for part in parts:
        for image, mask, label, defect, split, name in MVTEC.rows(part, category):
            defect = f"{part.name}/{defect}" if label and len(parts) > 1 else defect
            (train if split == "train" else test).append((image, mask, label, defect, split, name))
    return (train or _training_rows(root, category)) + test


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a category."""
    return [file for part in _parts_with(root, category) for file in MVTEC.mask_files(part, category)]


def _parts(root: Path) -> list[Path]:
    return [root] if MVTEC.categories(root) else [f for f in subfolders(root) if PART.fullmatch(f.name)]


def _parts_with(root: Path, category: str) -> list[Path]:
    parts = [part for part in _parts(root) if category in MVTEC.categories(part)]
    if not parts:
        raise unknown_category(category, root, categories(root))
    return parts


def _training_rows(root: Path, category: str) -> list[tuple]:
    """The training images of MVTec AD in the nearest `mvtec_ad`, none where there is none."""
    above = [root, *list(root.parents)[:3]]  # of a category's folder: part, data set, folder of data sets
    for folder in (*(folder / TRAINED_ON for folder in above), data_dir() / TRAINED_ON):
        images = list_images(folder / category / "train" / "good")
        if images:
            return [sample(image, None, "good", "train", category) for image in images]
    return []
