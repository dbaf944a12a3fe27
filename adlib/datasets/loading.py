"""From the name of a data set and a folder to a sample table."""

import os
from pathlib import Path

import pandas as pd

from adlib.datasets import btad, catalogue, demo, elpv, loco, mad, mvtec, mvtec3d, visa
from adlib.datasets.table import existing_folder, make_table, refuse_misnamed, subfolders
from adlib.errors import InputError, suggest
from adlib.paths import data_dir

# Each layout is a module with categories(root), rows(root, category), mask_files(root, category) and
# MASK_THRESHOLD. They stand in the order in which an unknown folder is tried: the general layout comes last.
LAYOUTS = {
    "mvtec3d": mvtec3d,
    "loco": loco,
    "visa": visa,
    "btad": btad,
    "mvtec": mvtec,
    "demo": demo,
    "elpv": elpv,
}


def load(layout: str, root=None, category: str | None = None) -> pd.DataFrame:
    """Return the sample table of a data set.

    Args:
        layout: a data set ("mvtec_ad", "visa", ...: see `catalogue`), a layout (a key of `LAYOUTS`), or the name of
            the folder `root` itself where that holds data of your own in one of the layouts.
        root: the folder that holds the category folders; also accepted are the category folder itself and a folder
            that holds the data set under its name. Default `data/<data set>`; "elpv" lies in its package.
        category: one category; None for all of them, one after the other.

    Returns:
        the table, in an order that depends on names only, with a RangeIndex and `attrs` = {"dataset": layout}.

    Raises:
        InputError: unknown data set or category, missing or empty folder, a mask and an image that miss each other.
    """
    module, root = locate(layout, root)
    chosen = [category] if category is not None else module.categories(root)
    if not chosen:
        raise InputError(f"data root {root} holds no category of the layout of {layout!r}; see: adlib data list")
    rows = []
    for name in chosen:
        found = module.rows(root, name)
        refuse_misnamed(found, module.mask_files(root, name))
        rows += found
    return make_table(rows, layout, module.MASK_THRESHOLD)


def categories(layout: str, root=None) -> list[str]:
    """Return the names of the categories that are there, sorted; arguments as in `load`."""
    module, root = locate(layout, root)
    return module.categories(root)


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
    if name := mad.name_of(existing_folder(root)):
        return name
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
        # Demo and ELPV need no folder; the prepared form of VisA is left to the MVTec layout, which it is.
        if layout in ("demo", "elpv") or (layout == "visa" and not _is_raw_visa(folder)):
            continue
        if _trainable(module, folder):
            return layout
    return None


def _is_raw_visa(folder: Path) -> bool:
    return any(map(visa.is_category, (folder, *subfolders(folder))))


def _trainable(module, root: Path) -> list[str]:
    names = module.categories(root)
    return [name for name in names if module is not mvtec or mvtec.is_trainable(root, name)]


def _module(layout: str):
    if layout in mad.NAMES:
        return mad
    entry = catalogue.DATASETS.get(layout)
    name = entry.layout if entry is not None else layout
    if name in LAYOUTS:
        return LAYOUTS[name]
    if entry is not None:
        raise InputError(f"{layout!r} holds textures, not images to inspect; see: datasets.texture_sources(root)")
    known = [*LAYOUTS, *(name for name, entry in catalogue.DATASETS.items() if entry.layout in LAYOUTS)]
    raise InputError(
        f"data set {layout!r} is unknown{suggest(layout, known)}; choose one of {', '.join(sorted(set(known)))}"
    )


def locate(layout: str, root) -> tuple:
    """Return the layout module and the folder of the category folders."""
    if root is not None and layout not in LAYOUTS and layout not in catalogue.DATASETS:
        folder = existing_folder(root)
        for own in (folder, folder.parent, folder / layout):  # own data, called by the name of its folder
            if own.name == layout and (found := _recognise(own)):
                return LAYOUTS[found], own
    module = _module(layout)
    if layout == "elpv":
        return module, None
    if layout == "demo":
        root = Path(os.path.abspath(root)) if root is not None else data_dir() / "demo"
        return module, root / "demo" if (root / "demo" / demo.STAMP).is_file() else root
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
