"""The VisA layout, as downloaded or as its authors' script prepares it.

    raw       <root>/split_csv/1cls.csv                  object,split,label,image,mask (paths from <root>)
              <root>/<category>/Data/Images/{Normal,Anomaly}/*.JPG, <category>/Data/Masks/Anomaly/*.png
    prepared  [1cls/]<category>/{train/good,test/good,test/bad,ground_truth/bad}, which is the MVTec AD layout

Masks store the number of the defect's class, so every value above 0 is a defect. Both forms call a defect "bad".
"""

import csv
from pathlib import Path

from adlib.datasets import mvtec
from adlib.datasets.table import category_folder, sample, subfolders
from adlib.errors import InputError
from adlib.images import list_images

MASK_THRESHOLD = 0


def is_category(folder: Path) -> bool:
    """Tell whether a folder is a category in the raw form."""
    return (folder / "Data" / "Images").is_dir()


def categories(root: Path) -> list[str]:
    """Return the names of the categories, of either form."""
    if is_category(root):
        return [root.name]
    return [folder.name for folder in subfolders(root) if is_category(folder)] or mvtec.categories(_prepared(root))


def rows(root: Path, category: str) -> list[tuple]:
    """Return the rows of a category in the one-class split, in the order of the split file."""
    if _prepared_category(root, category):
        return mvtec.rows(_prepared(root), category)
    folder = category_folder(root, category, categories(root), is_category)
    base, split_file = folder.parent, folder.parent / "split_csv" / "1cls.csv"
    if not split_file.is_file():
        raise InputError(f"{split_file}: no such file; the raw form of VisA needs its split file (from the archive)")
    found = []
    with open(split_file, newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        missing = {"object", "split", "label", "image", "mask"} - set(reader.fieldnames or ())
        if missing:
            raise InputError(f"{split_file}: no column {sorted(missing)[0]!r}; expected object,split,label,image,mask")
        for line in reader:
            if line["object"] != category:
                continue
            image = base / line["image"]
            if not image.is_file():
                raise InputError(f"{image}: no such image, but {split_file.name} lists it; unpack the archive again")
            normal = line["label"] == "normal"
            mask = base / line["mask"] if not normal and (base / line["mask"]).is_file() else None
            found.append(sample(image, mask, "good" if normal else "bad", line["split"], category))
    if not found:
        raise InputError(f"{split_file}: no line for category {category!r}")
    return found


def mask_files(root: Path, category: str) -> list[Path]:
    """Return every mask file of a category, whether or not an image belongs to it."""
    if _prepared_category(root, category):
        return mvtec.mask_files(_prepared(root), category)
    folder = category_folder(root, category, categories(root), is_category)
    return list_images(folder / "Data" / "Masks", recursive=True)


def _prepared(root: Path) -> Path:
    return root / "1cls" if (root / "1cls").is_dir() else root


def _prepared_category(root: Path, category: str) -> bool:
    return not is_category(root) and not is_category(root / category) and category in mvtec.categories(_prepared(root))
