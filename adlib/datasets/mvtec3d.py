"""The MVTec 3D-AD layout, of which only the colour images are read.

<root>/<category>/{train,validation}/good/rgb, <root>/<category>/test/<kind>/{rgb,gt}; masks have the image's name
"""

from pathlib import Path

from adlib.datasets.table import MASK_THRESHOLD, category_folder, find_mask, masks_by_stem, sample, subfolders
from adlib.errors import InputError
from adlib.images import list_images

__all__ = ["MASK_THRESHOLD", "categories", "is_category", "mask_files", "rows"]


def is_category(folder: Path) -> bool:
    """Tell whether a folder is a category: it has train/good/rgb."""
    return (folder / "train" / "good" / "rgb").is_dir()


def categories(root: Path) -> list[str]:
    """Return the names of the category folders in `root`; of `root` alone where it is one itself."""
    if is_category(root):
        return [root.name]
    return [folder.name for folder in subfolders(root) if is_category(folder)]


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category."""
    folder = category_folder(root, category, categories(root), is_category)
    found = []
    for split in ("train", "validation"):
        for image in list_images(folder / split / "good" / "rgb"):
            found.append(sample(image, None, "good", split, category))
    for kind in sorted(subfolders(folder / "test"), key=lambda f: (f.name != "good", f.name)):
        masks = masks_by_stem(kind / "gt")  # good images have masks too, all black: not needed
        for image in list_images(kind / "rgb"):
            mask = find_mask(masks, image) if kind.name != "good" else None
            found.append(sample(image, mask, kind.name, "test", category))
    if not found:
        raise InputError(f"category folder {folder} holds no image; expected files in {folder / 'train/good/rgb'}")
    return found


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a defective image, whether or not the image is there."""
    folder = category_folder(root, category, categories(root), is_category)
    kinds = [kind for kind in subfolders(folder / "test") if kind.name != "good"]
    return [file for kind in kinds for file in list_images(kind / "gt")]
