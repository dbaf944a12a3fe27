"""The BTAD layout: like MVTec AD's, with `ok` for good and one kind of defect, `ko`; .bmp and .png files.

<root>/<category>/train/ok, test/{ok,ko}, ground_truth/ko
"""

from pathlib import Path

from adlib.datasets.table import MASK_THRESHOLD, category_folder, find_mask, masks_by_stem, sample, subfolders
from adlib.errors import InputError
from adlib.images import list_images

__all__ = ["MASK_THRESHOLD", "categories", "is_category", "mask_files", "rows"]


def is_category(folder: Path) -> bool:
    """Tell whether a folder is a category: it has train/ok."""
    return (folder / "train" / "ok").is_dir()


def categories(root: Path) -> list[str]:
    """Return the names of the category folders in `root`; of `root` alone where it is one itself."""
    if is_category(root):
        return [root.name]
    return [folder.name for folder in subfolders(root) if is_category(folder)]


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category."""
    folder = category_folder(root, category, categories(root), is_category)
    found = [sample(image, None, "good", "train", category) for image in list_images(folder / "train" / "ok")]
    found += [sample(image, None, "good", "test", category) for image in list_images(folder / "test" / "ok")]
    masks = masks_by_stem(folder / "ground_truth" / "ko")
    for image in list_images(folder / "test" / "ko"):
        found.append(sample(image, find_mask(masks, image), "ko", "test", category))
    if not found:
        raise InputError(f"category folder {folder} holds no image; expected files in {folder / 'train' / 'ok'}")
    return found


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a category, whether or not an image belongs to it."""
    folder = category_folder(root, category, categories(root), is_category)
    return list_images(folder / "ground_truth", recursive=True)
