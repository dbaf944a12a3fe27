"""What some methods want beside the images: foreground masks and texture sources for pseudo-anomalies."""

from pathlib import Path

import pandas as pd

from adlib.datasets.table import existing_folder
from adlib.errors import InputError
from adlib.images import list_images


def foreground_masks(root, category: str, table: pd.DataFrame) -> list[Path]:
    """Return the foreground mask of each row of a table, in its order.

    Masks are looked for in `<root>/fg_mask/<category>` and in `<root>/<category>/fg_mask`; where `root` is the
    category folder itself, beside it and in it. A mask has its image's name; only the suffix may differ.

    Args:
        root: the folder of the category folders.
        category: the category of the rows.
        table: a sample table of one category, usually its training rows.

    Raises:
        InputError: there is no such folder, or an image has no mask in it.
    """
    root = existing_folder(root)
    places = [root / "fg_mask" / category, root / category / "fg_mask"]
    if root.name == category:
        places += [root.parent / "fg_mask" / category, root / "fg_mask"]
    folder = next((place for place in places if place.is_dir()), None)
    if folder is None:
        raise InputError(f"foreground masks {places[0]}: no such folder (nor {places[1]}); make them or choose a rule")
    masks = {mask.stem: mask for mask in list_images(folder)}
    found = []
    for image in map(Path, table.image_path):
        if image.stem not in masks:
            raise InputError(f"foreground mask {folder / image.name} is missing; it belongs to {image}")
        found.append(masks[image.stem])
    return found


def texture_sources(root) -> list[Path]:
    """Return the images to take textures from: DTD (`images/<class>/*.jpg`) or any folder, searched with subfolders.

    Raises:
        InputError: there is no such folder or no image in it.
    """
    root = existing_folder(root, "texture folder")
    found = list_images(root, recursive=True)
    if not found:
        raise InputError(f"texture folder {root} holds no image; expected e.g. images/banded/banded_0002.jpg")
    return found
