"""Data sets as sample tables: pandas DataFrames with one row an image.

Columns: `image_path` (absolute), `mask_path` (a file, a folder of files that belong to one image, or None), `label`
(0 normal, 1 anomalous), `defect` ("good" for normal), `split` ("train", "validation", "test"), `category`.
A data set is nothing else, so a table can be filtered, joined and concatenated like any other.

>>> from adlib import datasets
>>> table = datasets.load("demo", category="brick")
>>> table.split.value_counts().to_dict()
{'test': 44, 'train': 40}
"""

from pathlib import Path

import pandas as pd

from adlib.datasets import catalogue, demo, mvtec
from adlib.datasets.table import existing_folder, file_hash, hold_out, make_table, subfolders, table_hash
from adlib.errors import InputError, suggest
from adlib.paths import data_dir

__all__ = [
    "LAYOUTS",
    "categories",
    "discover",
    "file_hash",
    "guess_dataset",
    "hold_out",
    "load",
    "mask_threshold",
    "table_hash",
]

# Each layout is a module with categories(root), rows(root, category, strict), mask_files(root, category) and
# MASK_THRESHOLD. They are in the order in which an unknown folder is tried: the special ones before the general one.
LAYOUTS = {"mvtec": mvtec, "demo": demo}


def load(layout: str, root=None, category: str | None = None) -> pd.DataFrame:
    """Return the sample table of a data set.

    Args:
        layout: a data set ("mvtec_ad", "visa", ...: see `catalogue`), a layout (a key of `LAYOUTS`), or the name of
            the folder `root` itself where that holds own data in the MVTec layout.
        root: the folder that holds the category folders; also accepted are the category folder itself and a folder
            that holds the data set under its name. Default `data/<data set>`; "elpv" lies in its package.
        category: one category; None for all of them, one after the other.

    Returns:
        the table, in an order that depends on names only, with a RangeIndex and
        `attrs` = {"dataset": layout, "mask_threshold": a mask pixel is true above it}.

    Raises:
        InputError: unknown data set or category, missing or empty folder, defective image without its mask.
    """
    module, root = _locate(layout, root)
    chosen = [category] if category is not None else module.categories(root)
    if not chosen:
        raise InputError(f"data root {root} holds no category of the layout of {layout!r}; see: adlib data list")
    rows = [row for name in chosen for row in module.rows(root, name)]
    return make_table(rows, layout, module.MASK_THRESHOLD)


def categories(layout: str, root=None) -> list[str]:
    """Return the names of the categories that are there, sorted; arguments as in `load`."""
    module, root = _locate(layout, root)
    return module.categories(root)


def mask_threshold(layout: str) -> int:
    """Return the grey value above which a mask pixel of this layout is true: 127, or 0 for VisA and MVTec LOCO AD."""
    return _module(layout).MASK_THRESHOLD


def discover(root) -> list[tuple[str, str, Path, list[str]]]:
    """Find the data sets below a folder that have training images.

    Looked at are the folder itself (also when it is a single category) and its subfolders.

    Returns:
        (data set, layout, root to load it from, categories) for each; where the folder's name is not in the
        catalogue, the data set is called by its folder.
    """
    root = existing_folder(root)
    found = []
    for folder in (root, *subfolders(root)):
        layout = _recognise(folder)
        if layout is None:
            continue
        module = LAYOUTS[layout]
        if folder == root and module.is_category(folder):
            return [(folder.parent.name, layout, folder.parent, [folder.name])]
        if folder == root:
            return [(folder.name, layout, folder, _trainable(module, folder))]
        if not module.is_category(folder):  # a category needs its data set's folder around it
            found.append((folder.name, layout, folder, _trainable(module, folder)))
    return [entry for entry in found if entry[3]]


def guess_dataset(root) -> str:
    """Return the name of the one data set below `root`, for a user who gave only a folder."""
    found = discover(root)
    if not found:
        raise InputError(
            f"data root {root} holds no known layout; expected e.g. {Path(root) / '<category>/train/good'}"
        )
    if len(found) > 1:
        raise InputError(
            f"data root {root} holds several data sets ({', '.join(name for name, *_ in found)}); "
            "name one of them (--dataset) or give its own folder"
        )
    return found[0][0]


def _recognise(folder: Path) -> str | None:
    for layout, module in LAYOUTS.items():
        if layout not in ("demo", "elpv") and _trainable(module, folder):
            return layout
    return None


def _trainable(module, root: Path) -> list[str]:
    names = module.categories(root)
    return [name for name in names if module is not mvtec or mvtec.is_trainable(root, name)]


def _module(layout: str):
    entry = catalogue.DATASETS.get(layout)
    if entry is not None and entry.layout in LAYOUTS:
        return LAYOUTS[entry.layout]
    if layout in LAYOUTS:
        return LAYOUTS[layout]
    known = [*LAYOUTS, *(name for name, entry in catalogue.DATASETS.items() if entry.layout in LAYOUTS)]
    raise InputError(
        f"data set {layout!r} is unknown{suggest(layout, known)}; choose one of {', '.join(dict.fromkeys(known))}"
    )


def _locate(layout: str, root) -> tuple:
    """Return the layout module and the folder of the category folders."""
    if root is not None and Path(root).name == layout and layout not in LAYOUTS and layout not in catalogue.DATASETS:
        return mvtec, existing_folder(root)
    module = _module(layout)
    if layout == "elpv":
        return module, None
    if layout == "demo":
        return module, Path(root) if root is not None else data_dir() / "demo"
    if root is None:
        if layout not in catalogue.DATASETS:
            raise InputError(f"layout {layout!r} needs a data root: name the folder of the category folders")
        root = data_dir() / layout
        if not root.is_dir():
            raise InputError(
                f"data set {layout!r} is not in {root}; give its data root or see: adlib data get {layout}"
            )
    root = existing_folder(root)
    if not module.categories(root) and module.categories(root / layout):
        root = root / layout
    return module, root
