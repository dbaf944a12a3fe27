"""The MVTec AD layout: MVTec AD, MPDD, WFDD, MAD-man, MAD-sys, magnetic tile, the demo data and most own data.

    <root>/<category>/train/good/000.png
    <root>/<category>/test/good/000.png
    <root>/<category>/test/<defect>/000.png
    <root>/<category>/ground_truth/<defect>/000_mask.png

Masks are paired with images by name. A category may have masks for all defects, for some or for none. MAD-man and
MAD-sys hold test images only: `mad` puts their parts together, with the training images of MVTec AD.
"""

from pathlib import Path

from adlib.datasets.table import MASK_THRESHOLD, category_folder, find_mask, masks_by_stem, sample, subfolders
from adlib.errors import InputError
from adlib.images import list_images

__all__ = ["MASK_THRESHOLD", "categories", "is_category", "is_trainable", "mask_files", "rows"]


def is_category(folder: Path) -> bool:
    """Tell whether a folder is a category: it has train/good, or a test folder with kinds in it."""
    return (folder / "train" / "good").is_dir() or bool(subfolders(folder / "test"))


def is_trainable(root: Path, category: str) -> bool:
    """Tell whether a category has training images; MAD-man and MAD-sys have none."""
    folder = root if root.name == category and is_category(root) else root / category
    return (folder / "train" / "good").is_dir()


def categories(root: Path) -> list[str]:
    """Return the names of the category folders in `root`; of `root` alone where it is one itself."""
    if is_category(root):
        return [root.name]
    return [folder.name for folder in subfolders(root) if is_category(folder)]


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category: training images, test good, then every kind of defect by name."""
    folder = category_folder(root, category, categories(root), is_category)
    found = [sample(image, None, "good", "train", category) for image in list_images(folder / "train" / "good")]
    for kind in sorted(subfolders(folder / "test"), key=lambda f: (f.name != "good", f.name)):
        masks = masks_by_stem(folder / "ground_truth" / kind.name) if kind.name != "good" else {}
        for image in list_images(kind):
            mask = find_mask(masks, image) if kind.name != "good" else None
            found.append(sample(image, mask, kind.name, "test", category))
    if not found:
        raise InputError(f"category folder {folder} holds no image; expected files in {folder / 'train' / 'good'}")
    return found


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a category, whether or not an image belongs to it."""
    folder = category_folder(root, category, categories(root), is_category)
    return list_images(folder / "ground_truth", recursive=True)
